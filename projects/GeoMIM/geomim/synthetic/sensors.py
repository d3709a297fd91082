"""What the sensors of a vehicle record in a scene: images, point clouds with labels, and which bodies they saw.

Shape legend: H x W pixels, R x C rays, M points, O bodies. Lengths are metres, times seconds from the first keyframe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .cast import GROUND, NOTHING, Frozen, Hits, camera_beams, cast, freeze, labels_of, lidar_beams, rotate
from .layout import Scene
from .rig import Camera, Lidar
from .shade import shade

FARTHEST_PIXEL = 200.0  # metres of depth, beyond which an image shows the sky
RANGE_NOISE = 0.015  # metres, standard deviation
LOST = 0.015  # share of beams without a return


@dataclass(frozen=True)
class View:
    """A camera's record: image (H, W, 3) uint8 RGB, its hits (t is depth along the optical axis), cam2world (4, 4)."""

    image: np.ndarray
    hits: Hits
    frozen: Frozen
    cam2world: np.ndarray


@dataclass(frozen=True)
class Scan:
    """A LiDAR's record.

    Args:
        points: (M, 5) float32: x, y, z in the LiDAR frame, intensity 0 to 255, ring; column by column.
        labels: (M,) uint8, LiDAR segmentation.
        body: (M,) body that was hit, -1 for the ground.
        ranges: (R, C) of all beams without noise, infinite where nothing came back.
        frozen: the bodies at the time.
        lidar2world: (4, 4).
    """

    points: np.ndarray
    labels: np.ndarray
    body: np.ndarray
    ranges: np.ndarray
    frozen: Frozen
    lidar2world: np.ndarray


def photograph(scene: Scene, camera: Camera, time: float, random: np.random.Generator) -> View:
    """What a camera sees at the time of its exposure."""
    ego2world = scene.ego2world(time)
    frozen, beams = freeze(scene, time), camera_beams(camera, ego2world)
    hits = cast(scene, frozen, beams, FARTHEST_PIXEL, count_alone=True)
    return View(shade(scene, frozen, beams, hits, random), hits, frozen, ego2world @ camera.cam2ego)


def scan(scene: Scene, lidar: Lidar, time: float, random: np.random.Generator) -> Scan:
    """A turn of the LiDAR, all beams at once, with noise of range and intensity and some lost returns."""
    ego2world = scene.ego2world(time)
    frozen, beams = freeze(scene, time), lidar_beams(lidar, ego2world)
    hits = cast(scene, frozen, beams, lidar.reach)
    back = (hits.solid != NOTHING) & (random.uniform(size=hits.t.shape) >= LOST)
    column, ring = np.nonzero(back.T)  # column by column
    solid, t, rays = hits.solid[ring, column], hits.t[ring, column], beams.rays[:, ring, column]
    exact = beams.origin[:, None] + rays * t
    noisy = t + RANGE_NOISE * random.standard_normal(t.size, dtype=np.float32)
    world = rays.astype(np.float64) * noisy
    local = rotate(beams.rotation.T, world)
    intensity = np.clip(_intensity(scene, frozen, solid, exact, t) * random.uniform(0.8, 1.2, t.size), 0, 255)
    points = np.column_stack([local.T, np.round(intensity), ring]).astype(np.float32)
    body = np.where(solid >= 0, frozen.owner[np.maximum(solid, 0)], -1)
    labels = labels_of(scene, frozen, solid, exact)
    return Scan(points, labels, body, np.where(back, hits.t, np.inf), frozen, ego2world @ lidar.lidar2ego)


def _intensity(scene: Scene, frozen: Frozen, solid: np.ndarray, points: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Reflected intensity before noise: of the material, weaker far away; road paint shines."""
    material = frozen.stack.intensity[np.maximum(solid, 0)]
    ground = np.nonzero(solid == GROUND)[0]
    s, d = scene.road.locate(points[0, ground], points[1, ground])
    asphalt = np.where(scene.road.painted(s, d), 55.0, 7.0)
    material[ground] = np.where(np.abs(d) < scene.road.kerb, asphalt, 16.0)
    return material * np.exp(-t / 120)

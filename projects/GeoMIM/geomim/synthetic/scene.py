"""A street scene of boxes on flat ground, cast ray by ray; what cameras and LiDAR of the generated keyframes look at.

Everything is in the ego frame (x ahead, y left, z up, origin on the ground under the rear axle). Lengths are metres; M
rays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Tuple

import numpy as np

# class: length, width, height (metres), nearest and farthest distance from the ego vehicle, colour (RGB)
CLASSES: Dict[str, Tuple[float, float, float, float, float, Tuple[int, int, int]]] = {
    'car': (4.6, 1.9, 1.7, 9, 17, (190, 40, 40)),
    'truck': (7.0, 2.5, 2.9, 15, 24, (235, 170, 60)),
    'trailer': (12.0, 2.9, 3.8, 22, 29, (225, 225, 235)),
    'bus': (11.0, 2.9, 3.4, 21, 28, (40, 90, 200)),
    'construction_vehicle': (6.3, 2.8, 3.2, 15, 24, (240, 205, 30)),
    'bicycle': (1.7, 0.6, 1.3, 6, 11, (30, 150, 160)),
    'motorcycle': (2.1, 0.8, 1.5, 6, 12, (120, 40, 140)),
    'pedestrian': (0.7, 0.7, 1.75, 6, 12, (60, 190, 80)),
    'traffic_cone': (0.4, 0.4, 1.1, 6, 9, (255, 110, 20)),
    'barrier': (0.5, 2.5, 1.0, 7, 13, (250, 250, 250)),
}
_EXTRAS = ('car', 'car', 'pedestrian', 'pedestrian')
FARTHEST = 100.0  # metres, of ground that can be seen
GROUND, SKY = -1, -2


@dataclass(frozen=True)
class Solid:
    """A box on the ground: centre (3,), size (length, width, height), yaw (radians), RGB, class or '' for scenery."""

    centre: np.ndarray
    size: np.ndarray
    yaw: float
    colour: Tuple[int, int, int]
    name: str = ''

    def axes(self) -> np.ndarray:
        """(3, 3), rows are the box's own axes in the ego frame."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])

    def distance(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Rays origin (3,) + t * rays (3, M) -> smallest t >= 0 on the surface (M,), infinite where there is none."""
        axes, half = self.axes().astype(rays.dtype), self.size.astype(rays.dtype)[:, None] / 2
        start, step = axes @ (origin - self.centre).astype(rays.dtype)[:, None], axes @ rays
        step = np.where(np.abs(step) < 1e-9, 1e-9, step)
        first, second = (-half - start) / step, (half - start) / step
        enter, leave = np.minimum(first, second).max(0), np.maximum(first, second).min(0)
        return np.where((enter <= leave) & (enter >= 0), enter, np.inf)


@dataclass(frozen=True)
class Scene:
    """The solids of one moment, and the direction of the road (radians, ego frame)."""

    solids: Tuple[Solid, ...]
    road: float

    def cast(self, origin: np.ndarray, rays: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """What rays origin (3,) + t * rays (3, M) meet first.

        Returns:
            t (M,), infinite for the sky; index in ``solids`` (M,), or GROUND, or SKY.
        """
        nearest = -origin[2].astype(rays.dtype) / np.minimum(rays[2], -1e-9)
        nearest[(rays[2] >= 0) | (nearest * np.hypot(rays[0], rays[1]) > FARTHEST)] = np.inf
        hit = np.where(np.isfinite(nearest), GROUND, SKY)
        squares = np.einsum('dm,dm->m', rays, rays)
        for index, solid in enumerate(self.solids):
            to_centre, reach = (solid.centre - origin).astype(rays.dtype), np.linalg.norm(solid.size) / 2
            # rays that meet the solid's bounding sphere
            near = np.nonzero((to_centre @ rays) ** 2 >= squares * (to_centre @ to_centre - reach**2))[0]
            distance = solid.distance(origin, rays[:, near])
            closer = distance < nearest[near]
            nearest[near[closer]], hit[near[closer]] = distance[closer], index
        return nearest, hit


def make_scene(seed: int, frame: int) -> Scene:
    """A layout that depends on nothing but its arguments: every class at least once, and buildings along the road."""
    random = np.random.default_rng([seed, frame])
    road = float(random.uniform(-0.35, 0.35))
    solids: List[Solid] = []
    spans: List[Tuple[float, float, float, float]] = []  # bearing, half its width, distance, radius
    for name in sorted([*CLASSES, *_EXTRAS], key=lambda name: -CLASSES[name][0]):
        length, width, height, near, far, colour = CLASSES[name]
        radius = float(np.hypot(length, width)) / 2
        for _ in range(300):  # look for a place that hides nobody; settle for one that touches nobody
            bearing, distance = random.uniform(-np.pi, np.pi), random.uniform(near, far)
            half = np.arcsin(min(1.0, radius / distance))
            if all(abs((bearing - b + np.pi) % (2 * np.pi) - np.pi) > half + h for b, h, _, _ in spans):
                break
        spans.append((bearing, half, distance, radius))
        size = np.array([length, width, height]) * random.uniform(0.95, 1.05, 3)
        centre = np.array([distance * np.cos(bearing), distance * np.sin(bearing), size[2] / 2])
        shade = tuple(int(value) for value in np.clip(np.array(colour) + random.integers(-15, 16, 3), 0, 255))
        solids.append(Solid(centre, size, road + float(random.normal(0, 0.3)), shade, name))
    for side in (-1, 1):
        for along in (-36, 0, 36):
            size = np.array([random.uniform(18, 30), 4.0, random.uniform(5, 12)])
            across = side * random.uniform(38, 44)
            turn = np.array([[np.cos(road), -np.sin(road)], [np.sin(road), np.cos(road)]])
            centre = np.append(turn @ np.array([along, across]), size[2] / 2)
            grey = int(random.integers(90, 170))
            solids.append(Solid(centre, size, road, (grey, grey - 10, grey - 25)))
    return Scene(tuple(solids), road)


def _ground_colour(scene: Scene, points: np.ndarray) -> np.ndarray:
    """Points (3, M) -> RGB (3, M): asphalt with lane marks, tiles beside it."""
    cos, sin = np.cos(scene.road), np.sin(scene.road)
    along, across = points[0] * cos + points[1] * sin, np.abs(points[1] * cos - points[0] * sin)
    tiles = 118 + 12 * ((np.floor(along / 2) + np.floor(across / 2)) % 2)
    grey = np.where(across < 7.5, 82, tiles)
    marks = ((np.abs(across - 1.8) < 0.1) & (along % 9 < 4)) | (np.abs(across - 5.4) < 0.1)
    return np.stack([np.where(marks, 225, grey + warmth) for warmth in (4, 0, -6)])


def _solid_colour(solid: Solid, points: np.ndarray) -> np.ndarray:
    """Points (3, M) on the surface -> RGB (3, M): shaded faces, dark bands of windows."""
    metres = solid.axes() @ (points - solid.centre[:, None])
    local = metres / (solid.size[:, None] / 2)
    face = np.abs(local).argmax(0)
    light = np.choose(face, [np.where(local[0] > 0, 0.95, 0.7), np.where(local[1] > 0, 0.85, 0.6), 1.1])
    windows = np.zeros(len(face), dtype=bool)
    if not solid.name:
        windows = (metres[2] % 3 > 1.5) & (metres[0] % 4 > 2)
    elif solid.size[0] > 4:
        windows = (local[2] > 0.15) & (local[2] < 0.8)
    return np.array(solid.colour)[:, None] * np.where(windows & (face < 2), light * 0.5, light)


def colours(scene: Scene, hit: np.ndarray, points: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """RGB (3, M), 0 to 255, of rays (3, M) that met ``hit`` (M,) at ``points`` (3, M), as :meth:`Scene.cast` tells."""
    blue = rays[2] / np.sqrt(np.einsum('dm,dm->m', rays, rays))
    colour = np.stack([165 - 90 * blue, 195 - 70 * blue, 225 - 30 * blue])
    for index in np.unique(hit[hit != SKY]):
        shown = np.nonzero(hit == index)[0]
        if index == GROUND:
            colour[:, shown] = _ground_colour(scene, points[:, shown])
        else:
            colour[:, shown] = _solid_colour(scene.solids[index], points[:, shown])
    return np.clip(colour, 0, 255)

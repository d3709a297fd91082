"""Occupancy labels in the form of Occ3D-nuScenes (arXiv 2304.14365): what each voxel around the ego vehicle holds.

Shape legend: X x Y x Z = 200 x 200 x 16 voxels of 0.4 m in the ego frame of a keyframe (x ahead, y left, z up),
-40 to 40 m, -40 to 40 m and -1 to 5.4 m. Lengths are metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence, Tuple

import numpy as np

from .cast import Frozen, freeze, ground_labels, rotate
from .labels import FREE, OCCUPANCY
from .layout import Scene, turn_z
from .rig import Rig
from .sensors import Scan, View
from .solids import BOX, CYLINDER, ELLIPSOID, WHEEL, Solid

LOWER = np.array([-40.0, -40.0, -1.0])
VOXEL = 0.4
SHAPE = (200, 200, 16)
UPPER = LOWER + VOXEL * np.array(SHAPE)
_DEPTH_SLACK = 0.36  # metres behind a surface at which the middle of its voxel may lie: half a voxel's diagonal
_SUBSAMPLES = np.array([-0.25, 0.25]) * VOXEL  # along each axis, from a voxel's middle
_OCCUPANCY = np.array(OCCUPANCY, dtype=np.uint8)


@dataclass(frozen=True)
class Occupancy:
    """semantics, mask_lidar, mask_camera: (X, Y, Z) uint8; 17 is free; a mask is 1 where a sensor saw the voxel."""

    semantics: np.ndarray
    mask_lidar: np.ndarray
    mask_camera: np.ndarray


def voxel_centres() -> np.ndarray:
    """(3, X, Y, Z), ego frame."""
    axes = [LOWER[axis] + VOXEL * (np.arange(SHAPE[axis]) + 0.5) for axis in range(3)]
    return np.stack(np.meshgrid(*axes, indexing='ij'))


def _contains(solid: Solid, local: np.ndarray) -> np.ndarray:
    """Whether points (3, ...) of the solid's own frame, centred on it, lie inside."""
    unit = local / np.asarray(solid.half).reshape(3, *(1,) * (local.ndim - 1))
    if solid.kind == ELLIPSOID:
        return (unit * unit).sum(axis=0) <= 1
    if solid.kind == BOX:
        return (np.abs(unit) <= 1).all(axis=0)
    x, y, z = unit[[0, 2, 1]] if solid.kind == WHEEL else unit
    return (x * x + y * y <= 1) & (np.abs(z) <= 1)


def semantics(scene: Scene, frozen: Frozen, ego2world: np.ndarray) -> np.ndarray:
    """(X, Y, Z) uint8: the class of each voxel, wherever sensors look.

    A voxel belongs to a solid if any of 2 x 2 x 2 points in it lies inside (thin solids count as 0.2 m thick); road users
    come before scenery, both before the ground, whose surface fills one layer.
    """
    labels = np.full(SHAPE, FREE, dtype=np.uint8)
    _fill_ground(scene, ego2world, labels)
    world2ego = np.linalg.inv(ego2world)
    centres, yaws, _ = frozen.placed()
    centres = centres @ world2ego[:3, :3].T + world2ego[:3, 3]
    users = np.array([bool(body.detection) for body in frozen.bodies])[frozen.owner]
    reach = np.array([np.linalg.norm(solid.half) for solid in frozen.solids])
    near = ((centres + reach[:, None] > LOWER) & (centres - reach[:, None] < UPPER)).all(axis=1)
    for index in sorted(np.nonzero(near)[0], key=lambda k: (bool(users[k]), k)):
        solid = frozen.solids[index]
        rotation = turn_z(-yaws[index]) @ ego2world[:3, :3]  # ego directions in the solid's frame
        _fill_solid(solid, centres[index], rotation, _OCCUPANCY[frozen.label[index]], labels)
    return labels


def _fill_ground(scene: Scene, ego2world: np.ndarray, labels: np.ndarray) -> None:
    """The voxel of each column that the ground's surface passes through at the column's middle."""
    x, y = (LOWER[axis] + VOXEL * (np.arange(SHAPE[axis]) + 0.5) for axis in range(2))
    x, y = (values.ravel() for values in np.meshgrid(x, y, indexing='ij'))
    z = np.zeros_like(x)
    for _ in range(3):  # the column stands on the ego frame's axes, which lean a little
        world = rotate(ego2world[:3, :3], np.stack([x, y, z])) + ego2world[:3, 3:]
        _, d = scene.road.locate(world[0], world[1])
        z = z + scene.road.height(d) - world[2]
    world = rotate(ego2world[:3, :3], np.stack([x, y, z])) + ego2world[:3, 3:]
    layer = np.floor((z - LOWER[2]) / VOXEL).astype(int)
    column, inside = np.arange(x.size), (layer >= 0) & (layer < SHAPE[2])
    flat = labels.reshape(-1, SHAPE[2])
    flat[column[inside], layer[inside]] = _OCCUPANCY[ground_labels(scene, world)][inside]


def _fill_solid(solid: Solid, centre: np.ndarray, rotation: np.ndarray, label: int, labels: np.ndarray) -> None:
    half = np.abs(rotation.T) @ np.asarray(solid.half)  # of the box around it along the ego frame's axes
    first = np.maximum(np.floor((centre - half - LOWER) / VOXEL).astype(int), 0)
    last = np.minimum(np.ceil((centre + half - LOWER) / VOXEL).astype(int), SHAPE)
    if (first >= last).any():
        return
    axes = [LOWER[a] + VOXEL * (np.arange(first[a], last[a]) + 0.5) - centre[a] for a in range(3)]
    points = [(axis[:, None] + _SUBSAMPLES).ravel() for axis in axes]
    grid = np.stack(np.meshgrid(*points, indexing='ij'))
    local = rotate(rotation, grid)
    # what is thinner than the distance of the points would slip between them; what is round even if a little thicker
    least = {CYLINDER: (2, 2, 1), WHEEL: (2, 1, 2), ELLIPSOID: (3, 3, 3)}.get(solid.kind, (1, 1, 1))
    thick = np.maximum(np.asarray(solid.half), 0.25 * VOXEL * np.sqrt(least))
    inside = _contains(Solid(solid.kind, solid.centre, tuple(thick), solid.colour), local)
    counts = [int(last[a] - first[a]) for a in range(3)]
    occupied = inside.reshape(counts[0], 2, counts[1], 2, counts[2], 2).any(axis=(1, 3, 5))
    window = tuple(slice(first[a], last[a]) for a in range(3))
    labels[window][occupied] = label


class Observer:
    """Which voxels the sensors of a rig see; what depends on the rig alone is computed once."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.centres = voxel_centres().reshape(3, -1)
        lidar2ego = rig.lidar.lidar2ego
        local = rotate(lidar2ego[:3, :3].T, self.centres - lidar2ego[:3, 3:])
        self.distance = np.sqrt((local * local).sum(axis=0))
        self.ring, self.column, self.between = self._beams(local)

    def _beams(self, local: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The beam nearest to each voxel's middle, and whether even that one passes it by."""
        lidar = self.rig.lidar
        elevation = np.arctan2(local[2], np.hypot(local[0], local[1]))
        middles = (lidar.elevations[1:] + lidar.elevations[:-1]) / 2
        ring = np.searchsorted(middles, elevation)
        step = 2 * np.pi / lidar.columns
        column = np.round(np.arctan2(local[1], local[0]) / step).astype(int) % lidar.columns
        off = np.abs(lidar.elevations[ring] - elevation) * self.distance
        return ring, column, off > 0.5 * VOXEL

    def seen_by_lidar(self, scan: Scan) -> np.ndarray:
        """(X, Y, Z) uint8: 1 where a beam of the keyframe's scan passes through a voxel or ends in it."""
        ranges = scan.ranges[self.ring, self.column]
        passed = np.isfinite(ranges) & (self.distance <= ranges + _DEPTH_SLACK) & ~self.between
        seen = passed.reshape(SHAPE).astype(np.uint8)
        lidar2ego = self.rig.lidar.lidar2ego
        points = rotate(lidar2ego[:3, :3], scan.points[:, :3].T.astype(np.float64)) + lidar2ego[:3, 3:]
        voxels = np.floor((points.T - LOWER) / VOXEL).astype(int)
        voxels = voxels[((voxels >= 0) & (voxels < SHAPE)).all(axis=1)]
        seen[tuple(voxels.T)] = 1
        return seen

    def seen_by_cameras(self, views: Sequence[View], ego2world: np.ndarray) -> np.ndarray:
        """(X, Y, Z) uint8: 1 where a voxel's middle projects into an image and is not behind what the image shows."""
        seen = np.zeros(self.centres.shape[1], dtype=bool)
        for camera, view in zip(self.rig.cameras, views):
            ego2cam = np.linalg.inv(view.cam2world) @ ego2world
            local = rotate(ego2cam[:3, :3], self.centres) + ego2cam[:3, 3:]
            ahead = np.nonzero(local[2] > 0.1)[0]
            u = camera.intrinsics[0, 0] * local[0, ahead] / local[2, ahead] + camera.intrinsics[0, 2]
            v = camera.intrinsics[1, 1] * local[1, ahead] / local[2, ahead] + camera.intrinsics[1, 2]
            height, width = camera.size
            inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
            shown = view.hits.t[v[inside].astype(int), u[inside].astype(int)]
            index = ahead[inside]
            seen[index] |= local[2, index] <= shown + _DEPTH_SLACK
        return seen.reshape(SHAPE).astype(np.uint8)

    def observe(self, scene: Scene, time: float, views: Sequence[View], scan: Scan) -> Occupancy:
        """The labels of a keyframe at ``time`` (seconds), of the views and the scan that it records."""
        ego2world = scene.ego2world(time)
        labels = semantics(scene, freeze(scene, time), ego2world)
        return Occupancy(labels, self.seen_by_lidar(scan), self.seen_by_cameras(views, ego2world))

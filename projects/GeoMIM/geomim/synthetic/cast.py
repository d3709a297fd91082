"""Ray casting, vectorised over rays: which solid each ray of a sensor meets first, and where.

Shape legend: R x C rows and columns of a sensor's rays, O bodies, P solids of all bodies. Positions are relative to the
sensor's origin and in float32, whatever the world's size. Lengths are metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from .labels import LABELS
from .layout import Body, Scene, turn_z
from .rig import Camera, Lidar
from .road import KERB_HEIGHT
from .solids import BOX, ELLIPSOID, WHEEL, Solid

NOTHING, GROUND = -2, -1
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
_NEAR = 0.05  # metres before the sensor that no ray sees
_FAR = np.float32(np.inf)
Window = Tuple[slice, slice]


@dataclass(frozen=True)
class Frozen:
    """The bodies at one moment.

    Args:
        position (O, 3), yaw (O,), size (O, 3): their boxes stand on ``position``.
        first (O + 1,): where each body's solids begin among all P.
        solids: P of them; owner (P,) their bodies; label (P,) LiDAR segmentation labels.
    """

    bodies: Tuple[Body, ...]
    position: np.ndarray
    yaw: np.ndarray
    size: np.ndarray
    first: np.ndarray
    solids: Tuple[Solid, ...]
    owner: np.ndarray
    label: np.ndarray

    def corners(self) -> np.ndarray:
        """(O, 8, 3), world frame."""
        half = self.size[:, None] / 2
        local = _CORNERS[None] * half + np.array([0, 0, 1.0]) * half
        cos, sin = np.cos(self.yaw)[:, None], np.sin(self.yaw)[:, None]
        x, y = local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos
        return np.stack([x, y, local[..., 2]], axis=-1) + self.position[:, None]

    def placed(self) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World centre (P, 3), yaw (P,) and half extents (P, 3) of every solid; it leans with its body."""
        centre = np.array([solid.centre for solid in self.solids])
        yaw = self.yaw[self.owner]
        cos, sin = np.cos(yaw), np.sin(yaw)
        x, y = centre[:, 0] * cos - centre[:, 1] * sin, centre[:, 0] * sin + centre[:, 1] * cos
        world = self.position[self.owner] + np.stack([x, y, centre[:, 2]], axis=1)
        return world, yaw, np.array([solid.half for solid in self.solids])


def freeze(scene: Scene, time: float) -> Frozen:
    """All bodies of a scene at a time, seconds."""
    poses = [body.pose(scene.road, time) for body in scene.bodies]
    counts = [len(body.solids) for body in scene.bodies]
    owner = np.repeat(np.arange(len(counts)), counts)
    return Frozen(
        bodies=scene.bodies,
        position=np.array([position for position, _ in poses]),
        yaw=np.array([yaw for _, yaw in poses]),
        size=np.array([body.size for body in scene.bodies]),
        first=np.concatenate([[0], np.cumsum(counts)]),
        solids=tuple(solid for body in scene.bodies for solid in body.solids),
        owner=owner,
        label=np.array([LABELS[body.label] for body in scene.bodies], dtype=np.uint8)[owner],
    )


@dataclass(frozen=True)
class Beams:
    """A sensor's rays at one moment: origin (3,) in the world, sensor2world rotation (3, 3), rays (3, R, C) float32 in the
    world's directions, none longer than ``longest``."""

    origin: np.ndarray
    rotation: np.ndarray
    rays: np.ndarray
    longest: float

    def windows(self, corners: np.ndarray) -> Iterator[Tuple[int, List[Window]]]:
        """For each of the O boxes that some ray might meet: its index, and the rows and columns of those rays."""
        raise NotImplementedError


def rotate(rotation: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(3, 3) times (3, ...) in the vectors' precision, term by term: a matrix product's last bit may depend on threads."""
    m = rotation.astype(vectors.dtype)
    return np.stack([m[i, 0] * vectors[0] + m[i, 1] * vectors[1] + m[i, 2] * vectors[2] for i in range(3)])


@dataclass(frozen=True)
class CameraBeams(Beams):
    """A ray through the middle of every pixel, of length 1 along the optical axis: t is depth."""

    intrinsics: np.ndarray

    def windows(self, corners: np.ndarray) -> Iterator[Tuple[int, List[Window]]]:
        rows, columns = self.rays.shape[1:]
        local = (corners - self.origin) @ self.rotation
        depth = local[..., 2]
        # a box that reaches behind the camera has no outline in the image: every pixel might see it
        ahead, whole = (depth > _NEAR).any(1), (depth > 0.2).all(1)
        safe = np.where(depth > 0.2, depth, 1.0)
        u = local[..., 0] / safe * self.intrinsics[0, 0] + self.intrinsics[0, 2]
        v = local[..., 1] / safe * self.intrinsics[1, 1] + self.intrinsics[1, 2]
        # the rectangle around the projected corners, cut off at the image's borders below
        left, right = np.floor(u.min(1)).astype(int), np.ceil(u.max(1)).astype(int)
        top, bottom = np.floor(v.min(1)).astype(int), np.ceil(v.max(1)).astype(int)
        for index in np.nonzero(ahead)[0]:
            if not whole[index]:
                yield int(index), [(slice(0, rows), slice(0, columns))]
                continue
            row = slice(max(0, top[index]), min(rows, bottom[index]))
            column = slice(max(0, left[index]), min(columns, right[index]))
            if row.start < row.stop and column.start < column.stop:
                yield int(index), [(row, column)]


def camera_beams(camera: Camera, ego2world: np.ndarray) -> CameraBeams:
    """The rays of a camera of a vehicle at ``ego2world`` (4, 4)."""
    height, width = camera.size
    cam2world = ego2world @ camera.cam2ego
    inverse = np.linalg.inv(camera.intrinsics).astype(np.float32)
    u, v = np.meshgrid(np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32) + 0.5)
    pixels = rotate(inverse, np.stack([u, v, np.ones_like(u)]))
    rays = rotate(cam2world[:3, :3], pixels)
    longest = float(np.sqrt((pixels * pixels).sum(axis=0).max()))
    return CameraBeams(cam2world[:3, 3], cam2world[:3, :3], rays, longest, camera.intrinsics)


@dataclass(frozen=True)
class LidarBeams(Beams):
    """Unit rays, rows by ring and columns by azimuth (counter-clockwise from the LiDAR's x axis): t is range."""

    elevations: np.ndarray

    def windows(self, corners: np.ndarray) -> Iterator[Tuple[int, List[Window]]]:
        count = self.rays.shape[2]
        local = (corners - self.origin) @ self.rotation
        # rings: the lowest and highest elevation of a cylinder around the box, seen from its near or its far side
        middle = local.mean(axis=1)
        radius = np.linalg.norm(local[..., :2] - middle[:, None, :2], axis=2).max(1)
        apart = np.linalg.norm(middle[:, :2], axis=1)
        nearest, farthest = np.maximum(apart - radius, 0.1), apart + radius
        low, high = local[..., 2].min(1), local[..., 2].max(1)
        bottom = np.arctan2(low, np.where(low < 0, nearest, farthest))
        top = np.arctan2(high, np.where(high > 0, nearest, farthest))
        start, stop = np.searchsorted(self.elevations, bottom), np.searchsorted(self.elevations, top, side='right')
        # columns: the widest angle of a corner from the middle; all of them where the LiDAR is inside the cylinder
        bearing = np.arctan2(middle[:, 1], middle[:, 0])
        angles = np.arctan2(local[..., 1], local[..., 0]) - bearing[:, None]
        half = np.abs((angles + np.pi) % (2 * np.pi) - np.pi).max(1)
        half = np.where(apart > radius, half, np.pi)
        step = 2 * np.pi / count
        first, last = np.floor((bearing - half) / step).astype(int), np.ceil((bearing + half) / step).astype(int) + 1
        for index in np.nonzero(start < stop)[0]:
            rows = slice(int(start[index]), int(stop[index]))
            yield int(index), [(rows, columns) for columns in _wrap(int(first[index]), int(last[index]), count)]


def _wrap(first: int, last: int, count: int) -> List[slice]:
    """Columns first to last (exclusive) of a ring of ``count``, as slices."""
    if last - first >= count:
        return [slice(0, count)]
    first, last = first % count, (last - 1) % count + 1
    return [slice(first, last)] if first < last else [slice(first, count), slice(0, last)]


def lidar_beams(lidar: Lidar, ego2world: np.ndarray) -> LidarBeams:
    """The rays of a LiDAR of a vehicle at ``ego2world`` (4, 4), all at once: scans come without distortion by motion."""
    lidar2world = ego2world @ lidar.lidar2ego
    azimuth, elevation = np.meshgrid(np.arange(lidar.columns) * (2 * np.pi / lidar.columns), lidar.elevations)
    flat = np.cos(elevation)
    rays = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)]).astype(np.float32)
    return LidarBeams(lidar2world[:3, 3], lidar2world[:3, :3], rotate(lidar2world[:3, :3], rays), 1.0, lidar.elevations)


def meet_solids(
    kind: int, centres: np.ndarray, halves: np.ndarray, start: np.ndarray, rays: np.ndarray, inverse: np.ndarray
) -> np.ndarray:
    """Where rays enter each of K solids of one kind.

    Args:
        centres, halves: (K, 3) in the body frame.
        start: (3,) origin of the rays in the body frame.
        rays: (3, M) float32 directions in the body frame.
        inverse: 1 / rays, of a size that float32 holds.

    Returns:
        t (K, M) float32, infinite for rays that miss the solid or start inside it.
    """
    half = halves.astype(np.float32)
    begin = (start - centres).astype(np.float32)  # seen from each solid's own middle
    if kind == ELLIPSOID:
        enter, leave = _meet_round((0, 1, 2), half, begin, rays)
    elif kind == BOX:
        enter, leave = _meet_slabs((0, 1, 2), half, begin, inverse)
    else:
        # a cylinder is what lies both between its two ends and within its round wall
        axis, others = (1, (0, 2)) if kind == WHEEL else (2, (0, 1))
        enter, leave = _meet_slabs((axis,), half, begin, inverse)
        around = _meet_round(others, half, begin, rays)
        enter, leave = np.maximum(enter, around[0]), np.minimum(leave, around[1])
    return np.where((enter <= leave) & (enter > _NEAR), enter, _FAR)


def _meet_slabs(
    axes: Sequence[int], half: np.ndarray, start: np.ndarray, inverse: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave what lies between -half and half (K, 3) on all of the axes; (K, M) each."""
    enter: Any = None
    leave: Any = None
    for axis in axes:
        one = (-half[:, axis] - start[:, axis])[:, None] * inverse[axis]
        other = (half[:, axis] - start[:, axis])[:, None] * inverse[axis]
        low, high = np.minimum(one, other), np.maximum(one, other)
        enter = low if enter is None else np.maximum(enter, low)
        leave = high if leave is None else np.minimum(leave, high)
    return enter, leave


def _meet_round(
    axes: Sequence[int], half: np.ndarray, start: np.ndarray, rays: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave what is round on the given axes: roots of squares t^2 + 2 product t + outside."""
    squares, product, outside = np.float32(1e-12), np.float32(0), np.full((len(half), 1), -1, dtype=np.float32)
    for axis in axes:
        scale = 1 / half[:, axis, None]  # in units of the radii it is a circle or ball of radius 1
        begin, step = start[:, axis, None] * scale, rays[axis] * scale
        squares, product, outside = squares + step * step, product + begin * step, outside + begin * begin
    root = product * product - squares * outside
    miss = root < 0
    root = np.sqrt(np.maximum(root, 0))
    enter, leave = (-product - root) / squares, (-product + root) / squares
    # behind the origin: both roots are negative
    return np.where(miss | ((leave < 0) & (outside > 0)), _FAR, enter), np.where(miss, -_FAR, leave)


@dataclass(frozen=True)
class Hits:
    """What rays met.

    Args:
        t (R, C): distance along each ray, infinite for nothing.
        solid (R, C): index among all P, or GROUND, or NOTHING.
        alone (O,): rays that each body would receive if it stood alone.
    """

    t: np.ndarray
    solid: np.ndarray
    alone: np.ndarray

    def seen(self, owner: np.ndarray, count: int) -> np.ndarray:
        """(O,): rays that each of ``count`` bodies does receive."""
        return np.bincount(owner[self.solid[self.solid >= 0]], minlength=count)


def cast(scene: Scene, frozen: Frozen, beams: Beams, reach: float, count_alone: bool = False) -> Hits:
    """Cast all rays of a sensor.

    Args:
        reach: t beyond which nothing is met.
        count_alone: whether to count the rays that road users would receive without what hides them; else those stay 0.
    """
    t = scene.road.cast_ground(beams.origin, beams.rays)
    solid = np.where(np.isfinite(t), GROUND, NOTHING).astype(np.int32)
    t = np.where(t > reach, np.float32(reach), t)
    alone = np.zeros(len(frozen.bodies), dtype=np.int64)
    found = dict(beams.windows(frozen.corners()))
    apart = np.linalg.norm(frozen.position - beams.origin, axis=1)
    for body in sorted(found, key=lambda number: float(apart[number])):  # what is near hides what is far
        whole = count_alone and bool(frozen.bodies[body].detection)
        for window in found[body]:
            alone[body] += _cast_body(frozen, body, beams, window, t, solid, np.float32(reach) if whole else None)
    nothing = t >= reach
    t[nothing], solid[nothing] = np.inf, NOTHING
    return Hits(t, solid, alone)


def _cast_body(
    frozen: Frozen,
    body: int,
    beams: Beams,
    window: Window,
    t: np.ndarray,
    solid: np.ndarray,
    whole: Optional[np.float32],
) -> int:
    """Let one body receive the rays of a window, noted in ``t`` and ``solid``; returns how many meet it nearer than
    ``whole``, if that is given."""
    before, view = t[window].ravel(), beams.rays[(slice(None), *window)].reshape(3, -1)
    apart = np.linalg.norm(frozen.position[body] - beams.origin) - np.linalg.norm(frozen.size[body])
    limit = before if whole is None else np.full_like(before, whole)
    candidates = np.nonzero(limit > apart / beams.longest)[0]  # the others meet something nearer than any of it
    if not candidates.size:
        return 0
    # the box around the body, a millimetre larger, first: few rays of a window pass it and go on to the solids
    into_body = turn_z(-float(frozen.yaw[body]))
    start = into_body @ (beams.origin - frozen.position[body])
    rays = rotate(into_body, view[:, candidates])
    inverse = np.float32(1) / np.where(np.abs(rays) < 1e-7, np.float32(1e-7), rays)
    half = (frozen.size[body] / 2 + 1e-3).astype(np.float32)
    lifted = (start - [0, 0, frozen.size[body, 2] / 2]).astype(np.float32)
    enter, leave = (span[0] for span in _meet_slabs((0, 1, 2), half[None], lifted[None], inverse))
    inside = np.nonzero((enter <= leave) & (leave > _NEAR) & (enter < limit[candidates]))[0]
    if not inside.size:
        return 0
    candidates, rays, inverse = candidates[inside], rays[:, inside], inverse[:, inside]
    # of all its solids the nearest, numbered among those of all bodies
    groups = frozen.bodies[body].groups
    distances = np.concatenate([meet_solids(g.kind, g.centres, g.halves, start, rays, inverse) for g in groups])
    which = distances.argmin(axis=0)
    nearest = distances[which, np.arange(candidates.size)]
    which = np.concatenate([g.members for g in groups])[which] + frozen.first[body]
    # noted where nothing nearer has been met; what hides it does not matter for the rays that it receives alone
    shown = nearest < before[candidates]
    rows, columns = np.divmod(candidates[shown], t[window].shape[1])
    t[window][rows, columns] = nearest[shown]
    solid[window][rows, columns] = which[shown]
    return 0 if whole is None else int(np.count_nonzero(nearest < whole))


def ground_labels(scene: Scene, points: np.ndarray) -> np.ndarray:
    """LiDAR segmentation labels (M,) of ground points (3, M), world frame; a kerb's face belongs to the sidewalk."""
    apart = np.abs(scene.road.locate(points[0], points[1])[1])
    carriageway, walk, terrain = (LABELS[f'flat.{name}'] for name in ('driveable_surface', 'sidewalk', 'terrain'))
    low = (apart < scene.road.kerb) & (points[2] < KERB_HEIGHT / 10)
    return np.where(low, carriageway, np.where(apart < scene.road.sidewalk, walk, terrain)).astype(np.uint8)


def labels_of(scene: Scene, frozen: Frozen, solid: np.ndarray, points: np.ndarray) -> np.ndarray:
    """LiDAR segmentation labels (M,) of hits: solid (M,), world points (3, M); 0 where nothing was met."""
    labels = np.where(solid >= 0, frozen.label[np.maximum(solid, 0)], ground_labels(scene, points))
    return np.where(solid == NOTHING, 0, labels).astype(np.uint8)

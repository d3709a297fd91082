"""Ray casting, vectorised over rays: which solid each ray of a sensor meets first, and where.

Shape legend: R x C rows and columns of a sensor's rays, O bodies, P solids of all bodies. Positions are relative to the
sensor's origin and in float32, whatever the world's size. Lengths are metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from .labels import LABELS
from .layout import Body, Scene
from .rig import Camera, Lidar
from .road import KERB_HEIGHT
from .solids import BOX, ELLIPSOID, WHEEL, Solid, Stack

NOTHING, GROUND = -2, -1
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
_EDGES = np.array([[i, i | axis] for i in range(8) for axis in (1, 2, 4) if not i & axis])  # pairs of corners
_NEAR = 0.05  # metres before the sensor that no ray sees
_CUT = 0.04  # metres before a camera at which boxes are cut off; nearer than anything that it sees
_BATCH = 1 << 15  # pairs of a ray and a body at a time: few enough for a processor's cache, many for few calls
_FAR = np.float32(np.inf)
Window = Tuple[slice, slice]


@dataclass(frozen=True)
class Frozen:
    """The bodies at one moment.

    Args:
        position (O, 3), yaw (O,): of their boxes, which stand on ``position``.
        size, detected, first, solids, stack, owner, label: as in :class:`Inventory`.
    """

    bodies: Tuple[Body, ...]
    position: np.ndarray
    yaw: np.ndarray
    size: np.ndarray
    detected: np.ndarray
    first: np.ndarray
    solids: Tuple[Solid, ...]
    stack: Stack
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
        centre, yaw = self.stack.centre, self.yaw[self.owner]
        cos, sin = np.cos(yaw), np.sin(yaw)
        x, y = centre[:, 0] * cos - centre[:, 1] * sin, centre[:, 0] * sin + centre[:, 1] * cos
        world = self.position[self.owner] + np.stack([x, y, centre[:, 2]], axis=1)
        return world, yaw, self.stack.half


def freeze(scene: Scene, time: float) -> Frozen:
    """All bodies of a scene at a time, seconds."""
    parts = scene.inventory
    position, yaw = parts.position.copy(), parts.yaw.copy()
    for number in parts.moving:
        position[number], yaw[number] = scene.bodies[number].pose(scene.road, time)
    return Frozen(
        scene.bodies, position, yaw, parts.size, parts.detected, parts.first, parts.solids, parts.stack, parts.owner, parts.label
    )  # fmt: skip


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
        # of a box that reaches behind the camera, what lies before it: corners, and where edges pierce a plane there
        cut = np.nonzero((depth > _NEAR).any(1) & (depth <= 0.2).any(1))[0]
        start, end = local[cut][:, _EDGES[:, 0]], local[cut][:, _EDGES[:, 1]]
        before, after = start[..., 2] - _CUT, end[..., 2] - _CUT
        pierced = before * after < 0
        share = np.where(pierced, before, 0) / np.where(pierced, before - after, 1)
        local = np.concatenate([local, np.zeros((len(local), len(_EDGES), 3))], axis=1)
        local[cut, len(_CORNERS) :] = start + share[..., None] * (end - start)
        seen = np.zeros(local.shape[:2], dtype=bool)
        seen[:, : len(_CORNERS)] = depth > _CUT
        seen[cut, len(_CORNERS) :] = pierced
        safe = np.where(seen, local[..., 2], 1.0)
        # the rectangle around what is projected, a pixel wider, cut off at the image's borders
        bounds = []
        for axis, size in ((1, rows), (0, columns)):
            at = local[..., axis] / safe * self.intrinsics[axis, axis] + self.intrinsics[axis, 2]
            first, last = np.where(seen, at, np.inf).min(1) - 1, np.where(seen, at, -np.inf).max(1) + 1
            bounds += [np.floor(np.clip(first, 0, size)), np.ceil(np.clip(last, 0, size))]
        top, bottom, left, right = (bound.astype(int).tolist() for bound in bounds)
        for index in np.nonzero((depth > _NEAR).any(1))[0].tolist():
            if top[index] < bottom[index] and left[index] < right[index]:
                yield index, [(slice(top[index], bottom[index]), slice(left[index], right[index]))]


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
    rotation = lidar2world[:3, :3]
    return LidarBeams(lidar2world[:3, 3], rotation, rotate(rotation, lidar.directions), 1.0, lidar.elevations)


def meet_solids(
    kind: int,
    half: np.ndarray,
    start: np.ndarray,
    rays: np.ndarray,
    inverse: np.ndarray,
    solid: np.ndarray,
    ray: np.ndarray,
) -> np.ndarray:
    """Where rays enter solids of one kind, for M pairs of a solid and a ray in its body's frame.

    Args:
        half, start: (3, K) float32, of each solid: half extents, and the rays' origin seen from its middle.
        rays: (3, N) float32 directions.
        inverse: 1 / rays, of a size that float32 holds.
        solid, ray: (M,) the pairs.

    Returns:
        t (M,) float32, infinite for rays that miss the solid or start inside it.
    """
    if kind == ELLIPSOID:
        enter, leave = _meet_round((0, 1, 2), half, start, rays, solid, ray)
    elif kind == BOX:
        enter, leave = _meet_slabs((0, 1, 2), half, start, inverse, solid, ray)
    else:
        # a cylinder is what lies both between its two ends and within its round wall
        axis, others = (1, (0, 2)) if kind == WHEEL else (2, (0, 1))
        enter, leave = _meet_slabs((axis,), half, start, inverse, solid, ray)
        around = _meet_round(others, half, start, rays, solid, ray)
        enter, leave = np.maximum(enter, around[0]), np.minimum(leave, around[1])
    return np.where((enter <= leave) & (enter > _NEAR), enter, _FAR)


def _meet_slabs(
    axes: Sequence[int], half: np.ndarray, start: np.ndarray, inverse: np.ndarray, solid: np.ndarray, ray: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave what lies between -half and half on all of the axes; (M,) each."""
    enter: Any = None
    leave: Any = None
    lower, upper = -half - start, half - start
    for axis in axes:
        along = inverse[axis][ray]
        one, other = lower[axis][solid] * along, upper[axis][solid] * along
        low, high = np.minimum(one, other), np.maximum(one, other)
        enter = low if enter is None else np.maximum(enter, low)
        leave = high if leave is None else np.minimum(leave, high)
    return enter, leave


def _meet_round(
    axes: Sequence[int], half: np.ndarray, start: np.ndarray, rays: np.ndarray, solid: np.ndarray, ray: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave what is round on the given axes: roots of squares t^2 + 2 product t + outside."""
    squares, product, outside = np.float32(1e-12), np.float32(0), np.full(half.shape[1], -1, dtype=np.float32)
    for axis in axes:
        scale = 1 / half[axis]  # in units of the radii it is a circle or ball of radius 1
        begin, step = start[axis] * scale, rays[axis][ray] * scale[solid]
        squares, product, outside = squares + step * step, product + begin[solid] * step, outside + begin * begin
    outside = outside[solid]
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
    hits = Hits(t, solid, np.zeros(len(frozen.bodies), dtype=np.int64))
    found = dict(beams.windows(frozen.corners()))
    apart = np.linalg.norm(frozen.position - beams.origin, axis=1)
    whole = np.float32(reach) if count_alone else None
    batch: List[int] = []
    pairs = 0
    for body in sorted(found, key=lambda number: float(apart[number])):  # what is near hides what is far
        batch.append(body)
        pairs += sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in found[body])
        if pairs > _BATCH:
            _cast_bodies(frozen, np.array(batch), found, beams, hits, whole)
            batch, pairs = [], 0
    if batch:
        _cast_bodies(frozen, np.array(batch), found, beams, hits, whole)
    nothing = t >= reach
    t[nothing], solid[nothing] = np.inf, NOTHING
    return hits


def _runs(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers first, first + 1, ... of each run, ``counts`` of them, one run behind the other."""
    return np.arange(int(counts.sum())) + np.repeat(first - (np.cumsum(counts) - counts), counts)


def _rays_of(windows: Sequence[Window], columns: int) -> Tuple[np.ndarray, np.ndarray]:
    """Of each of W windows the number of its rays (W,), and all their numbers, one window behind the other."""
    top, bottom, left, right = np.array([(r.start, r.stop, c.start, c.stop) for r, c in windows]).T
    heights, widths = bottom - top, right - left
    starts = _runs(top, heights) * columns + np.repeat(left, heights)
    return heights * widths, _runs(starts, np.repeat(widths, heights))


def _cast_bodies(
    frozen: Frozen,
    bodies: np.ndarray,
    found: Mapping[int, Sequence[Window]],
    beams: Beams,
    hits: Hits,
    whole: Optional[np.float32],
) -> None:
    """Let bodies, the nearest first, receive the rays of their windows, noted in ``hits``.

    Args:
        found: the windows of each body.
        whole: t up to which to count the rays that road users would receive without what hides them; None counts none.
    """
    t, solid = hits.t.reshape(-1), hits.solid.reshape(-1)
    position, size, yaw = frozen.position[bodies], frozen.size[bodies], frozen.yaw[bodies]
    counts, ray = _rays_of([window for body in bodies for window in found[body]], hits.t.shape[1])
    # pairs of a body, by its place among these, and a ray
    place = np.repeat(np.repeat(np.arange(len(bodies)), [len(found[body]) for body in bodies]), counts)
    limit = t[ray]
    if whole is not None:
        limit = np.where(frozen.detected[bodies][place], whole, limit)
    apart = np.linalg.norm(position - beams.origin, axis=1) - np.linalg.norm(size, axis=1)
    open_ = limit > (apart / beams.longest).astype(np.float32)[place]  # the others meet something nearer than any of it
    place, ray, limit = place[open_], ray[open_], limit[open_]
    cos, sin = np.cos(-yaw), np.sin(-yaw)
    x, y, z = (axis[ray] for axis in beams.rays.reshape(3, -1))
    along, across = cos.astype(np.float32)[place], sin.astype(np.float32)[place]
    rays = np.stack([along * x - across * y, across * x + along * y, z])
    inverse = np.float32(1) / np.where(np.abs(rays) < 1e-7, np.float32(1e-7), rays)
    # the box around a body, a millimetre larger, first: few rays of a window pass it and go on to the solids
    into_body = np.zeros((len(bodies), 3, 3))
    into_body[:, 0, 0], into_body[:, 0, 1], into_body[:, 1, 0], into_body[:, 1, 1] = cos, -sin, sin, cos
    into_body[:, 2, 2] = 1
    start = np.array([turn @ offset for turn, offset in zip(into_body, beams.origin - position)])
    half = (size / 2 + 1e-3).astype(np.float32).T
    lifted = (start - size * [0, 0, 0.5]).astype(np.float32).T
    enter, leave = _meet_slabs((0, 1, 2), half, lifted, inverse, place, np.arange(place.size))
    inside = np.nonzero((enter <= leave) & (leave > _NEAR) & (enter < limit))[0]
    place, ray, rays, inverse = place[inside], ray[inside], rays[:, inside], inverse[:, inside]
    nearest, which = _meet_bodies(frozen, bodies, start, place, rays, inverse)
    if whole is not None:
        alone = np.bincount(place[nearest < whole], minlength=len(bodies))
        hits.alone[bodies] = np.where(frozen.detected[bodies], alone, 0)
    # what is nearest to its ray is noted; backwards, so that of several bodies the first stays
    shown = np.nonzero(nearest < t[ray])[0]
    while shown.size:
        back = shown[::-1]
        t[ray[back]], solid[ray[back]] = nearest[back], which[back]
        shown = shown[nearest[shown] < t[ray[shown]]]


def _meet_bodies(
    frozen: Frozen, bodies: np.ndarray, start: np.ndarray, place: np.ndarray, rays: np.ndarray, inverse: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """For each pair of a body and a ray the nearest of the body's solids.

    Args:
        start: (B, 3) origin of the rays in the frames of the B bodies.
        place: (N,) each pair's body among the B, ascending.
        rays, inverse: (3, N) as :func:`meet_solids`.

    Returns:
        t (N,) float32, infinite for none, and the solid's number among all P.
    """
    counts = frozen.first[bodies + 1] - frozen.first[bodies]
    members, owner = _runs(frozen.first[bodies], counts), np.repeat(np.arange(len(bodies)), counts)
    halves = frozen.stack.half[members].astype(np.float32).T
    starts = (start[owner] - frozen.stack.centre[members]).astype(np.float32).T
    bounds = np.searchsorted(place, np.arange(len(bodies) + 1))
    nearest, which = np.full(place.size, _FAR), np.zeros(place.size, dtype=np.int64)
    kinds = frozen.stack.kind[members]
    for kind in np.unique(kinds):
        of_kind = np.nonzero(kinds == kind)[0]
        rank = np.arange(of_kind.size) - np.searchsorted(owner[of_kind], owner[of_kind])
        for turn in range(int(rank.max()) + 1):  # at most one solid of each body at a time
            solids = of_kind[rank == turn]
            first, last = bounds[owner[solids]], bounds[owner[solids] + 1]
            pair, solid = _runs(first, last - first), np.repeat(solids, last - first)
            distance = meet_solids(int(kind), halves, starts, rays, inverse, solid, pair)
            nearer = distance < nearest[pair]
            nearest[pair[nearer]], which[pair[nearer]] = distance[nearer], members[solid[nearer]]
    return nearest, which


def ground_labels(scene: Scene, points: np.ndarray) -> np.ndarray:
    """LiDAR segmentation labels (M,) of ground points (3, M), world frame; a kerb's face belongs to the sidewalk."""
    apart = np.abs(scene.road.lateral(points[0], points[1]))
    carriageway, walk, terrain = (LABELS[f'flat.{name}'] for name in ('driveable_surface', 'sidewalk', 'terrain'))
    low = (apart < scene.road.kerb) & (points[2] < KERB_HEIGHT / 10)
    return np.where(low, carriageway, np.where(apart < scene.road.sidewalk, walk, terrain)).astype(np.uint8)


def labels_of(scene: Scene, frozen: Frozen, solid: np.ndarray, points: np.ndarray) -> np.ndarray:
    """LiDAR segmentation labels (M,) of hits: solid (M,), world points (3, M); 0 where nothing was met."""
    labels = np.where(solid >= 0, frozen.label[np.maximum(solid, 0)], np.uint8(0))
    ground = np.nonzero(solid == GROUND)[0]
    labels[ground] = ground_labels(scene, points[:, ground])
    return labels

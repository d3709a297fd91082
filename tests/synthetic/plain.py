"""Slow, plain twins of what the world computes fast: float64, one solid at a time, by other formulas.

Shape legend: M rays or points, P solids. Lengths are metres. A solid is given by its kind and half extents (3,), in its
own frame, centred on it.
"""

from __future__ import annotations

from typing import Any, Iterator, Sequence, Tuple

import numpy as np

BOX, CYLINDER, ELLIPSOID, WHEEL = range(4)
NEAR = 0.05  # metres before a sensor that no ray sees


def into(yaw: float, vectors: np.ndarray) -> np.ndarray:
    """World directions (M, 3) in a frame that is turned by yaw about z."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    x, y, z = vectors.T
    return np.stack([cos * x + sin * y, -sin * x + cos * y, z], axis=1)


def enter(kind: int, half: Sequence[float], start: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """t (M,) where rays (M, 3) from ``start`` (3,) or (M, 3) come in through a solid's surface; infinite if they do not.

    Every face or curved surface is met on its own; only crossings against the outward normal count.
    """
    half = np.asarray(half, dtype=np.float64)
    start = np.broadcast_to(np.asarray(start, dtype=np.float64), rays.shape)
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        if kind == BOX:
            crossings = [_face(axis, side, half, start, rays, round_=()) for axis in range(3) for side in (-1, 1)]
        elif kind == ELLIPSOID:
            crossings = [_curved((0, 1, 2), half, start, rays)]
        else:
            axis = 1 if kind == WHEEL else 2
            others = tuple(other for other in range(3) if other != axis)
            around = _curved(others, half, start, rays)
            at = start[:, axis] + np.where(np.isfinite(around), around, 0) * rays[:, axis]
            crossings = [np.where(np.abs(at) <= half[axis], around, np.inf)]
            crossings += [_face(axis, side, half, start, rays, round_=others) for side in (-1, 1)]
    return np.min(crossings, axis=0)


def _face(
    axis: int, side: int, half: np.ndarray, start: np.ndarray, rays: np.ndarray, round_: Tuple[int, ...]
) -> np.ndarray:
    t = (side * half[axis] - start[:, axis]) / rays[:, axis]
    at = (start + np.where(np.isfinite(t), t, 0)[:, None] * rays) / half
    others = [other for other in range(3) if other != axis]
    if round_:
        inside = (at[:, others] ** 2).sum(axis=1) <= 1
    else:
        inside = (np.abs(at[:, others]) <= 1).all(axis=1)
    return np.where(inside & (side * rays[:, axis] < 0) & (t > NEAR), t, np.inf)


def _curved(axes: Tuple[int, ...], half: np.ndarray, start: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """By the point of the ray nearest to the middle, in units of the radii."""
    begin, step = start[:, axes] / half[list(axes)], rays[:, axes] / half[list(axes)]
    length = np.sqrt((step**2).sum(axis=1))
    unit = step / length[:, None]
    along = -(begin * unit).sum(axis=1)
    apart = ((begin + along[:, None] * unit) ** 2).sum(axis=1)
    t = (along - np.sqrt(np.where(apart <= 1, 1 - apart, np.nan))) / length
    return np.where((apart <= 1) & (t > NEAR), t, np.inf)


def placed(frozen: Any) -> Iterator[Tuple[int, int, np.ndarray, float]]:
    """Of every solid of frozen bodies: its index, its body's, its centre in the world, its yaw."""
    index = 0
    for number, body in enumerate(frozen.bodies):
        yaw = float(frozen.yaw[number])
        for solid in body.solids:
            x, y, z = solid.centre
            offset = np.array([np.cos(yaw) * x - np.sin(yaw) * y, np.sin(yaw) * x + np.cos(yaw) * y, z])
            yield index, number, frozen.position[number] + offset, yaw
            index += 1


def inside(kind: int, half: Sequence[float], points: np.ndarray) -> np.ndarray:
    """Whether points (M, 3) of a solid's own frame lie in it."""
    x, y, z = np.abs(points / np.asarray(half)).T
    if kind == ELLIPSOID:
        return np.hypot(np.hypot(x, y), z) <= 1
    if kind == CYLINDER:
        return (np.hypot(x, y) <= 1) & (z <= 1)
    if kind == WHEEL:
        return (np.hypot(x, z) <= 1) & (y <= 1)
    return np.maximum(np.maximum(x, y), z) <= 1


def distance(kind: int, half: Sequence[float], points: np.ndarray) -> np.ndarray:
    """Signed distance (M,) of points (M, 3) of a solid's own frame from its surface; of an ellipsoid to first order."""
    half = np.asarray(half, dtype=np.float64)
    if kind == ELLIPSOID:
        level, slope = (np.linalg.norm(points / half**power, axis=1) for power in (1, 2))
        return level * (level - 1) / np.maximum(slope, 1e-9)
    if kind == BOX:
        over = np.abs(points) - half
    else:
        axis = 1 if kind == WHEEL else 2
        others = [other for other in range(3) if other != axis]
        radial = np.linalg.norm(points[:, others], axis=1) - half[others[0]]
        over = np.stack([radial, np.abs(points[:, axis]) - half[axis]], axis=1)
    return np.linalg.norm(np.maximum(over, 0), axis=1) + np.minimum(over.max(axis=1), 0)


def lateral(road: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Metres to the left of a road's centre line, from the middle of its circle; no circle is wider than 100 km."""
    radius = np.copysign(1 / max(abs(road.curvature), 1e-5), road.curvature)
    return radius - np.sign(radius) * np.hypot(x, np.asarray(y, dtype=np.float64) - radius)


def rectangle_gap(first: Tuple[Any, float, Any], second: Tuple[Any, float, Any]) -> float:
    """Metres between two rectangles (centre (2,), yaw, half extents (2,)) along the axis that parts them best; negative
    where they overlap (separating axes)."""
    corners = []
    for centre, yaw, half in (first, second):
        axes = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
        corners.append(np.asarray(centre)[:2] + (signs * np.asarray(half)[:2]) @ axes)
    gaps = []
    for yaw in (first[1], second[1]):
        for normal in ((np.cos(yaw), np.sin(yaw)), (-np.sin(yaw), np.cos(yaw))):
            a, b = corners[0] @ normal, corners[1] @ normal
            gaps.append(max(a.min() - b.max(), b.min() - a.max()))
    return float(max(gaps))

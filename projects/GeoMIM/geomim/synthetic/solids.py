"""What the world is built of: solids grouped into bodies, each a road user, a building, a tree.

Body frame: x along the body's length (ahead), y to the left, z up from the ground it stands on; lengths are metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple, Union, cast

import numpy as np

BOX, CYLINDER, ELLIPSOID, WHEEL = range(4)  # a cylinder's axis is vertical, a wheel's lies along y
Colour = Tuple[float, float, float]  # RGB, 0 to 1
Vector = Tuple[float, float, float]  # metres
Span = Union[float, Sequence[float]]  # metres along an axis

# what a surface looks like, beside its colour; see shade.py
PLAIN, FACADE, BODYWORK, GLAZED, STRIPED, BANDED, LEAVES, PANELS = range(8)

RUBBER: Colour = (0.05, 0.05, 0.05)
STEEL: Colour = (0.45, 0.46, 0.48)
SKIN: Colour = (0.80, 0.60, 0.48)


@dataclass(frozen=True)
class Solid:
    """A convex solid along the axes of its body: centre and half extents (3,) in the body frame, looks, and the LiDAR
    intensity (0 to 255) of a beam that meets it from near."""

    kind: int
    centre: Tuple[float, float, float]
    half: Tuple[float, float, float]
    colour: Colour
    look: int = PLAIN
    intensity: float = 20.0


@dataclass(frozen=True)
class Stack:
    """P solids as arrays: kind, look and intensity (P,), centre and half (P, 3) float64, colour (P, 3) float32."""

    kind: np.ndarray
    look: np.ndarray
    intensity: np.ndarray
    centre: np.ndarray
    half: np.ndarray
    colour: np.ndarray


def stack_solids(solids: Sequence[Solid]) -> Stack:
    """The solids as arrays, in their order."""
    kind, look, intensity, centre, half, colour = (
        np.array([getattr(solid, name) for solid in solids])
        for name in ('kind', 'look', 'intensity', 'centre', 'half', 'colour')
    )
    return Stack(kind, look, intensity, centre, half, colour.astype(np.float32))


def _box(x: Span, y: Span, z: Span, colour: Colour, **more: Any) -> Solid:
    """From its two faces along each axis; one number stands for both sides of 0."""
    spans = [(-span, span) if isinstance(span, float) else span for span in (x, y, z)]
    centre, half = (tuple((a + s * b) / 2 for b, a in spans) for s in (1, -1))
    return Solid(BOX, cast(Vector, centre), cast(Vector, half), colour, **more)


def _upright(x: float, y: float, z: Sequence[float], radius: float, colour: Colour, **more: Any) -> Solid:
    """A vertical cylinder."""
    return Solid(CYLINDER, (x, y, (z[0] + z[1]) / 2), (radius, radius, (z[1] - z[0]) / 2), colour, **more)


def _wheel(x: float, y: Sequence[float], radius: float, **more: Any) -> Solid:
    return Solid(WHEEL, (x, (y[0] + y[1]) / 2, radius), (radius, (y[1] - y[0]) / 2, radius), RUBBER, **more)


def _wheels(length: float, width: float, at: Sequence[float], radius: float) -> List[Solid]:
    """Wheels on both sides at shares ``at`` of the length."""
    solids = []
    for share in at:
        x = share * length
        for side in (-1, 1):
            y = sorted((side * (width / 2 - 0.22), side * width / 2))
            solids.append(_wheel(x, y, radius, intensity=4))
    return solids


def _car(length: float, width: float, height: float, colour: Colour) -> List[Solid]:
    belt = 0.56 * height
    return [
        _box(length / 2, 0.485 * width, (0.2, belt), colour, look=BODYWORK, intensity=30),
        _box((-0.42 * length, 0.22 * length), 0.43 * width, (belt, height), colour, look=GLAZED, intensity=14),
        *_wheels(length, width, (-0.30, 0.30), 0.32),
    ]


def _truck(length: float, width: float, height: float, colour: Colour) -> List[Solid]:
    cab = length / 2 - 1.9
    return [
        _box((cab, length / 2), 0.47 * width, (0.45, 0.8 * height), colour, look=GLAZED, intensity=40),
        _box((-length / 2, cab - 0.15), 0.49 * width, (0.85, height), (0.86, 0.86, 0.84), look=PANELS, intensity=48),
        _box((-0.49 * length, 0.48 * length), 0.35 * width, (0.45, 0.85), (0.1, 0.1, 0.1), intensity=8),
        *_wheels(length, width, (-0.36, -0.18, 0.32), 0.45),
    ]


def _trailer(length: float, width: float, height: float, colour: Colour) -> List[Solid]:
    return [
        _box(length / 2, 0.49 * width, (1.1, height), colour, look=PANELS, intensity=85),
        _box(0.49 * length, 0.3 * width, (0.8, 1.1), (0.12, 0.12, 0.13), intensity=8),
        _box((0.36 * length, 0.38 * length), 0.3 * width, (0, 0.8), STEEL, intensity=25),
        *_wheels(length, width, (-0.42, -0.33, -0.24), 0.5),
    ]


def _bus(length: float, width: float, height: float, colour: Colour) -> List[Solid]:
    return [
        _box(length / 2, 0.49 * width, (0.3, height), colour, look=GLAZED, intensity=62),
        *_wheels(length, width, (-0.28, 0.30), 0.48),
    ]


def _construction(length: float, width: float, height: float, colour: Colour) -> List[Solid]:
    yellow = dict(intensity=110)
    return [
        _box((-0.5 * length, 0.2 * length), (-width / 2, -width / 2 + 0.55), (0, 0.9), RUBBER, intensity=6),
        _box((-0.5 * length, 0.2 * length), (width / 2 - 0.55, width / 2), (0, 0.9), RUBBER, intensity=6),
        _box((-0.46 * length, 0.16 * length), 0.42 * width, (0.9, 0.62 * height), colour, look=STRIPED, **yellow),
        _box(
            (-0.10 * length, 0.14 * length),
            (0.02 * width, 0.40 * width),
            (0.62 * height, height),
            colour,
            look=GLAZED,
            **yellow,
        ),
        _box(
            (0.14 * length, 0.42 * length),
            (-0.14 * width, -0.02 * width),
            (0.55 * height, 0.75 * height),
            colour,
            **yellow,
        ),
        _box(
            (0.36 * length, 0.5 * length),
            (-0.30 * width, 0.14 * width),
            (0.05, 0.66 * height),
            (0.25, 0.25, 0.25),
            intensity=25,
        ),
    ]


def _rider(x: float, seat: float, top: float, width: float, colour: Colour) -> List[Solid]:
    return [
        Solid(
            ELLIPSOID, (x, 0, (seat + top - 0.25) / 2), (0.2, width / 2, (top - 0.25 - seat) / 2), colour, intensity=18
        ),
        Solid(ELLIPSOID, (x + 0.05, 0, top - 0.14), (0.13, 0.13, 0.14), SKIN, intensity=18),
    ]


def _cycle(length: float, width: float, height: float, colour: Colour, ridden: bool, motor: bool) -> List[Solid]:
    radius, thick, shine = (0.30, 0.07, 140) if motor else (0.33, 0.03, 80)
    solids = [_wheel(side * (length / 2 - radius), (-thick, thick), radius, intensity=shine / 3) for side in (-1, 1)]
    bar = height if not ridden else 1.05
    frame = 0.16 if motor else 0.05
    solids.append(
        _box(
            (-0.32 * length, 0.30 * length),
            frame,
            (0.38, 0.85),
            colour,
            intensity=shine,
            look=BODYWORK if motor else PLAIN,
        )
    )
    solids.append(_box((0.22 * length, 0.28 * length), width / 2, (bar - 0.14, bar), STEEL, intensity=shine))
    solids.append(_box((0.23 * length, 0.27 * length), 0.04, (0.6, bar), STEEL, intensity=shine))
    return solids + (_rider(-0.08 * length, 0.7, height, 0.8 * width, colour) if ridden else [])


def _pedestrian(length: float, width: float, height: float, colour: Colour) -> List[Solid]:
    trousers = (0.13, 0.15, 0.25)
    return [
        _upright(0.14 * length, 0.16 * width, (0, 0.5 * height), 0.09, trousers, intensity=45),
        _upright(-0.14 * length, -0.16 * width, (0, 0.5 * height), 0.09, trousers, intensity=45),
        Solid(ELLIPSOID, (0, 0, 0.66 * height), (0.42 * length, 0.40 * width, 0.2 * height), colour, intensity=50),
        _box(0.5 * length, (0.36 * width, 0.5 * width), (0.45 * height, 0.78 * height), colour, intensity=50),
        _box(0.5 * length, (-0.5 * width, -0.36 * width), (0.45 * height, 0.78 * height), colour, intensity=50),
        Solid(ELLIPSOID, (0, 0, 0.925 * height), (0.11, 0.1, 0.075 * height), SKIN, intensity=50),
    ]


def _cone(length: float, width: float, height: float, colour: Colour) -> List[Solid]:
    more = dict(look=BANDED, intensity=170)
    return [
        _box(length / 2, width / 2, (0, 0.06), (0.1, 0.1, 0.1), intensity=40),
        _upright(0, 0, (0.06, 0.42 * height), 0.38 * length, colour, **more),
        _upright(0, 0, (0.42 * height, 0.74 * height), 0.26 * length, (0.95, 0.95, 0.95), intensity=230),
        _upright(0, 0, (0.74 * height, height), 0.14 * length, colour, **more),
    ]


def _barrier(length: float, width: float, height: float, colour: Colour) -> List[Solid]:
    return [
        _box(length / 2, width / 2, (0, 0.35 * height), colour, intensity=120, look=STRIPED),
        _box(0.22 * length, width / 2, (0.35 * height, height), colour, intensity=120, look=STRIPED),
    ]


# detection class -> length, width, height (metres; of a barrier, nuScenes calls the long side its width)
SIZES: Dict[str, Tuple[float, float, float]] = {
    'car': (4.6, 1.95, 1.7),
    'truck': (7.2, 2.5, 3.0),
    'trailer': (11.5, 2.8, 3.9),
    'bus': (11.0, 2.85, 3.4),
    'construction_vehicle': (6.4, 2.8, 3.2),
    'bicycle': (1.75, 0.6, 1.25),
    'motorcycle': (2.15, 0.8, 1.4),
    'pedestrian': (0.65, 0.65, 1.76),
    'traffic_cone': (0.42, 0.42, 1.05),
    'barrier': (0.5, 2.5, 1.0),
}
PAINTS: Dict[str, Tuple[Colour, ...]] = {
    'car': ((0.75, 0.75, 0.77), (0.08, 0.08, 0.09), (0.9, 0.9, 0.9), (0.55, 0.07, 0.07), (0.1, 0.2, 0.5), (0.35, 0.36, 0.38)),
    'truck': ((0.85, 0.85, 0.85), (0.7, 0.12, 0.1), (0.15, 0.3, 0.6), (0.15, 0.4, 0.2)),
    'trailer': ((0.75, 0.77, 0.8), (0.55, 0.6, 0.68), (0.8, 0.7, 0.5)),
    'bus': ((0.78, 0.1, 0.12), (0.1, 0.45, 0.25), (0.9, 0.75, 0.2)),
    'construction_vehicle': ((0.95, 0.65, 0.05), (0.93, 0.5, 0.08)),
    'bicycle': ((0.1, 0.6, 0.65), (0.7, 0.15, 0.5), (0.2, 0.25, 0.8)),
    'motorcycle': ((0.12, 0.12, 0.12), (0.6, 0.08, 0.08), (0.1, 0.15, 0.45)),
    'pedestrian': ((0.7, 0.2, 0.2), (0.2, 0.4, 0.7), (0.85, 0.8, 0.3), (0.3, 0.3, 0.3), (0.25, 0.55, 0.3), (0.9, 0.9, 0.9)),
    'traffic_cone': ((0.98, 0.35, 0.05),),
    'barrier': ((0.92, 0.92, 0.92), (0.95, 0.55, 0.1)),
}  # fmt: skip
_BUILDERS = {
    'car': _car, 'truck': _truck, 'trailer': _trailer, 'bus': _bus, 'construction_vehicle': _construction,
    'pedestrian': _pedestrian, 'traffic_cone': _cone, 'barrier': _barrier,
}  # fmt: skip


def build_object(name: str, size: Sequence[float], colour: Colour, ridden: bool = False) -> Tuple[Solid, ...]:
    """The solids of a road user, inside the box of ``size`` (length, width, height) that stands on z = 0 and touches them.

    Args:
        name: detection class.
        size: metres; a ridden cycle's height includes its rider.
        ridden: whether a bicycle or motorcycle has a rider.
    """
    length, width, height = (float(value) for value in size)
    if name in ('bicycle', 'motorcycle'):
        return tuple(_cycle(length, width, height, colour, ridden, name == 'motorcycle'))
    return tuple(_BUILDERS[name](length, width, height, colour))


def build_tree(height: float, colour: Colour) -> Tuple[Solid, ...]:
    """A trunk and a crown."""
    crown = 0.32 * height
    return (
        Solid(ELLIPSOID, (0, 0, height - crown), (0.65 * crown, 0.65 * crown, crown), colour, LEAVES, 12),
        _upright(0, 0, (0, height - 1.5 * crown), 0.18, (0.3, 0.22, 0.15), intensity=10),
    )


def build_pole(height: float) -> Tuple[Solid, ...]:
    """A lamp post with an arm along x."""
    return (
        _upright(0, 0, (0, height), 0.09, STEEL, intensity=35),
        _box((0, 1.4), 0.08, (height - 0.12, height), STEEL, intensity=35),
    )


def build_house(length: float, width: float, height: float, colour: Colour) -> Tuple[Solid, ...]:
    """A block with rows of windows."""
    return (_box(length / 2, width / 2, (0, height), colour, look=FACADE, intensity=24),)


def build_island(length: float) -> Tuple[Solid, ...]:
    """A raised traffic island between the lanes."""
    return (_box(length / 2, 0.22, (0, 0.2), (0.7, 0.68, 0.6), look=STRIPED, intensity=32),)


def build_fence(length: float, colour: Colour) -> Tuple[Solid, ...]:
    """A wall of garden height."""
    return (_box(length / 2, 0.1, (0, 1.3), colour, look=PANELS, intensity=20),)

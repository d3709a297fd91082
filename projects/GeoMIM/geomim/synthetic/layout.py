"""One street scene: who stands and drives where, how the ego vehicle moves, how the light falls. A function of its seed.

Bodies are set out strip by strip along the road, one behind the other, and all that move along one strip move alike: no
two ever touch, at any time. Lengths are metres, times seconds from the scene's first keyframe.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from . import solids as make
from .labels import DETECTION, LABELS
from .road import KERB_HEIGHT, Road
from .solids import PAINTS, SIZES, Colour, Solid, Stack, stack_solids

BEHIND, AHEAD = 50.0, 62.0  # s of the world's ends, before the ego's start and beyond its end
LANE_MIDDLE = 1.95  # from the median to the middle of moving traffic


@dataclass(frozen=True)
class Body:
    """A group of solids that moves as one.

    Args:
        solids: in the body frame.
        size: (length, width, height) of their bounding box.
        label: category name, for labels.
        s, d: where it is at time 0, road coordinates.
        turn: yaw against the road's direction, radians.
        speed: along the road, m/s; negative towards smaller s.
        base: z of the ground it stands on.
        detection: detection class, '' for scenery.
        attribute: of nuScenes, '' for none.
    """

    solids: Tuple[Solid, ...]
    size: Tuple[float, float, float]
    label: str
    s: float
    d: float
    turn: float
    speed: float
    base: float
    detection: str = ''
    attribute: str = ''

    def pose(self, road: Road, time: float) -> Tuple[np.ndarray, float]:
        """World position (3,) of the middle of its lower face, and yaw, at a time."""
        x, y, heading = road.place(self.s + self.speed * time, self.d)
        return np.array([float(x), float(y), self.base]), float(heading) + self.turn


@dataclass(frozen=True)
class Light:
    """Sun (unit vector towards it), its strength, the sky's, sky colour, haze (1/m), exposure, tint, pixel noise (0 to 1)."""

    sun: np.ndarray
    direct: float
    ambient: float
    sky: np.ndarray
    haze: float
    tint: np.ndarray
    noise: float


@dataclass(frozen=True)
class Inventory:
    """What of a scene's O bodies, with P solids in all, is the same at all times.

    Args:
        size (O, 3), detected (O,): of the bodies; whether they are road users.
        position (O, 3), yaw (O,): at time 0; ``moving`` are the bodies that do not stay there.
        first (O + 1,): where each body's solids begin among all P.
        solids: P of them, ``stack`` the same as arrays; owner (P,) their bodies; label (P,) LiDAR segmentation labels.
    """

    size: np.ndarray
    detected: np.ndarray
    position: np.ndarray
    yaw: np.ndarray
    moving: Tuple[int, ...]
    first: np.ndarray
    solids: Tuple[Solid, ...]
    stack: Stack
    owner: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A street, its bodies, its light, and the ego vehicle's way."""

    road: Road
    bodies: Tuple[Body, ...]
    light: Light
    speed: float
    acceleration: float
    sway: float
    texture_seed: int

    @cached_property
    def inventory(self) -> Inventory:
        bodies = self.bodies
        poses = [body.pose(self.road, 0.0) for body in bodies]
        counts = [len(body.solids) for body in bodies]
        owner = np.repeat(np.arange(len(counts)), counts)
        solids = tuple(solid for body in bodies for solid in body.solids)
        return Inventory(
            size=np.array([body.size for body in bodies]),
            detected=np.array([bool(body.detection) for body in bodies]),
            position=np.array([position for position, _ in poses]),
            yaw=np.array([yaw for _, yaw in poses]),
            moving=tuple(number for number, body in enumerate(bodies) if body.speed),
            first=np.concatenate([[0], np.cumsum(counts)]),
            solids=solids,
            stack=stack_solids(solids),
            owner=owner,
            label=np.array([LABELS[body.label] for body in bodies], dtype=np.uint8)[owner],
        )

    def travelled(self, time: float) -> float:
        """s of the ego vehicle, which may come to a stop but does not reverse."""
        if self.acceleration < 0:
            time = min(time, -self.speed / self.acceleration)
        return self.speed * time + 0.5 * self.acceleration * time**2

    def ego2world(self, time: float) -> np.ndarray:
        """(4, 4): origin on the ground under the rear axle, x ahead; it drives the right lane, swaying a little."""
        s, wave = self.travelled(time), 2 * np.pi / 60
        d = -(self.road.median + LANE_MIDDLE) + self.sway * np.sin(wave * s)
        x, y, heading = self.road.place(s, d)
        yaw = float(heading) + np.arctan(self.sway * wave * np.cos(wave * s))
        pitch, roll = np.deg2rad(0.12 * np.sin(1.7 * time)), np.deg2rad(0.10 * np.sin(1.1 * time + 1))
        matrix = np.eye(4)
        matrix[:3, :3] = turn_z(yaw) @ _turn_y(pitch) @ _turn_x(roll)
        matrix[:2, 3] = float(x), float(y)
        return matrix


def turn_z(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def _turn_y(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def _turn_x(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


@dataclass
class _Strip:
    """A lengthwise piece of the street that is filled from one end to the other."""

    d: float
    names: Dict[str, float]  # class -> weight
    gap: Tuple[float, float]
    speed: float = 0.0
    turn: float = 0.0
    base: float = 0.0
    keep_out: Optional[Tuple[float, float]] = None
    wiggle: float = 0.1
    taken: List[Tuple[float, float]] = field(default_factory=list)


def _object(random: np.random.Generator, name: str, strip: _Strip, s: float, turn: float) -> Body:
    ridden = name in ('bicycle', 'motorcycle') and (strip.speed != 0 or random.uniform() < 0.3)
    size = np.array(SIZES[name]) * random.uniform(0.93, (1.07, 1.0, 1.07))  # no wider, for a bus has little room
    if ridden:
        size[2] = random.uniform(1.62, 1.85)
    paints = PAINTS[name]
    colour = tuple(
        np.clip(np.array(paints[random.integers(len(paints))]) + random.normal(0, 0.03, 3), 0.02, 1).tolist()
    )
    d = strip.d + random.uniform(-strip.wiggle, strip.wiggle)
    size_ = (float(size[0]), float(size[1]), float(size[2]))
    solids = make.build_object(name, size_, colour, ridden)
    return Body(
        solids,
        size_,
        DETECTION[name],
        s,
        d,
        turn,
        strip.speed,
        strip.base,
        name,
        _attribute(name, strip, ridden, random),
    )


def _attribute(name: str, strip: _Strip, ridden: bool, random: np.random.Generator) -> str:
    if name in ('bicycle', 'motorcycle'):
        return 'cycle.with_rider' if ridden else 'cycle.without_rider'
    if name == 'pedestrian':
        return 'pedestrian.moving' if strip.speed else 'pedestrian.standing'
    if name in ('traffic_cone', 'barrier'):
        return ''
    return 'vehicle.moving' if strip.speed else 'vehicle.parked'


def _fill(random: np.random.Generator, strip: _Strip, start: float, end: float) -> List[Body]:
    """Objects one behind the other, at random distances, classes by weight."""
    bodies: List[Body] = []
    names, weights = list(strip.names), np.array(list(strip.names.values()), dtype=float)
    s = start + random.uniform(*strip.gap)
    while s < end:
        name = names[int(random.choice(len(names), p=weights / weights.sum()))]
        length = SIZES[name][1 if name == 'barrier' else 0] * 1.1
        askew = 0.15 / length  # the ends of a long vehicle must not stray into the lane beside it
        turn = strip.turn + np.clip(random.normal(0, 0.04), -askew, askew) if not strip.speed else strip.turn
        if name == 'pedestrian' and not strip.speed:
            turn = random.uniform(-np.pi, np.pi)
        if name == 'barrier':
            turn += np.pi / 2  # its long side along the road
        middle = s + length / 2
        if strip.keep_out is None or not strip.keep_out[0] < middle < strip.keep_out[1]:
            bodies.append(_object(random, name, strip, middle, turn))
        s += length + random.uniform(*strip.gap)
    return bodies


@dataclass(frozen=True)
class _Verge:
    """What one side of a street is like beyond its lane: depth of the yards (m), and how far apart things are, as factors."""

    yard: float
    parked: float
    kerbside: float
    houses: float
    trees: float


def _verge(random: np.random.Generator) -> _Verge:
    def factor(lower: float, upper: float) -> float:
        return float(np.exp(random.uniform(np.log(lower), np.log(upper))))

    return _Verge(float(random.uniform(0, 9)), factor(0.6, 2.5), factor(0.6, 2), factor(0.7, 5), factor(0.7, 4))


def _strips(
    random: np.random.Generator, road: Road, verges: Dict[int, _Verge], ego_speed: float
) -> Tuple[List[_Strip], List[_Strip]]:
    """The strips of road users: those at rest, and those that move."""
    speed = float(random.uniform(3, 9))
    parked = {'car': 7, 'truck': 1, 'bus': 0.6, 'trailer': 0.4, 'motorcycle': 2, 'bicycle': 2}
    works = {'traffic_cone': 5, 'barrier': 4, 'construction_vehicle': 0.7}
    kerbside = {'pedestrian': 3, 'bicycle': 1.5, 'motorcycle': 1, 'traffic_cone': 1.2, 'barrier': 1}
    yard = {'construction_vehicle': 2, 'trailer': 2.2, 'truck': 1.4, 'bus': 1.6, 'car': 1}
    still, moving = [], []
    works_side = 1 if random.uniform() < 0.5 else -1
    for side in (-1, 1):
        turn = 0.0 if side < 0 else np.pi
        names = {**works, 'car': 1.5} if side == works_side else parked
        verge, kerb = verges[side], road.kerb
        still.append(_Strip(side * (kerb - 1.7), names, _scaled((2.0, 9.0), verge.parked), turn=turn))
        gap = _scaled((3.0, 12.0), verge.kerbside)
        still.append(_Strip(side * (kerb + 0.8), kerbside, gap, turn=turn, base=KERB_HEIGHT))
        d = side * (road.sidewalk + 3.7 + random.uniform(0, verge.yard))
        still.append(_Strip(d, yard, (3.0, 12.0), turn=turn, base=KERB_HEIGHT, wiggle=0.3))
        walk = random.uniform(0.7, 1.6) * (1 if random.uniform() < 0.5 else -1)
        facing = 0.0 if walk > 0 else np.pi
        walkers = {'pedestrian': 4, 'bicycle': 0.8}
        moving.append(
            _Strip(side * (kerb + 2.5), walkers, (5, 16), speed=walk, turn=facing, base=KERB_HEIGHT, wiggle=0.3)
        )
    traffic = {'car': 6, 'truck': 1, 'bus': 0.8, 'motorcycle': 1.6, 'bicycle': 0.8, 'trailer': 0.4}
    lane = road.median + LANE_MIDDLE
    gap = _scaled((7, 22), random.uniform(0.8, 2.5))
    moving.append(_Strip(lane, traffic, gap, speed=-speed, turn=np.pi, wiggle=0.05))
    moving.append(_Strip(-lane, traffic, (7, 22), speed=ego_speed, wiggle=0.05))
    return still, moving


def _scaled(gap: Tuple[float, float], factor: float) -> Tuple[float, float]:
    return gap[0], gap[0] + factor * (gap[1] - gap[0])


def _scenery(
    random: np.random.Generator, road: Road, verges: Dict[int, _Verge], start: float, end: float
) -> List[Body]:
    bodies: List[Body] = []

    def add(
        solids: Tuple[Solid, ...],
        size: Sequence[float],
        label: str,
        s: float,
        d: float,
        turn: float = 0.0,
        base: float = KERB_HEIGHT,
    ) -> None:
        bodies.append(Body(solids, (float(size[0]), float(size[1]), float(size[2])), label, s, d, turn, 0.0, base))

    for side, verge in verges.items():
        s = start
        while s < end:
            length, width, height = random.uniform(9, 22), random.uniform(8, 14), random.uniform(4, 16)
            grey = random.uniform(0.35, 0.75)
            paint: Colour = tuple(np.clip(grey + random.normal(0, 0.07, 3), 0.1, 1).tolist())
            d = side * (road.sidewalk + verge.yard + random.uniform(6.7, 12) + width / 2)
            add(
                make.build_house(length, width, height, paint),
                (length, width, height),
                'static.manmade',
                s + length / 2,
                d,
            )
            s += length + random.uniform(*_scaled((2, 14), verge.houses))
        s = start + random.uniform(0, 8)
        while s < end:
            height = random.uniform(5.5, 7.5)
            green: Colour = tuple(np.clip(np.array([0.16, 0.36, 0.12]) + random.normal(0, 0.05, 3), 0.03, 1).tolist())
            size = (0.42 * height, 0.42 * height, height)
            add(make.build_tree(height, green), size, 'static.vegetation', s, side * (road.sidewalk + 0.1))
            s += random.uniform(*_scaled((7, 18), verge.trees))
        for s in np.arange(start + random.uniform(0, 20), end, 26.0):
            turn = -side * np.pi / 2
            add(make.build_pole(6.5), (2.8, 0.2, 6.5), 'static.manmade', float(s), side * (road.kerb + 1.75), turn)
        s = start + random.uniform(0, 20)
        while s < end:
            length = random.uniform(4, 10)
            wall: Colour = tuple((np.array([0.5, 0.42, 0.36]) * random.uniform(0.7, 1.3)).tolist())
            add(
                make.build_fence(length, wall),
                (length, 0.2, 1.3),
                'static.manmade',
                s,
                side * (road.sidewalk + verge.yard + 6.1),
            )
            s += length + random.uniform(6, 25)
    for s in np.arange(start + random.uniform(0, 20), end, 24.0):
        add(make.build_island(3.0), (3.0, 0.44, 0.2), 'flat.other', float(s), 0.0, base=0.0)
    return bodies


def _light(random: np.random.Generator) -> Light:
    azimuth, elevation = random.uniform(-np.pi, np.pi), np.deg2rad(random.uniform(25, 65))
    sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    clouds = random.uniform(0, 1)
    sky = (1 - clouds) * np.array([0.45, 0.65, 0.92]) + clouds * np.array([0.78, 0.80, 0.83])
    direct, ambient = 0.75 * (1 - 0.8 * clouds), 0.42 + 0.3 * clouds
    exposure = random.uniform(0.8, 1.15)
    tint = exposure * (1 + random.normal(0, 0.03, 3))
    haze = random.uniform(0.012, 0.02)  # a misty day, whose colours tell distances to a network of few iterations
    return Light(sun, direct, ambient, sky, haze, tint, random.uniform(0.004, 0.014))


def make_scene(seed: int, index: int, duration: float) -> Scene:
    """The scene number ``index`` of a world; it depends on its arguments alone.

    Args:
        duration: seconds between its first and last keyframe.
    """
    random = np.random.default_rng([seed, index, 1])
    speed = float(random.uniform(2, 8))
    # so gentle that the ego vehicle strays less than 3 m from the place of one that drives its mean speed
    acceleration = float(random.uniform(-0.8, 0.6)) * min(1.0, 30 / max(duration, 1e-3) ** 2)
    curvature = float(random.uniform(-1, 1) * random.choice([1 / 80, 1 / 200, 1 / 1000]))
    light, crossing, sway = _light(random), float(random.uniform(5, 40)), float(random.uniform(0, 0.15))
    median = float(random.choice([0.0, random.uniform(0, 4)]))
    road = Road(curvature, crossing, median, float(random.uniform(0, 3)))
    draft = Scene(road, (), light, speed, acceleration, sway, int(random.integers(2**31)))
    travelled = draft.travelled(duration)
    start, end = -BEHIND, travelled + AHEAD
    bend = float(np.clip(curvature, -2.5 / (end - start), 2.5 / (end - start)))  # the street must not meet itself
    # the other vehicles of the ego's lane keep its mean speed, which leaves the gap around it open
    lane_speed = travelled / duration if duration > 0 else speed
    verges = {side: _verge(random) for side in (-1, 1)}
    still, moving = _strips(random, road, verges, lane_speed)
    moving[-1].keep_out = (-13.0, 15.0)
    bodies: List[Body] = _scenery(random, road, verges, start, end)
    for strip in still:
        bodies += _fill(random, strip, start, end)
    for strip in moving:
        shift = strip.speed * duration
        bodies += _fill(random, strip, start - max(0.0, shift), end - min(0.0, shift))
    return replace(draft, road=replace(road, curvature=bend), bodies=tuple(bodies))

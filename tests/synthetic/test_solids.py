"""Road users and scenery fill exactly the boxes that they are annotated with."""

from __future__ import annotations

from typing import Sequence, Tuple

import numpy as np
import pytest

from geomim.synthetic.layout import make_scene
from geomim.synthetic.solids import (
    CYLINDER,
    ELLIPSOID,
    PAINTS,
    SIZES,
    WHEEL,
    Solid,
    build_object,
    stack_solids,
)

OBJECTS = [(name, False) for name in SIZES] + [('bicycle', True), ('motorcycle', True)]


def bounds(solids: Sequence[Solid]) -> Tuple[np.ndarray, np.ndarray]:
    centres, halves = (np.array([getattr(solid, name) for solid in solids]) for name in ('centre', 'half'))
    return (centres - halves).min(axis=0), (centres + halves).max(axis=0)


@pytest.mark.parametrize('name, ridden', OBJECTS)
def test_a_road_user_fills_exactly_its_box(name: str, ridden: bool) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        size = np.array(SIZES[name]) * random.uniform(0.9, 1.1, 3)
        if ridden:
            size[2] = random.uniform(1.6, 1.9)
        solids = build_object(name, size, (0.5, 0.5, 0.5), ridden)
        lower, upper = bounds(solids)
        np.testing.assert_allclose(lower, [-size[0] / 2, -size[1] / 2, 0], atol=1e-6)
        np.testing.assert_allclose(upper, [size[0] / 2, size[1] / 2, size[2]], atol=1e-6)


def test_a_rider_is_the_difference_between_ridden_and_not() -> None:
    for name in ('bicycle', 'motorcycle'):
        alone, ridden = (build_object(name, SIZES[name], (0.5, 0.5, 0.5), flag) for flag in (False, True))
        assert len(ridden) == len(alone) + 2
        assert sum(solid.kind == ELLIPSOID for solid in ridden) == 2


def test_every_solid_of_a_scene_can_be() -> None:
    bodies = make_scene(0, 0, 4.5).bodies
    labels = {body.label for body in bodies}
    assert {'static.vegetation', 'static.manmade', 'flat.other', 'vehicle.car'} <= labels
    for body in bodies:
        lower, upper = bounds(body.solids)
        reach = np.array(body.size)
        assert (lower >= [-reach[0] / 2 - 1e-6, -reach[1] / 2 - 1e-6, -1e-6]).all(), body.label
        assert (upper <= [reach[0] / 2 + 1e-6, reach[1] / 2 + 1e-6, reach[2] + 1e-6]).all(), body.label
        assert upper[2] == pytest.approx(reach[2])
        for solid in body.solids:
            assert min(solid.half) > 0
            assert 0 <= min(solid.colour) <= max(solid.colour) <= 1
            assert 0 < solid.intensity <= 255
            if solid.kind in (CYLINDER, WHEEL):  # round, not oval
                assert solid.half[0] == solid.half[1 if solid.kind == CYLINDER else 2]


def test_no_part_floats_beside_its_body() -> None:
    """Wheels stand on the ground, and every solid touches another of its body (within a hand's breadth)."""
    for name, ridden in OBJECTS:
        solids = build_object(name, SIZES[name], PAINTS[name][0], ridden)
        for solid in solids:
            if solid.kind == WHEEL:
                assert solid.centre[2] == pytest.approx(solid.half[2])
        boxes = [bounds([solid]) for solid in solids]
        linked = {0}
        for _ in boxes:
            for k, (lower, upper) in enumerate(boxes):
                if any((lower - 0.2 <= boxes[j][1]).all() and (upper + 0.2 >= boxes[j][0]).all() for j in linked):
                    linked.add(k)
        assert linked == set(range(len(solids))), name


def test_stacked_solids_are_those_of_the_list() -> None:
    solids = build_object('motorcycle', SIZES['motorcycle'], (0.1, 0.1, 0.1), True)
    stack = stack_solids(solids)
    for number, solid in enumerate(solids):
        assert (stack.kind[number], stack.look[number], stack.intensity[number]) == (
            solid.kind,
            solid.look,
            solid.intensity,
        )
        assert (tuple(stack.centre[number]), tuple(stack.half[number])) == (solid.centre, solid.half)
        np.testing.assert_array_equal(stack.colour[number], np.array(solid.colour, dtype=np.float32))

"""The street: road coordinates there and back, heights, and where rays meet the ground, kerbs included."""

from __future__ import annotations

from types import ModuleType
from typing import Tuple

import numpy as np
import pytest

from geomim.synthetic.road import KERB_HEIGHT, Road

CURVATURES = (1 / 80, -1 / 80, 1 / 1000, -1 / 1000, 3e-6, -3e-6, 0.0)


@pytest.mark.parametrize('curvature', CURVATURES)
@pytest.mark.parametrize('kind, tolerance', [(np.float64, 1e-7), (np.float32, 2e-3)])
def test_place_and_locate_are_inverse(curvature: float, kind: type, tolerance: float) -> None:
    random, road = np.random.default_rng(0), Road(curvature, 20.0)
    s, d = (random.uniform(-reach, reach, 4000).astype(kind) for reach in (90, 40))
    x, y, heading = road.place(s, d)
    back_s, back_d = road.locate(x, y)
    assert back_s.dtype == back_d.dtype == kind
    np.testing.assert_allclose(back_s, s, atol=tolerance)
    np.testing.assert_allclose(back_d, d, atol=tolerance)
    np.testing.assert_allclose(heading, s * np.copysign(max(abs(curvature), 1e-5), curvature), atol=1e-6)


@pytest.mark.parametrize('curvature', CURVATURES)
def test_road_coordinates_are_metres(plain: ModuleType, curvature: float) -> None:
    """Of places: d is the distance from the circle; a step along s leads ahead, a step along d to the left."""
    random, road = np.random.default_rng(1), Road(curvature, 20.0)
    s, d = random.uniform(-90, 90, 500), random.uniform(-30, 30, 500)
    x, y, heading = road.place(s, d)
    np.testing.assert_allclose(plain.lateral(road, x, y), d, atol=1e-6)
    step = 1e-4
    ahead, left = (np.stack(road.place(*at)[:2]) - [x, y] for at in ((s + step, 0 * d + d), (s, d + step)))
    facing = np.stack([np.cos(heading), np.sin(heading)])
    np.testing.assert_allclose(left, step * np.stack([-facing[1], facing[0]]), atol=1e-8)
    np.testing.assert_allclose(ahead, step * facing * (1 - d * curvature), atol=1e-7)


@pytest.mark.parametrize('curvature', [1 / 80, -1 / 150, 0.0])
@pytest.mark.parametrize('where', [-1.95, 8.8, -12.0], ids=['lane', 'sidewalk', 'terrain'])
@pytest.mark.parametrize('strips', [(0.0, 0.0), (1.0, 0.5)], ids=['narrow', 'wide'])
def test_rays_meet_the_ground_where_a_march_does(
    plain: ModuleType, curvature: float, where: float, strips: Tuple[float, float]
) -> None:
    random, road = np.random.default_rng(2), Road(curvature, 20.0, *strips)
    x, y, _ = road.place(3.0, where)
    origin = np.array([x, y, 1.6])
    azimuth, down = random.uniform(-np.pi, np.pi, 480), np.deg2rad(random.uniform(1.5, 40, 480))
    rays = np.stack([np.cos(down) * np.cos(azimuth), np.cos(down) * np.sin(azimuth), -np.sin(down)]).astype(np.float32)
    found = road.cast_ground(origin, rays)
    step = 0.004
    t = np.arange(0, 1.7 / np.sin(down.min()), step)
    kerbs = 0
    for ray, got in zip(rays.T.astype(np.float64), found):
        path = origin[:, None] + ray[:, None] * t
        d = plain.lateral(road, path[0], path[1])
        under = path[2] <= np.where(np.abs(d) < road.kerb, 0.0, KERB_HEIGHT)
        first = t[under.argmax()]
        assert under.any()
        assert first - step - 0.003 * first <= got <= first + 0.003 * first + 1e-3
        height = origin[2] + got * ray[2]
        kerbs += 0.01 < height < KERB_HEIGHT - 0.01
        hit = plain.lateral(road, origin[0] + got * ray[0], origin[1] + got * ray[1])
        if 0.01 < height < KERB_HEIGHT - 0.01:
            assert abs(abs(hit) - road.kerb) < 0.04  # on the kerb's face, nowhere else between the two heights
    assert kerbs >= 3 or abs(where) > road.kerb  # from the lane the kerbs' faces show, from beyond only the far one


def test_rays_that_rise_meet_no_ground() -> None:
    rays = np.array([[1.0, 0, 0], [1, 0, 0.1], [0, 1, 1], [0, 0, -1]], dtype=np.float32).T
    assert np.isinf(Road(0.0, 0.0).cast_ground(np.array([0, 0, 2.0]), rays)).tolist() == [True, True, True, False]


def test_heights_and_paint() -> None:
    road = Road(0.0, 20.0)
    np.testing.assert_array_equal(road.height(np.array([-8, -6.9, 0, 6.9, 7.1])), [0.15, 0, 0, 0, 0.15])
    s = np.linspace(0, 60, 1201)
    assert 0.3 < road.painted(s, 0 * s).mean() < 0.6  # dashes
    assert road.painted(s, 0 * s + 3.5).all()
    assert not road.painted(s, 0 * s + 1.6)[(s < 20) | (s > 23)].any()
    across = np.linspace(-6.5, 6.5, 400)
    assert 0.4 < road.painted(0 * across + 21.5, across).mean() < 0.65  # zebra
    assert not road.painted(s, 0 * s + 8).any()


def test_median_and_margin_push_the_strips_outwards() -> None:
    road, d = Road(0.0, 20.0, median=2.0, margin=1.5), np.array([5.5, 10.4, 10.6, 13.9, 14.1])
    np.testing.assert_array_equal(road.height(d), [0, 0, 0.15, 0.15, 0.15])
    assert (road.lane, road.kerb, road.sidewalk) == (5.5, 10.5, 14.0)
    s = np.linspace(30, 60, 601)
    for edge in (2.0, 5.5):
        assert road.painted(s, 0 * s + edge).all()
        assert road.painted(s, 0 * s - edge).all()
    assert not road.painted(s, 0 * s + 3.5).any()

"""Ray casting: every kind of solid against an analytic twin, and whole sensors against every ray on every solid."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any, List, Tuple

import numpy as np
import pytest

from geomim.synthetic.cast import (
    GROUND,
    NOTHING,
    Beams,
    CameraBeams,
    LidarBeams,
    camera_beams,
    cast,
    freeze,
    labels_of,
    lidar_beams,
    meet_solids,
    rotate,
)
from geomim.synthetic.labels import CATEGORIES
from geomim.synthetic.layout import Body, Scene, make_scene, turn_z
from geomim.synthetic.rig import build_rig, read_rig
from geomim.synthetic.sensors import FARTHEST_PIXEL
from geomim.synthetic.solids import BOX, CYLINDER, ELLIPSOID, SIZES, WHEEL, Solid, build_object, build_pole

KINDS = {'box': BOX, 'cylinder': CYLINDER, 'wheel': WHEEL, 'ellipsoid': ELLIPSOID}


def random_half(random: np.random.Generator, kind: int) -> np.ndarray:
    half = random.uniform(0.1, 4, 3)
    if kind in (CYLINDER, WHEEL):
        half[1 if kind == CYLINDER else 2] = half[0]
    return half


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
@pytest.mark.parametrize('from_inside', [False, True], ids=['outside', 'inside'])
def test_rays_enter_solids_where_the_plain_twin_says(plain: ModuleType, kind: int, from_inside: bool) -> None:
    random, hits, rays_in_all = np.random.default_rng(kind), 0, 0
    for _ in range(40):
        half = random_half(random, kind)
        centre, start = random.uniform(-3, 3, 3), random.normal(size=3) * (0.3 if from_inside else 6)
        start = centre + half * np.clip(start, -0.5, 0.5) if from_inside else start
        towards = centre - start + random.normal(size=(400, 3)) * 1.5 * half
        rays = towards / random.uniform(0.5, 40, (400, 1))  # a camera's rays are not of length 1
        rays[:6] = [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]
        single = rays.T.astype(np.float32)
        inverse = np.float32(1) / np.where(np.abs(single) < 1e-7, np.float32(1e-7), single)
        solid = (half[:, None].astype(np.float32), (start - centre)[:, None].astype(np.float32))
        pairs = (np.zeros(400, dtype=int), np.arange(400))
        found = meet_solids(kind, *solid, single, inverse, *pairs).astype(np.float64)
        exact = single.T.astype(np.float64)
        expected = plain.enter(kind, half, start - centre, exact)
        # what meets a slightly smaller solid must be met, what misses a slightly larger one must be missed
        surely = np.isfinite(plain.enter(kind, half * 0.999, start - centre, exact)) & np.isfinite(expected)
        surely_not = np.isinf(plain.enter(kind, half * 1.001, start - centre, exact)) & np.isinf(expected)
        near = np.abs(expected - plain.NEAR) < 1e-3
        assert np.isfinite(found[surely & ~near]).all()
        assert np.isinf(found[surely_not & ~near]).all()
        both = np.isfinite(found) & np.isfinite(expected) & surely
        error = np.linalg.norm((found[both] - expected[both])[:, None] * exact[both], axis=1)
        assert (error < 2e-3).all()
        hits, rays_in_all = hits + both.sum(), rays_in_all + 400
    assert hits == 0 if from_inside else 0.2 < hits / rays_in_all < 0.99


def beside(name: str, s: float, d: float, turn: float, size: Any = None, solids: Any = None) -> Body:
    size = size or SIZES[name]
    solids = solids or build_object(name, size, (0.5, 0.5, 0.5))
    detection = name if name in SIZES else ''
    label = 'vehicle.truck' if detection else 'static.manmade'
    return Body(tuple(solids), tuple(size), label, s, d, turn, 0.0, 0.0, detection)


def crowded_scene(index: int) -> Scene:
    """A real scene, and things as near to the sensors as can be: before, behind, beside and above the vehicle."""
    scene = make_scene(7, index, 4.5)
    lane = -1.95
    roof = [Solid(BOX, (0, 0, 2.2), (1.5, 1.2, 0.2), (0.5, 0.5, 0.5))]
    wall = [Solid(BOX, (0, 0, 0.9), (2.6, 0.05, 0.9), (0.5, 0.5, 0.5))]
    near = (
        beside('truck', 2.0, lane + 2.3, 0.02),  # fills the left cameras and reaches behind them
        beside('car', -3.6, lane + 0.4, 0.3),
        beside('pole', 2.4, lane - 0.2, 0.7, (2.8, 0.2, 6.5), build_pole(6.5)),  # half a metre before the front camera
        beside('bicycle', 3.2, lane + 0.3, 1.9),
        beside('roof', 1.5, lane, 0.0, (3.0, 2.4, 2.4), roof),  # over the LiDAR, and to all sides of it
        beside('wall', 3.5, lane - 0.5, 0.0, (5.2, 0.1, 1.8), wall),  # from behind the front camera past it
        beside('bus', 0.94, lane - 9.0, 1.1),  # across the seam of the LiDAR's columns
        beside('pedestrian', 0.94, lane - 4.0, 0.0),
        beside('barrier', 0.94, lane - 2.0, 0.3),
    )
    return replace(scene, bodies=(*scene.bodies, *near))


def brute_force(plain: ModuleType, scene: Scene, beams: Beams, reach: float) -> Tuple[Any, Any, np.ndarray]:
    """t and solid of every ray, cast on every solid, and how many rays each road user alone would receive."""
    frozen = freeze(scene, 1.0)
    rays = beams.rays.reshape(3, -1).T.astype(np.float64)
    ground = scene.road.cast_ground(beams.origin, beams.rays).ravel().astype(np.float64)
    nearest = np.where(ground < reach, ground, np.inf)
    hit = np.where(np.isfinite(nearest), GROUND, NOTHING)
    alone: List[np.ndarray] = [np.zeros(len(rays), dtype=bool) for _ in scene.bodies]
    turned = {number: plain.into(float(frozen.yaw[number]), rays) for number in range(len(scene.bodies))}
    for index, number, centre, yaw in plain.placed(frozen):
        solid = frozen.solids[index]
        start = plain.into(yaw, (beams.origin - centre)[None])[0]
        # rays that pass the ball around a solid at a distance cannot meet it
        ray = turned[number]
        along = -(ray @ start) / (ray * ray).sum(axis=1)
        apart = np.linalg.norm(start + np.maximum(along, 0)[:, None] * ray, axis=1)
        close = np.nonzero(apart < np.linalg.norm(solid.half) * 1.001)[0]
        t = plain.enter(solid.kind, solid.half, start, ray[close])
        alone[number][close] |= t < reach
        closer = t < np.minimum(nearest[close], reach)
        nearest[close[closer]], hit[close[closer]] = t[closer], index
    counts = [int(met.sum()) if body.detection else 0 for met, body in zip(alone, scene.bodies)]
    return nearest.reshape(beams.rays.shape[1:]), hit.reshape(beams.rays.shape[1:]), np.array(counts)


def same_hits(plain: ModuleType, scene: Scene, beams: Beams, reach: float) -> int:
    """Compare; returns how many rays met a solid."""
    hits = cast(scene, freeze(scene, 1.0), beams, reach, count_alone=True)
    t, solid, alone = brute_force(plain, scene, beams, reach)
    owner = freeze(scene, 1.0).owner
    with np.errstate(invalid='ignore'):
        tie = (solid >= 0) & (hits.solid >= 0) & (owner[hits.solid] == owner[solid]) & (np.abs(hits.t - t) < 1e-3)
    differs = (hits.solid != solid) & ~tie  # solids of one body may share a face
    assert differs.mean() < 2e-4  # an edge that only one of the two precisions just meets
    assert np.array_equal(np.isfinite(hits.t), hits.solid != NOTHING)
    agree = np.isfinite(t) & ~differs
    np.testing.assert_allclose(hits.t[agree], t[agree], rtol=2e-4, atol=2e-3)
    # an edge is a line: never a whole patch of rays
    patch = differs[1:, 1:] & differs[:-1, 1:] & differs[1:, :-1] & differs[:-1, :-1]
    assert not patch.any()
    assert (np.abs(hits.alone - alone) <= 1 + 0.002 * alone).all()
    assert np.abs(hits.alone - alone).sum() <= 2 + 2e-4 * alone.sum()
    seen = hits.seen(owner, len(scene.bodies))
    assert seen.sum() == (hits.solid >= 0).sum()
    users = np.array([bool(body.detection) for body in scene.bodies])
    assert (seen[users] <= hits.alone[users]).all()
    return int((solid >= 0).sum())


@pytest.mark.parametrize('name', ['CAM_FRONT', 'CAM_FRONT_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT'])
def test_a_camera_sees_what_casting_every_ray_on_every_solid_finds(plain: ModuleType, name: str) -> None:
    scene = crowded_scene(0)
    rig = build_rig(read_rig('nuscenes'), image_width=120, image_height=68)
    camera = next(camera for camera in rig.cameras if camera.name == name)
    assert same_hits(plain, scene, camera_beams(camera, scene.ego2world(0.0)), FARTHEST_PIXEL) > 1000


@pytest.mark.parametrize('index', [0, 1])
def test_a_scan_is_what_casting_every_ray_on_every_solid_finds(plain: ModuleType, index: int) -> None:
    scene, record = crowded_scene(index), read_rig('nuscenes')
    record['lidar'].update(columns=361, range=60.0)
    beams = lidar_beams(build_rig(record).lidar, scene.ego2world(0.0))
    hit_in_all = same_hits(plain, scene, beams, 60.0)
    assert 2000 < hit_in_all < beams.rays[0].size
    # rays straight along the seam of the columns met solids too
    assert (cast(scene, freeze(scene, 1.0), beams, 60.0).solid[:, [0, -1]] >= 0).all(axis=1).any()


def test_windows_of_nothing_are_a_fault_that_the_comparison_finds(plain: ModuleType, monkeypatch: Any) -> None:
    """The comparison itself can fail: it notices windows that are two pixels or columns too small."""
    scene, record = crowded_scene(0), read_rig('nuscenes')
    record['lidar'].update(columns=361, range=60.0)
    rig = build_rig(record, image_width=120, image_height=68)
    for kind, beams in (
        (CameraBeams, camera_beams(rig.cameras[0], scene.ego2world(0.0))),
        (LidarBeams, lidar_beams(rig.lidar, scene.ego2world(0.0))),
    ):
        whole = kind.windows

        def cut(self: Any, corners: np.ndarray, whole: Any = whole) -> Any:
            for body, windows in whole(self, corners):
                yield body, [(rows, slice(columns.start + 2, columns.stop)) for rows, columns in windows]

        with monkeypatch.context() as patch:
            patch.setattr(kind, 'windows', cut)
            with pytest.raises(AssertionError):
                same_hits(plain, scene, beams, 60.0)


def test_a_box_that_reaches_behind_a_camera_is_sought_where_it_may_be() -> None:
    """Of a long box to the left of a camera, from behind it to before it, in the columns of the left half alone."""
    camera = build_rig(read_rig('nuscenes'), image_width=120, image_height=68).cameras[0]
    beams = camera_beams(camera, np.eye(4))
    corners = np.array([[x, y, z] for x in (-10, 20) for y in (3, 5) for z in (0, 3)], dtype=float)
    right = corners * [1, -1, 1] + [0, 2 * beams.origin[1], 0]
    behind = np.abs(corners) * [-1, 1, 1]
    found = dict(beams.windows(np.stack([corners, right, behind])))
    assert sorted(found) == [0, 1]
    assert [columns.start for _, columns in found[0]] == [0]
    assert 20 < found[0][0][1].stop < 60
    assert [columns.stop for _, columns in found[1]] == [120]
    assert found[1][0][1].start == pytest.approx(120 - found[0][0][1].stop, abs=5)


def test_of_two_things_at_one_place_the_first_is_seen_however_many_are_cast_at_once(monkeypatch: Any) -> None:
    scene = crowded_scene(0)
    twice = replace(scene, bodies=(*scene.bodies, *scene.bodies))
    beams = lidar_beams(build_rig(read_rig('nuscenes')).lidar, scene.ego2world(0.0))
    once = cast(scene, freeze(scene, 1.0), beams, 60.0, count_alone=True)
    for batch in (1, 5000, 1 << 30):
        monkeypatch.setattr('geomim.synthetic.cast._BATCH', batch)
        hits = cast(twice, freeze(twice, 1.0), beams, 60.0, count_alone=True)
        np.testing.assert_array_equal(hits.t, once.t)
        np.testing.assert_array_equal(hits.solid, once.solid)
        np.testing.assert_array_equal(hits.alone, np.tile(once.alone, 2))


def test_camera_rays_go_through_the_middles_of_pixels() -> None:
    camera = build_rig(read_rig('nuscenes'), image_width=200, image_height=113).cameras[1]
    ego2world = np.eye(4)
    ego2world[:3, :3], ego2world[:3, 3] = turn_z(0.7), [3, -2, 0.1]
    beams = camera_beams(camera, ego2world)
    cam2world = ego2world @ camera.cam2ego
    np.testing.assert_allclose(beams.origin, cam2world[:3, 3])
    random = np.random.default_rng(0)
    for row, column in zip(random.integers(0, 113, 40), random.integers(0, 200, 40)):
        point = beams.origin + 17.0 * beams.rays[:, row, column].astype(np.float64)
        local = np.linalg.inv(cam2world) @ np.append(point, 1)
        assert local[2] == pytest.approx(17, abs=1e-4)  # t is depth along the optical axis
        pixel = camera.intrinsics @ local[:3] / local[2]
        np.testing.assert_allclose(pixel[:2], [column + 0.5, row + 0.5], atol=1e-3)


def test_lidar_rays_fan_out_by_ring_and_azimuth() -> None:
    lidar = build_rig(read_rig('nuscenes')).lidar
    beams = lidar_beams(lidar, np.eye(4))
    local = rotate(lidar.lidar2ego[:3, :3].T, beams.rays.astype(np.float64))
    np.testing.assert_allclose(np.linalg.norm(local, axis=0), 1, atol=1e-6)
    elevation = np.rad2deg(np.arcsin(local[2]))
    np.testing.assert_allclose(elevation, np.linspace(-30.67, 10.67, 32)[:, None] + 0 * elevation, atol=1e-3)
    azimuth = np.rad2deg(np.arctan2(local[1], local[0])) % 360
    expected = np.arange(1084) * 360 / 1084
    assert np.abs((azimuth - expected + 180) % 360 - 180).max() < 1e-3


def test_labels_name_what_was_hit(plain: ModuleType) -> None:
    scene = make_scene(1, 0, 1.0)
    frozen, road = freeze(scene, 0.0), scene.road
    near, walk, far = road.kerb - 0.1, road.kerb + 1.0, road.sidewalk + 3.5
    s, d = np.meshgrid(np.linspace(0, 30, 5), [-far, -walk, -near, 0.0, near, walk, far], indexing='ij')
    x, y, _ = scene.road.place(s.ravel(), d.ravel())
    points = np.stack([x, y, scene.road.height(d.ravel())])
    names = [CATEGORIES[label] for label in labels_of(scene, frozen, np.full(x.size, GROUND), points)]
    row = ['flat.terrain', 'flat.sidewalk', *['flat.driveable_surface'] * 3, 'flat.sidewalk', 'flat.terrain']
    assert names == row * 5
    solids = np.arange(len(frozen.solids))
    labels = labels_of(scene, frozen, solids, np.zeros((3, solids.size)))
    assert [CATEGORIES[label] for label in labels] == [scene.bodies[n].label for _, n, _, _ in plain.placed(frozen)]
    assert (labels_of(scene, frozen, np.full(3, NOTHING), np.zeros((3, 3))) == 0).all()

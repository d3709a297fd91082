"""What the sensors recorded fits together, by the files and tables on disk: points, boxes, pixels, poses, labels."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Dict, List, Tuple

import cv2
import numpy as np
import pytest

from geomim.synthetic.cast import GROUND, freeze
from geomim.synthetic.keyframe import KEYFRAME
from geomim.synthetic.labels import CATEGORIES
from geomim.synthetic.layout import make_scene
from geomim.synthetic.rig import build_rig, read_rig
from geomim.synthetic.road import KERB_HEIGHT
from geomim.synthetic.sensors import LOST, RANGE_NOISE, scan


def file_points(tables: Any, sample: Any) -> np.ndarray:
    path = tables.get_sample_data_path(sample['data']['LIDAR_TOP'])
    return np.fromfile(path, np.float32).reshape(-1, 5)


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def in_box(points: np.ndarray, centre: Any, yaw: float, half: Any) -> np.ndarray:
    """Points (M, 3) in units of the box's half extents."""
    local = points - centre
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.stack([local[:, :2] @ [cos, sin], local[:, :2] @ [-sin, cos], local[:, 2]], axis=1) / half


def test_scans_look_like_those_of_a_lidar_with_32_rings(tables: Any, moments: List[Any]) -> None:
    for moment in moments:
        points = file_points(tables, moment.sample)
        np.testing.assert_array_equal(points, moment.scan.points)
        assert 15000 < len(points) < 32 * 1084
        assert np.isfinite(points).all()
        assert set(points[:, 4]) <= set(range(32))
        assert len(set(points[:, 4])) >= 26
        assert points[:, 3].min() >= 0
        assert points[:, 3].max() <= 255
        assert len(np.unique(points[:, 3])) > 50
        distance = np.linalg.norm(points[:, :3], axis=1)
        assert distance.min() > 0.5
        assert distance.max() < 100.1
        elevation = np.rad2deg(np.arcsin(points[:, 2] / distance))
        np.testing.assert_allclose(elevation, np.linspace(-30.67, 10.67, 32)[points[:, 4].astype(int)], atol=0.01)


def test_noise_of_a_scan_has_its_stated_spread() -> None:
    scene, lidar = make_scene(1, 0, 0.0), build_rig(read_rig('nuscenes')).lidar
    first, second = (scan(scene, lidar, 0.0, np.random.default_rng(seed)) for seed in (0, 1))
    anywhere = np.isfinite(np.minimum(first.ranges, second.ranges)).sum()
    lost = [1 - np.isfinite(cloud.ranges).sum() / anywhere for cloud in (first, second)]
    assert np.abs(np.array(lost) - LOST).max() < 0.004
    distances = []
    for cloud in (first, second):
        ring = cloud.points[:, 4].astype(int)
        column = np.round(np.arctan2(cloud.points[:, 1], cloud.points[:, 0]) / (2 * np.pi / 1084)).astype(int) % 1084
        sparse = np.full(cloud.ranges.shape, np.nan)
        sparse[ring, column] = np.linalg.norm(cloud.points[:, :3], axis=1)
        assert np.isfinite(sparse).sum() == len(cloud.points)  # one point a beam
        distances.append(sparse - np.where(np.isfinite(cloud.ranges), cloud.ranges, np.nan))
    for error in distances:
        assert np.nanstd(error) == pytest.approx(RANGE_NOISE, rel=0.05)
        assert abs(np.nanmean(error)) < 0.001
    both = np.isfinite(distances[0]) & np.isfinite(distances[1])
    assert abs(np.corrcoef(distances[0][both], distances[1][both])[0, 1]) < 0.05


def annotation_of(moment: Any, tables: Any, number: int) -> str:
    """The annotation whose centre is where a body is at the moment, '' for none."""
    position, _ = moment.scene.bodies[number].pose(moment.scene.road, moment.time)
    position[2] += moment.scene.bodies[number].size[2] / 2
    centre = moved(moment.world2global, position[None])[0]
    for token in moment.sample['anns']:
        if np.linalg.norm(np.array(tables.get('sample_annotation', token)['translation']) - centre) < 1e-6:
            return token
    return ''


def test_points_on_an_object_lie_in_its_annotated_box(tables: Any, moments: List[Any], table_pose: Any) -> None:
    inside = hits = moving = 0
    for moment in moments:
        points = moved(table_pose(moment.sample['data']['LIDAR_TOP']), file_points(tables, moment.sample)[:, :3])
        ego = moment.scene.ego2world(moment.time)[:2, 3]
        for number in np.unique(moment.scan.body[moment.scan.body >= 0]):
            body = moment.scene.bodies[number]
            position, _ = body.pose(moment.scene.road, moment.time)
            if not body.detection or np.hypot(*(position[:2] - ego)) > 60:
                continue
            mine, token = points[moment.scan.body == number], annotation_of(moment, tables, number)
            if len(mine) < 3 and not token:  # noise may have carried its only points out of its box
                continue
            box = tables.get_box(token)
            width, length, height = box.wlh
            half = np.array([length, width, height]) / 2 + 0.05
            unit = in_box(mine, box.center, box.orientation.yaw_pitch_roll[0], half)
            found = (np.abs(unit) <= 1).all(axis=1)
            inside, hits, moving = inside + found.sum(), hits + len(mine), moving + (body.speed != 0)
            if len(mine) > 10:
                assert found.mean() > 0.9, body.detection
            assert box.name == body.label
    assert hits > 5000
    assert moving > 20
    assert inside >= 0.999 * hits


def project(points: np.ndarray, intrinsics: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    pixels = points @ intrinsics.T
    return pixels[:, 0] / pixels[:, 2], pixels[:, 1] / pixels[:, 2], points[:, 2]


def test_points_on_an_object_fall_on_its_pixels(tables: Any, moments: List[Any], table_pose: Any) -> None:
    """Through the tables' poses and intrinsics, moving bodies moved on to the camera's time."""
    on_it = visible = in_image = 0
    errors: Dict[str, List[np.ndarray]] = {}
    for moment in moments:
        sample = moment.sample
        at = moved(table_pose(sample['data']['LIDAR_TOP']), file_points(tables, sample)[:, :3])
        body = moment.scan.body
        solid = body >= 0
        at, body = at[solid], body[solid]
        before = freeze(moment.scene, moment.time)
        local = in_box(at, moved(moment.world2global, before.position)[body], 0, 1)
        for name, view in moment.views.items():
            data = tables.get('sample_data', sample['data'][name])
            delay = (data['timestamp'] - sample['timestamp']) / 1e6
            after = freeze(moment.scene, moment.time + delay)
            np.testing.assert_allclose(table_pose(data['token']), moment.world2global @ view.cam2world, atol=1e-6)
            np.testing.assert_allclose(view.frozen.position, after.position, atol=1e-9)
            points = np.empty_like(at)
            for number in np.unique(body):
                mine = body == number
                yaw = float(after.yaw[number] - before.yaw[number])
                cos, sin = np.cos(yaw), np.sin(yaw)
                turned = local[mine] @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
                points[mine] = turned + moved(moment.world2global, after.position[number][None])
            mount = tables.get('calibrated_sensor', data['calibrated_sensor_token'])
            local_camera = moved(np.linalg.inv(table_pose(data['token'])), points)
            ahead = local_camera[:, 2] > 0.5
            u, v, depth = project(local_camera[ahead], np.array(mount['camera_intrinsic']))
            height, width = view.hits.t.shape
            inside = (u >= 1) & (u < width - 1) & (v >= 1) & (v < height - 1)
            u, v, depth, number = u[inside].astype(int), v[inside].astype(int), depth[inside], body[ahead][inside]
            owner = np.where(view.hits.solid >= 0, view.frozen.owner[np.maximum(view.hits.solid, 0)], GROUND)
            around = [(v + dy, u + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            agree = np.any([np.abs(view.hits.t[where] - depth) < 0.1 + 0.01 * depth for where in around], axis=0)
            same = np.any([owner[where] == number for where in around], axis=0)
            in_image, visible, on_it = in_image + len(u), visible + agree.sum(), on_it + (agree & same).sum()
            exact = agree & (owner[v, u] == number)
            errors.setdefault(name, []).append(np.abs(view.hits.t[v, u] - depth)[exact])
    assert in_image > 10000
    assert visible > 0.9 * in_image  # the rest is hidden from the camera
    assert on_it >= 0.99 * visible
    for name, of_camera in errors.items():
        assert np.median(np.concatenate(of_camera)) < 0.03, name


def test_what_stands_still_is_in_one_place_in_all_keyframes(
    plain: ModuleType, tables: Any, moments: List[Any], table_pose: Any
) -> None:
    """Points of a keyframe, by its own poses, against the solids of the next one."""
    for moment, following in zip(moments, moments[1:]):
        if moment.index != following.index:
            continue
        points = file_points(tables, moment.sample)[:, :3]
        still = np.array([body.speed == 0 for body in moment.scene.bodies])
        points = points[(moment.scan.body < 0) | still[moment.scan.body]]
        world = moved(np.linalg.inv(following.world2global) @ table_pose(moment.sample['data']['LIDAR_TOP']), points)
        apart = np.abs(plain.lateral(moment.scene.road, world[:, 0], world[:, 1]))
        kerb = moment.scene.road.kerb
        level = np.where(apart < kerb, 0.0, KERB_HEIGHT)
        nearest = np.abs(world[:, 2] - level)
        face = (world[:, 2] > -0.05) & (world[:, 2] < KERB_HEIGHT + 0.05)
        nearest = np.where(face, np.minimum(nearest, np.abs(apart - kerb)), nearest)
        frozen = freeze(moment.scene, following.time)
        for index, number, centre, yaw in plain.placed(frozen):
            if not still[number]:
                continue
            solid = frozen.solids[index]
            close = np.nonzero(np.linalg.norm(world - centre, axis=1) < np.linalg.norm(solid.half) + 0.2)[0]
            if close.size:
                local = plain.into(yaw, world[close] - centre)
                nearest[close] = np.minimum(nearest[close], np.abs(plain.distance(solid.kind, solid.half, local)))
        assert len(world) > 15000
        assert (nearest < 0.10).mean() > 0.999
        assert np.median(nearest) < 0.01


def test_labels_are_those_of_the_things_hit(
    plain: ModuleType, tables: Any, moments: List[Any], table_pose: Any
) -> None:
    for moment in moments:
        token = moment.sample['data']['LIDAR_TOP']
        labels = np.fromfile(str(tables.dataroot) + '/' + tables.get('lidarseg', token)['filename'], np.uint8)
        points = file_points(tables, moment.sample)
        assert len(labels) == len(points)
        hit = moment.scan.body >= 0
        bodies = moment.scan.frozen.bodies
        assert [CATEGORIES[label] for label in labels[hit]] == [bodies[k].label for k in moment.scan.body[hit]]
        world = moved(np.linalg.inv(moment.world2global) @ table_pose(token), points[~hit, :3])
        apart = np.abs(plain.lateral(moment.scene.road, world[:, 0], world[:, 1]))
        kerb, sidewalk = moment.scene.road.kerb, moment.scene.road.sidewalk
        for name, where in (
            ('flat.driveable_surface', apart < kerb - 0.1),
            ('flat.sidewalk', (apart > kerb + 0.1) & (apart < sidewalk - 0.1)),
            ('flat.terrain', apart > sidewalk + 0.1),
        ):
            assert where.sum() > 100
            assert (labels[~hit][where] == CATEGORIES.index(name)).all(), name


def test_images_on_disk_are_what_the_cameras_saw(tables: Any, moments: List[Any]) -> None:
    seen = 0
    for moment in moments[::3]:
        for name, view in moment.views.items():
            image = cv2.imread(tables.get_sample_data_path(moment.sample['data'][name]))[..., ::-1]
            assert image.shape == view.image.shape
            assert np.abs(image.astype(int) - view.image).mean() < 4
            assert 10 < image.mean() < 245
            assert image.std() > 10
            # a road user whose whole surface has one paint shows that paint's hue
            owner = np.where(view.hits.solid >= 0, view.hits.solid, -1)
            for solid in np.unique(owner[owner >= 0]):
                paint = np.array(view.frozen.solids[solid].colour)
                where = owner == solid
                if np.diff(np.sort(paint))[1] < 0.2 or where.sum() < 30 or view.frozen.solids[solid].look:
                    continue
                near = np.median(view.hits.t[where]) < 25
                mean = image[where].mean(axis=0)
                if near and mean.max() - mean.min() > 15:
                    assert mean.argmax() == paint.argmax(), (name, solid)
                    seen += 1
    assert seen >= 5


def test_shadows_fall_away_from_the_sun(plain: ModuleType) -> None:
    """Ground that a ray towards the sun leaves through a house is in shadow; ground in the open is not."""
    from geomim.synthetic.shade import _in_shadow, shadow_map

    scene = make_scene(2, 0, 0.0)
    frozen, origin = freeze(scene, 0.0), scene.ego2world(0.0)[:3, 3]
    shadows = shadow_map(frozen, scene.light, origin)
    random = np.random.default_rng(0)
    points = np.column_stack([random.uniform(-40, 40, (600, 2)) + origin[:2], np.zeros(600)])
    rays = np.broadcast_to(scene.light.sun, points.shape)
    houses, anything = np.zeros(600, dtype=bool), np.zeros(600, dtype=bool)
    for index, number, centre, yaw in plain.placed(frozen):
        solid, body = frozen.solids[index], frozen.bodies[number]
        start, ray = plain.into(yaw, points - centre), plain.into(yaw, rays)
        box = np.array(body.size) / 2  # a body's shadow is that of its box, made a little larger here
        whole = plain.into(yaw, points - frozen.position[number] - [0, 0, box[2]])
        shadowed = np.isfinite(plain.enter(plain.BOX, box + 0.4, whole - 2 * plain.NEAR * ray, ray))
        anything |= shadowed | (np.abs(whole) < box + 0.4).all(axis=1)
        if len(body.solids) == 1 and body.size[2] > 3:
            houses |= np.isfinite(plain.enter(plain.BOX, np.array(solid.half) - 0.3, start, ray))
    found = _in_shadow(shadows, points.T, origin)
    assert houses.sum() > 20
    assert found[houses].all()
    assert (~anything).sum() > 100
    assert not found[~anything].any()


def test_a_scan_at_another_time_is_another(moments: List[Any], world: Any) -> None:
    first, second = world.scans[0, 0], world.scans[0, KEYFRAME // 10]
    assert first.points.shape != second.points.shape or not np.array_equal(first.points, second.points)

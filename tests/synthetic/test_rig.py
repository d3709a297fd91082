"""Rigs: poses and quaternions, intrinsics that follow the image size, and files that cannot be, told by their entry."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest
from pyquaternion import Quaternion

from geomim.synthetic.rig import LIDAR, build_rig, pose, quaternion_of, read_rig, rig_names, rotation_matrix

Change = Callable[[Dict[str, Any]], Any]


def test_quaternions_are_those_of_pyquaternion_there_and_back() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(200, 4))
    values[:4] = np.eye(4)
    values[4:8] = [[1e-9, 1, 0, 0], [1e-9, 0, 1, 1], [0, -1, 1e-3, 0], [-1, 0, 0, 1e-7]]
    for value in values:
        rotation = rotation_matrix(value)
        np.testing.assert_allclose(rotation, Quaternion(value).normalised.rotation_matrix, atol=1e-12)
        back = np.array(quaternion_of(rotation))
        assert back[0] >= 0
        np.testing.assert_allclose(np.linalg.norm(back), 1, atol=1e-12)
        np.testing.assert_allclose(rotation_matrix(back), rotation, atol=1e-12)


def test_a_pose_takes_points_of_the_sensor_to_the_vehicle() -> None:
    matrix = pose([np.sqrt(0.5), 0, 0, np.sqrt(0.5)], [1, 2, 3])  # a quarter turn to the left
    np.testing.assert_allclose(matrix @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-12)


def test_the_rigs_that_come_along_are_sound() -> None:
    assert set(rig_names()) == {'five', 'front', 'nuscenes', 'truck'}
    counts = {name: len(build_rig(read_rig(name)).cameras) for name in rig_names()}
    assert counts == {'five': 5, 'front': 1, 'nuscenes': 6, 'truck': 6}
    for name in rig_names():
        rig = build_rig(read_rig(name))
        assert rig.channels[-1] == LIDAR
        assert len(rig.lidar.elevations) == 32
        assert (np.diff(rig.lidar.elevations) > 0).all()
        for camera in rig.cameras:
            tilt, height = (-10, 4.0) if name == 'truck' else (0, 1.75)  # degrees, metres
            rise = np.rad2deg(np.arcsin(camera.cam2ego[2, 2]))  # of the optical axis
            assert rise == pytest.approx(tilt, abs=1.7)
            assert camera.cam2ego[2, 1] < -0.99 * np.cos(np.deg2rad(tilt))  # the picture stands upright
            assert camera.cam2ego[2, 3] == pytest.approx(height, abs=0.75)
            assert np.linalg.det(camera.cam2ego) == pytest.approx(1)


def test_nuscenes_cameras_look_where_their_names_say() -> None:
    rig = build_rig(read_rig('nuscenes'))
    bearings = {camera.name: np.rad2deg(np.arctan2(*camera.cam2ego[[1, 0], 2])) for camera in rig.cameras}
    expected = dict(FRONT=0, FRONT_LEFT=55, FRONT_RIGHT=-55, BACK_LEFT=110, BACK_RIGHT=-110, BACK=180)
    assert {f'CAM_{name}' for name in expected} == set(bearings)
    for name, bearing in expected.items():
        assert abs((bearings[f'CAM_{name}'] - bearing + 180) % 360 - 180) < 5, name
    assert np.rad2deg(np.arctan2(*rig.lidar.lidar2ego[[1, 0], 1])) == pytest.approx(0, abs=2)  # the LiDAR's y is ahead


@pytest.mark.parametrize('size', [(113, 200), (225, 400), (450, 1600), (900, 1600)])
def test_intrinsics_follow_the_image_size(size: Any) -> None:
    whole = {camera.name: camera for camera in build_rig(read_rig('nuscenes')).cameras}
    point = np.array([0.7, -0.3, 5.0])
    for camera in build_rig(read_rig('nuscenes'), image_width=size[1], image_height=size[0]).cameras:
        assert camera.size == size
        pixels = [matrix @ point / point[2] for matrix in (camera.intrinsics, whole[camera.name].intrinsics)]
        np.testing.assert_allclose(pixels[0][0] / size[1], pixels[1][0] / 1600, atol=1e-9)
        np.testing.assert_allclose(pixels[0][1] / size[0], pixels[1][1] / 900, atol=1e-9)
        np.testing.assert_array_equal(camera.cam2ego, whole[camera.name].cam2ego)


def drop(key: str) -> Change:
    return lambda entry: entry.pop(key)


def put(key: str, value: Any) -> Change:
    return lambda entry: entry.__setitem__(key, value)


@pytest.mark.parametrize(
    'change, words',
    [
        (drop('rotation'), ['camera CAM_FRONT', '"rotation"', 'translation']),
        (drop('height'), ['camera CAM_FRONT', '"height"']),
        (put('camera_intrinsic', [[1, 0], [0, 1]]), ['camera CAM_FRONT', '"camera_intrinsic"', '(3, 3)', '[[1, 0], [0, 1]]']),
        (put('camera_intrinsic', [[1, 0, 0], [0, 1]]), ['camera CAM_FRONT', '"camera_intrinsic"', '(3, 3)']),
        (put('camera_intrinsic', [[-5, 0, 2], [0, 5, 2], [0, 0, 1]]), ['camera CAM_FRONT', 'focal lengths', '-5']),
        (put('camera_intrinsic', [[5, 1, 2], [0, 5, 2], [0, 0, 1]]), ['camera CAM_FRONT', '"camera_intrinsic"', 'skew']),
        (put('camera_intrinsic', [[5, 0, 2], [0, 5, 2], [0, 0, 2]]), ['camera CAM_FRONT', '"camera_intrinsic"']),
        (put('rotation', [1, 0, 0, 1]), ['camera CAM_FRONT', '"rotation"', 'unit quaternion', '[1.0, 0.0, 0.0, 1.0]']),
        (put('rotation', [1, 0, 0]), ['camera CAM_FRONT', '"rotation"', '(4,)', '[1, 0, 0]']),
        (put('translation', [0, 0, float('nan')]), ['camera CAM_FRONT', '"translation"', 'finite', 'nan']),
        (put('translation', 'near'), ['camera CAM_FRONT', '"translation"', "'near'"]),
        (put('height', 0), ['camera CAM_FRONT', 'size 0 x 1600']),
        (put('delay', 'late'), ['camera CAM_FRONT', '"delay"', "'late'"]),
        (put('delay', float('nan')), ['camera CAM_FRONT', '"delay"', 'nan']),
    ],
)  # fmt: skip
def test_a_camera_that_cannot_be_is_named_with_its_entry(change: Change, words: Any) -> None:
    record = copy.deepcopy(read_rig('nuscenes'))
    change(record['cameras']['CAM_FRONT'])
    with pytest.raises(ValueError, match='rig') as error:
        build_rig(record)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    'change, words',
    [
        (drop('cameras'), ['"cameras"', 'at least one']),
        (put('cameras', {}), ['"cameras"', 'at least one']),
        (put('cameras', {'FRONT': {}}), ['camera FRONT', 'CAM_']),
        (put('cameras', {'CAM_FRONT': 7}), ['camera CAM_FRONT', '7']),
        (drop('lidar'), ['"lidar"']),
        (lambda record: record['lidar'].pop('range'), ['rig, lidar', '"range"']),
        (lambda record: record['lidar'].update(range=0), ['rig, lidar', '"range"', '0']),
        (lambda record: record['lidar'].update(rings=300), ['rig, lidar', '1 to 255 rings', '300']),
        (lambda record: record['lidar'].update(columns=2), ['rig, lidar', '8 columns', '2']),
        (lambda record: record['lidar'].update(elevation_degrees=[10, -30]), ['rig, lidar', '"elevation_degrees"']),
        (lambda record: record['lidar'].update(rotation=[2, 0, 0, 0]), ['rig, lidar', 'unit quaternion']),
    ],
)  # fmt: skip
def test_a_rig_that_cannot_be_is_told_with_its_entry(change: Change, words: Any) -> None:
    record = copy.deepcopy(read_rig('nuscenes'))
    change(record)
    with pytest.raises(ValueError, match='rig') as error:
        build_rig(record)
    for word in words:
        assert word in str(error.value)


def test_files_that_are_no_rig_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='nowhere.json.* neither a file nor one of five, front, nuscenes'):
        read_rig('nowhere.json')
    for content, message in (('{"cameras": ', 'broken.json is no JSON'), ('[1, 2]', 'got a list')):
        (tmp_path / 'broken.json').write_text(content)
        with pytest.raises(ValueError, match=message):
            read_rig(tmp_path / 'broken.json')


def test_a_rig_of_ones_own_is_read_from_a_file(tmp_path: Path) -> None:
    record = read_rig('front')
    record['lidar'].update(rings=1, columns=64)
    (tmp_path / 'own.json').write_text(json.dumps(record))
    rig = build_rig(read_rig(tmp_path / 'own.json'))
    assert rig.channels == ('CAM_FRONT', LIDAR)
    assert (len(rig.lidar.elevations), rig.lidar.columns) == (1, 64)

"""A rig without a LiDAR: info files, training samples, and what needs points after all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest

pytest.importorskip('mmdet3d')

import mmengine
from pyquaternion import Quaternion

from geomim.__main__ import main

from ...helpers import run_quietly
from ..conftest import without_lidar

Build = Callable[..., Any]


def rows_of(world: Path, table: str) -> Dict[str, Dict[str, Any]]:
    return {row['token']: row for row in json.loads((world / 'v1.0-trainval' / f'{table}.json').read_text())}


def pose(row: Dict[str, Any]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Quaternion(row['rotation']).rotation_matrix, row['translation']
    return matrix


def check_infos(world: Path, name: str) -> int:
    """Boxes are in the ego frame of the first camera's moment, and every camera has its place there; returns their number."""
    annotations, images, poses, mounts = (
        rows_of(world, table) for table in ('sample_annotation', 'sample_data', 'ego_pose', 'calibrated_sensor')
    )
    boxes = 0
    for info in mmengine.load(world / name)['data_list']:
        np.testing.assert_array_equal(info['lidar_points'].pop('lidar2ego'), np.eye(4))
        assert info['lidar_points'] == {}
        assert 'lidar_sweeps' not in info
        ego2global = np.array(info['ego2global'])
        starts = [poses[images[camera['sample_data_token']]['ego_pose_token']] for camera in info['images'].values()]
        assert any(np.allclose(pose(row), ego2global, atol=1e-9) for row in starts)
        for camera, row in zip(info['images'].values(), starts):
            mount = mounts[images[camera['sample_data_token']]['calibrated_sensor_token']]
            expected = np.linalg.inv(pose(row) @ pose(mount)) @ ego2global
            np.testing.assert_allclose(camera['lidar2cam'], expected, atol=2e-4)
        centres = np.array([row['translation'] for row in annotations.values() if row['sample_token'] == info['token']])
        expected = (np.c_[centres, np.ones(len(centres))] @ np.linalg.inv(ego2global).T)[:, :3]
        found = np.array([instance['bbox_3d'][:3] for instance in info['instances']])
        np.testing.assert_allclose(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)], atol=1e-3)
        assert all(instance['bbox_3d_isvalid'] for instance in info['instances'])
        boxes += len(found)
    return boxes


def test_info_files_of_six_cameras(lidarless_world: Path) -> None:
    assert check_infos(lidarless_world, 'bevdet_infos_train.pkl') > 50


def test_info_files_of_other_cameras(small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    world = without_lidar(small_world, tmp_path / 'world', ['CAM_BACK', 'CAM_FRONT'])
    run_quietly(['-m', 'geomim', 'infos', world, '--for', 'mmdet3d'])
    assert check_infos(world, 'nuscenes_infos_val.pkl') > 20
    assert main(['infos', str(world), '--for', 'waymo']) == 2
    assert 'no LiDAR, of which Waymo files name the points' in capsys.readouterr().err
    path = world / 'v1.0-trainval' / 'sensor.json'
    path.write_text(
        json.dumps([*json.loads(path.read_text()), dict(token='a', channel='LIDAR_ROOF', modality='lidar')])
    )
    assert main(['infos', str(world), '--force', '--for', 'mmdet3d']) == 2
    assert "sensor.json has the LiDARs ['LIDAR_ROOF'], mmdet3d's converter reads LIDAR_TOP" in capsys.readouterr().err


def test_training_samples_have_boxes(lidarless_world: Path, make_dataset: Build, bevdet_pipeline: Build) -> None:
    settings = dict(data_root=f'{lidarless_world}/', multi_adj_frame_id_cfg=(1, 2, 1))
    data = make_dataset(pipeline=bevdet_pipeline(frames=2, depth=False), **settings)
    packed = data[1]
    assert tuple(packed['inputs']['images'].shape[:2]) == (2, 6)
    assert len(packed['data_samples'].gt_instances_3d.bboxes_3d) > 15
    assert 'points' not in packed['inputs']
    with pytest.raises(ValueError, match='has no LiDAR, of which LoadPointsFromFile in the pipeline reads; BEVDet and'):
        make_dataset(pipeline=bevdet_pipeline(frames=2, depth='points'), **settings)

"""Ego poses as far away as UTM coordinates, which float32 holds to decimetres only: the record's take their place."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Dict, Optional, Tuple

import numpy as np
import pytest
import torch
from mmdet3d.core.points import LiDARPoints
from mmdet3d.datasets.pipelines import Compose

import geomim.plugin

from .samples import CAMERAS, img_inputs, matrix, rig_of, sample_info, yaw

UTM = (500123.37, 4600456.81)
ORIGINS = pytest.mark.parametrize('origin', [(0.0, 0.0), (411.2, 1180.4), UTM, (-UTM[1], 9.9e6)], ids=str)
CHANGE = matrix(yaw(0.02), [0.3, -0.2, 0.1])  # of the extrinsics, by a step


def exact(info: Dict[str, Any], camera: str, change: Optional[np.ndarray] = None) -> np.ndarray:
    """(4, 4): camera to LiDAR, in float64, of a record whose large numbers were taken away first."""
    origin = np.asarray(info['ego2global_translation'])
    poses = [
        matrix(view['ego2global_rotation'], np.asarray(view['ego2global_translation']) - origin)
        for view in (info, info['cams'][camera])
    ]
    lidar = poses[0] @ matrix(info['lidar2ego_rotation'], info['lidar2ego_translation'])
    view = info['cams'][camera]
    moved = poses[1] if change is None else poses[1] @ change
    return np.linalg.inv(lidar) @ moved @ matrix(view['sensor2ego_rotation'], view['sensor2ego_translation'])


def sample(info: Dict[str, Any], cameras: Tuple[str, ...] = CAMERAS) -> Dict[str, Any]:
    points = LiDARPoints(torch.rand(50, 5) + 3, points_dim=5)
    return dict(curr=info, cam_names=cameras, points=points, img_inputs=img_inputs(info, cameras, torch.eye(3)))


def through(results: Dict[str, Any]) -> Dict[str, Any]:
    return Compose([dict(type='GeoMIMLidarFrame')])(results)


def assert_exact(results: Dict[str, Any], change: Optional[np.ndarray] = None) -> None:
    found = rig_of(results).cam2bev[0]
    assert found.dtype == torch.float32
    for index, camera in enumerate(results['cam_names']):
        np.testing.assert_allclose(found[index].numpy(), exact(results['curr'], camera, change), atol=2e-5)


@ORIGINS
@pytest.mark.parametrize('cameras', [CAMERAS, CAMERAS[3:] + CAMERAS[:3], CAMERAS[2:4]], ids=len)
def test_cameras_are_exact_wherever_the_recording_was_made(
    origin: Tuple[float, float], cameras: Tuple[str, ...]
) -> None:
    info = sample_info(*origin)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        results = through(sample(info, cameras))
    count = len(cameras)
    batch = [value[None] for value in results['img_inputs']]
    found = geomim.plugin.rig.read_img_inputs(batch, results['lidar2key'][None], count).rig.cam2bev[0]
    for index, camera in enumerate(cameras):
        np.testing.assert_allclose(found[index].numpy(), exact(info, camera), atol=2e-5)


def frames(info: Dict[str, Any], adjacent: Dict[str, Any]) -> Dict[str, Any]:
    """A sample of two frames as PrepareImageInputs with ``sequential`` lays it out."""
    now, before = (img_inputs(one, CAMERAS, torch.eye(3)) for one in (info, adjacent))
    images = torch.stack([now[0], before[0]], dim=1).flatten(0, 1)
    both = [torch.cat([one, other]) for one, other in zip(now[1:6], before[1:6])]
    return dict(sample(info), adjacent=[adjacent], img_inputs=(images, *both, torch.eye(3)))


def test_other_frames_stay_where_they_are_beside_the_key_frame() -> None:
    info, adjacent = sample_info(*UTM), sample_info(UTM[0] - 4.3, UTM[1] + 2.1)
    results = through(frames(info, adjacent))
    assert_exact(results)
    poses = results['img_inputs'][2].double().numpy()
    assert len(poses) == 2 * len(CAMERAS)
    wanted = [
        matrix(
            one['cams'][camera]['ego2global_rotation'],
            np.subtract(one['cams'][camera]['ego2global_translation'], (*UTM, 0)),
        )
        for one in (info, adjacent)
        for camera in CAMERAS
    ]
    np.testing.assert_allclose(poses, np.linalg.inv(wanted[0]) @ wanted, atol=2e-5)


def test_what_was_given_is_not_changed() -> None:
    given = sample(sample_info(*UTM))
    before = copy.deepcopy(given)
    through(dict(given))
    for one, other in zip(given['img_inputs'], before['img_inputs']):
        assert torch.equal(one, other)
    assert given['curr'] == before['curr']


def changed(info: Dict[str, Any], dtype: torch.dtype) -> Dict[str, Any]:
    """A sample whose extrinsics a step has changed on purpose."""
    results = sample(info)
    entries = list(results['img_inputs'])
    poses = [
        matrix(info['cams'][name]['ego2global_rotation'], info['cams'][name]['ego2global_translation'])
        for name in CAMERAS
    ]
    entries[2] = torch.from_numpy(np.stack(poses) @ CHANGE).to(dtype)
    return dict(results, img_inputs=tuple(entries))


@pytest.mark.parametrize('dtype, origin', [(torch.float32, (411.2, 1180.4)), (torch.float64, UTM)], ids=str)
def test_poses_that_a_step_has_changed_stay_changed(dtype: torch.dtype, origin: Tuple[float, float]) -> None:
    info = sample_info(*origin)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        results = through(changed(info, dtype))
    key = matrix(info['cams']['CAM_0']['ego2global_rotation'], info['cams']['CAM_0']['ego2global_translation'])
    relative = np.linalg.inv(CHANGE) @ np.linalg.inv(key)
    for index, camera in enumerate(CAMERAS):
        view = info['cams'][camera]
        wanted = relative @ matrix(view['ego2global_rotation'], view['ego2global_translation']) @ CHANGE
        np.testing.assert_allclose(results['img_inputs'][2][index].numpy(), wanted, atol=2e-4)


def test_changed_poses_without_their_digits_are_named() -> None:
    message = (
        r"ego2globals of CAM_0 in img_inputs, another pose than the sample's record has, is 4\.6e\+06 m in float32, whose numbers lie "
        r'0\.5 m apart there: .*take out the step that changes it'
    )
    with pytest.warns(UserWarning, match=message):
        through(changed(sample_info(*UTM), torch.float32))


@pytest.mark.parametrize('where', ['the LiDAR', 'CAM_3'])
def test_a_record_without_its_digits_is_named(where: str) -> None:
    info = sample_info(*UTM)
    view = info if where == 'the LiDAR' else info['cams'][where]
    view['ego2global_translation'] = np.asarray(view['ego2global_translation'], dtype=np.float32)
    with pytest.warns(UserWarning, match=r'ego2global_translation of the info file is 4\.6e\+06 m in float32.*float64'):
        through(sample(info))


def test_a_pose_that_is_not_in_the_record_is_named() -> None:
    info = sample_info()
    del info['cams']['CAM_0']['ego2global_translation']
    results = sample(sample_info())
    with pytest.raises(ValueError, match='sample keyframe, CAM_0: the info file has no ego2global_translation'):
        through(dict(results, curr=info))

"""An object lights up one cell in the teacher's map and in the student's splat, from an info file's poses to the BEV."""

from __future__ import annotations

import warnings
from typing import Any, Dict, Tuple

import numpy as np
import pytest
import torch
from mmdet3d.core.points import LiDARPoints
from mmdet3d.datasets.pipelines import Compose
from mmdet3d.models.builder import DETECTORS
from torch import Tensor

import geomim.plugin  # noqa: F401
from geomim import CameraRig, DepthBins, ViewTransform, ViewTransformConfig
from geomim.teachers.base import BEVTeacher, expected_cell
from geomim.teachers.probe import lit_cell, object_points

from .samples import CAMERAS, IMAGE_SIZE, bev_augmentation, img_inputs, rig_of, sample_info, seen

PLACES = ((4.5, 1.5), (2.1, -3.9))  # in the LiDAR frame, neither on an axis nor on a diagonal
BACKGROUND = (-5.5, -0.6)


def through_the_step(info: Dict[str, Any], names: Tuple[str, ...], cloud: Tensor, bda: Tensor) -> Dict[str, Any]:
    results = dict(
        curr=info, cam_names=names, points=LiDARPoints(cloud, points_dim=5), img_inputs=img_inputs(info, names, bda)
    )
    return Compose([dict(type='GeoMIMLidarFrame')])(results)


def seen_at(info: Dict[str, Any], names: Tuple[str, ...], place: np.ndarray) -> Tuple[int, float, float, float]:
    """(camera, u, v, depth) of a LiDAR position in the first image that shows it."""
    pixels, depths = seen(info, names, place[None])
    for index, ((u, v), depth) in enumerate(zip(pixels[:, 0], depths[:, 0])):
        if depth > 0.5 and 0 <= u < IMAGE_SIZE[1] and 0 <= v < IMAGE_SIZE[0]:
            return index, u, v, depth
    raise AssertionError('no camera sees the object')


def student_cell(teacher: BEVTeacher, rig: CameraRig, seen: Tuple[int, float, float, float]) -> Tuple[int, int]:
    """The cell that the feature of one pixel at one depth is splatted to."""
    camera, u, v, depth = seen
    bins = DepthBins(0.5, 20.5, 0.25)
    view = ViewTransform(
        4,
        ViewTransformConfig(image_size=IMAGE_SIZE, grid=teacher.record.grid, depth_bins=bins, channels=1, downsample=1),
    )
    rows, cols = view.config.feature_size
    row, col = round(v / (IMAGE_SIZE[0] - 1) * (rows - 1)), round(u / (IMAGE_SIZE[1] - 1) * (cols - 1))
    probability = torch.zeros(rig.num_cams, bins.count, rows, cols)
    probability[camera, int((depth - bins.lower) / bins.step + 0.5), row, col] = 1
    bev = view.splat(probability, torch.ones(rig.num_cams, 1, rows, cols), view.plan(rig))[0, 0]
    assert float(bev.max()) > 0
    peak = int(bev.argmax())
    return peak // bev.shape[1], peak % bev.shape[1]


def near(cell: Tuple[int, int], other: Tuple[int, int]) -> bool:
    return max(abs(cell[0] - other[0]), abs(cell[1] - other[1])) <= 1


@pytest.fixture(scope='module')
def teacher() -> BEVTeacher:
    """Pillars of 0.6 m; 24 x 16 of them, so that swapped axes show."""
    span, size = [-7.2, -4.8, -5.0, 7.2, 4.8, 3.0], [0.6, 0.6, 8.0]
    detector = dict(
        type='CenterPoint',
        pts_voxel_layer=dict(max_num_points=20, voxel_size=size, max_voxels=(400, 400), point_cloud_range=span),
        pts_voxel_encoder=dict(
            type='PillarFeatureNet', in_channels=5, feat_channels=[32], voxel_size=size, point_cloud_range=span,
            norm_cfg=dict(type='BN1d'), legacy=False,
        ),
        pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=32, output_shape=(16, 24)),
    )  # fmt: skip
    return DETECTORS.build(dict(type='GeoMIMLidarTeacher', detector=detector, tap='pts_middle_encoder'))


@pytest.mark.parametrize('place', PLACES, ids=str)
@pytest.mark.parametrize('flips', [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize('degrees, scale', [(0.0, 1.0), (22.5, 1.05), (-17.0, 0.95)])
@pytest.mark.parametrize('first', [0, 4])
def test_student_and_teacher_light_up_the_same_cell(
    teacher: BEVTeacher, first: int, degrees: float, scale: float, flips: Tuple[bool, bool], place: Tuple[float, float]
) -> None:
    info, names = sample_info(), (*CAMERAS[first:], *CAMERAS[:first])
    bda = bev_augmentation(degrees, scale, flips)
    scene, lone = object_points(*place, 0.0, 5, size=0.5), object_points(*BACKGROUND, 0.0, 5, size=0.5)
    results = through_the_step(info, names, scene, bda)
    moved = results['points'].tensor
    x, y = (bda.numpy().astype(np.float64) @ [*place, 0.0])[:2]
    expected = expected_cell(teacher.record, x, y)
    background = through_the_step(info, names, lone, bda)['points'].tensor
    assert near(lit_cell(teacher, background, moved), expected)
    seen = seen_at(info, names, np.array([*place, 0.0]))
    assert near(student_cell(teacher, rig_of(results), seen), expected)


def test_points_that_are_left_as_loaded_lie_elsewhere(teacher: BEVTeacher) -> None:
    """The check above can fail: without the augmentation of the points, or with another frame of the cameras."""
    info, bda = sample_info(), bev_augmentation(22.5, 1.05, (False, False))
    scene, lone = (object_points(*where, 0.0, 5, size=0.5) for where in (PLACES[0], BACKGROUND))
    results = through_the_step(info, CAMERAS, scene, bda)
    seen = seen_at(info, CAMERAS, np.array([*PLACES[0], 0.0]))
    assert not near(lit_cell(teacher, lone, scene), student_cell(teacher, rig_of(results), seen))
    in_ego = {**results, 'lidar2key': torch.eye(4)}
    assert not near(student_cell(teacher, rig_of(in_ego), seen), student_cell(teacher, rig_of(results), seen))


def test_the_step_leaves_what_it_was_given_and_other_features_alone() -> None:
    info, bda = sample_info(), bev_augmentation(22.5, 1.05, (True, False))
    source = LiDARPoints(torch.rand(7, 5), points_dim=5)
    before = source.tensor.clone()
    results = dict(curr=info, cam_names=CAMERAS, points=source, img_inputs=img_inputs(info, CAMERAS, bda))
    moved = Compose([dict(type='GeoMIMLidarFrame')])(results)['points']
    assert isinstance(moved, LiDARPoints)
    assert torch.equal(source.tensor, before)
    assert torch.equal(moved.tensor[:, 3:], before[:, 3:])
    by_hand = before[:, :3].double() @ bda.double().T
    torch.testing.assert_close(moved.tensor[:, :3].double(), by_hand, atol=1e-5, rtol=0)


def test_the_step_refuses_what_no_step_after_it_looks_at() -> None:
    info = dict(sample_info(), token='abc')
    results = dict(curr=info, cam_names=CAMERAS, img_inputs=img_inputs(info, CAMERAS, torch.eye(3)))
    step = Compose([dict(type='GeoMIMLidarFrame')])
    for cloud, message in (
        (torch.zeros(0, 5), 'sample abc: points: the point cloud is empty'),
        (torch.full((3, 5), float('nan')), 'sample abc: points: 3 of 3 points are not finite'),
    ):
        with pytest.raises(ValueError, match=message):
            step(dict(results, points=LiDARPoints(cloud, points_dim=5)))
    results['img_inputs'][3][1, 0, 0] = float('nan')
    with pytest.raises(ValueError, match='sample abc: img_inputs: intrins has values that are not finite'):
        step(dict(results, points=LiDARPoints(torch.rand(7, 5), points_dim=5)))


def four_features(rows: int = 2000) -> Tensor:
    """Points of 4 features each, read as 5."""
    low, high = torch.tensor([-40.0, -40, -2, 0]), torch.tensor([40.0, 40, 1, 255])
    return (low + torch.rand(rows // 4 * 5, 4) * (high - low)).view(-1, 5)


@pytest.mark.parametrize(
    'entry, change, message',
    [
        (1, lambda pose: pose * 0, 'camera CAM_2: sensor2egos has a last row other than 0 0 0 1'),
        (1, lambda pose: pose @ torch.diag(torch.tensor([2.0, 2, 2, 1])), 'camera CAM_2: sensor2egos is scaled by 2'),
        (1, lambda pose: pose @ torch.diag(torch.tensor([1.0, -1, 1, 1])), 'camera CAM_2: sensor2egos is left-handed'),
        (1, lambda pose: pose.T.clone(), 'camera CAM_2: sensor2egos has a last row'),
        (2, lambda pose: pose * 0, 'camera CAM_2: ego2globals? has a last row'),
        (
            2,
            lambda pose: pose + torch.eye(4)[0][:, None] * torch.eye(4)[3] * 3000,
            r'camera CAM_2: ego2global lies 30\d\d m',
        ),
        (3, lambda _: torch.eye(3), 'camera CAM_2: intrins is the identity'),
    ],
)
@pytest.mark.parametrize('first', [0, 2])
def test_geometry_that_cannot_be_is_named(entry: int, change: Any, message: str, first: int) -> None:
    """Of the camera whose ego frame is the key one, too."""
    info, names = dict(sample_info(), token='abc'), (*CAMERAS[first:], *CAMERAS[:first])
    results = dict(curr=info, cam_names=names, img_inputs=img_inputs(info, names, torch.eye(3)))
    results['img_inputs'][entry][names.index('CAM_2')] = change(results['img_inputs'][entry][names.index('CAM_2')])
    with pytest.raises(ValueError, match=f'sample abc, {message}'):
        Compose([dict(type='GeoMIMLidarFrame')])(dict(results, points=LiDARPoints(torch.rand(7, 5), points_dim=5)))


@pytest.mark.parametrize(
    'cloud, message',
    [
        (torch.rand(9, 5) + 5000, 'sample abc: points: no point lies within 200 m of the LiDAR'),
        (four_features(), r'sample abc: points of a\.bin: read as points of 5 features.*load_dim=4'),
    ],
)
def test_clouds_that_teach_nothing_are_refused(cloud: Tensor, message: str) -> None:
    info = dict(sample_info(), token='abc', lidar_path='a.bin')
    with pytest.raises(ValueError, match=message):
        through_the_step(info, CAMERAS, cloud, torch.eye(3))


@pytest.mark.parametrize('rotation', [[0.0] * 4, [float('nan'), 0, 0, 1]])
def test_a_quaternion_that_is_no_rotation_is_named(rotation: Any) -> None:
    info = dict(sample_info(), token='abc')
    inputs = img_inputs(info, CAMERAS, torch.eye(3))
    info['cams']['CAM_3']['ego2global_rotation'] = rotation
    results = dict(curr=info, cam_names=CAMERAS, img_inputs=inputs, points=LiDARPoints(torch.rand(7, 5), points_dim=5))
    with pytest.raises(ValueError, match='sample abc, CAM_3: ego2global_rotation of the info file is .* no rotation'):
        Compose([dict(type='GeoMIMLidarFrame')])(results)


def test_an_inverted_pose_is_told_once() -> None:
    info = dict(sample_info(), token='abc')
    inputs = img_inputs(info, CAMERAS, torch.eye(3))
    inputs[1][0] = torch.linalg.inv(inputs[1][0])
    step = Compose([dict(type='GeoMIMLidarFrame')])
    messages = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            step(
                dict(
                    curr=info, cam_names=CAMERAS, img_inputs=inputs, points=LiDARPoints(torch.rand(7, 5), points_dim=5)
                )
            )
        messages.append([str(one.message) for one in caught if 'doubtful data' in str(one.message)])
    assert [len(each) for each in messages] == [1, 0]
    assert messages[0][0].startswith('doubtful data: sample abc, camera CAM_0: its pose turns the image')


def test_the_step_drops_points_that_are_not_finite_and_counts_them_where_it_is_told_to() -> None:
    info, cloud = dict(sample_info(), token='abc'), torch.rand(6, 5)
    cloud[1, 2], cloud[4, 4] = float('nan'), float('inf')
    results = dict(curr=info, cam_names=CAMERAS, img_inputs=img_inputs(info, CAMERAS, torch.eye(3)))
    step = Compose([dict(type='GeoMIMLidarFrame', drop_nonfinite=True)])
    with pytest.warns(UserWarning, match='sample abc: points: 2 of 6 are not finite and dropped'):
        checked = step(dict(results, points=LiDARPoints(cloud, points_dim=5)))
    assert torch.equal(checked['points'].tensor, cloud[[0, 2, 3, 5]])
    assert checked['dropped_points'] == 2
    with pytest.raises(ValueError, match='sample abc: points: none of the 3 points is finite'):
        step(dict(results, points=LiDARPoints(torch.full((3, 5), float('nan')), points_dim=5)))


def test_the_key_camera_does_not_matter() -> None:
    """Whichever camera comes first, a camera's place in the LiDAR frame is its own."""
    info, bda, cloud = sample_info(), torch.eye(3), torch.zeros(1, 5)
    usual = rig_of(through_the_step(info, CAMERAS, cloud, bda)).cam2bev
    order = (3, 1, 0, 5, 2, 4)
    other = rig_of(through_the_step(info, tuple(CAMERAS[index] for index in order), cloud, bda)).cam2bev
    torch.testing.assert_close(other, usual[:, list(order)], atol=1e-3, rtol=0)


def test_the_step_names_what_is_missing_before_it() -> None:
    step = Compose([dict(type='GeoMIMLidarFrame')])
    with pytest.raises(ValueError, match='no img_inputs .* PrepareImageInputs'):
        step(dict(points=None, curr={}))
    with pytest.raises(ValueError, match='behind LoadAnnotationsBEVDepth'):
        step(dict(points=None, curr={}, img_inputs=(0,) * 6))
    points = LiDARPoints(torch.zeros(1, 5), points_dim=5)
    with pytest.raises(ValueError, match='sample s: the info file has no lidar2ego_rotation'):
        step(dict(points=points, curr=dict(token='s'), img_inputs=(torch.eye(3),) * 7, cam_names=['CAM_FRONT']))

"""Whatever a pipeline does to the points before GeoMIMLidarFrame, they end where the images show them, or the sample is refused.

The steps that load, gather, shuffle and move points are mmdet3d's own, but for stand-ins of those that only BEVDet codebases have.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import pytest
import torch
from mmcv.utils import build_from_cfg
from mmdet3d.core.points import LiDARPoints
from mmdet3d.datasets.builder import PIPELINES
from mmdet3d.datasets.pipelines import Compose
from torch import Tensor

import geomim.plugin  # noqa: F401
from geomim.method.depth import project_points

from .samples import CAMERAS, bev_augmentation, img_inputs, matrix, rig_of, sample_info, seen


@PIPELINES.register_module(name='ImagesForTests', force=True)
class Images:
    """PrepareImageInputs without images: the six entries."""

    def __call__(self, results: Dict[str, Any]) -> Dict[str, Any]:
        cameras = tuple(results['cam_names'])
        return {**results, 'img_inputs': img_inputs(results['curr'], cameras, torch.eye(3))[:6]}


@PIPELINES.register_module(name='AugmentForTests', force=True)
class Augment:
    """LoadAnnotationsBEVDepth (3 x 3, points stay), or BEVAug (4 x 4) which moves the points that are there in BEVDet dev3.0."""

    def __init__(self, bda: Sequence[Sequence[float]], moves: bool) -> None:
        self.bda, self.moves = torch.tensor(bda), moves

    def __call__(self, results: Dict[str, Any]) -> Dict[str, Any]:
        if self.moves and 'points' in results:
            xyz = results['points'].tensor
            xyz[:, :3] = (self.bda[:3, :3] @ xyz[:, :3].unsqueeze(-1)).squeeze(-1) + self.bda[:3, 3]
            results['points'] = results['points'].new_point(xyz)
        return {**results, 'img_inputs': (*results['img_inputs'], self.bda)}


@PIPELINES.register_module(name='ToEgoForTests', force=True)
class ToEgo:
    """The LiDAR's own ego frame, or in float32 that of a camera's moment, as in BEVDet dev3.0."""

    def __init__(self, camera: Optional[str] = None) -> None:
        self.camera = camera

    def __call__(self, results: Dict[str, Any]) -> Dict[str, Any]:
        info = results['curr']
        move = matrix(info['lidar2ego_rotation'], info['lidar2ego_translation']).astype(np.float32)
        if self.camera is not None:
            lidar, view = (
                matrix(entry['ego2global_rotation'], entry['ego2global_translation']).astype(np.float32)
                for entry in (info, info['cams'][self.camera])
            )
            move = np.linalg.inv(view) @ lidar @ move
        xyz = results['points'].tensor.numpy()
        xyz[:, :3] = xyz[:, :3] @ move[:3, :3].T + move[:3, 3]
        results['points'] = results['points'].new_point(xyz)
        return results


IMAGES = dict(type='ImagesForTests')
LOAD = dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5)
SWEEPS = dict(
    type='LoadPointsFromMultiSweeps', sweeps_num=9, use_dim=[0, 1, 2, 3, 4], pad_empty_sweeps=True, remove_close=True
)
SHUFFLE = dict(type='PointShuffle')


def square(bda: Tensor, shift: Sequence[float] = (0.5, -0.4, 0.3)) -> Tensor:
    matrix = torch.eye(4)
    matrix[:3, :3], matrix[:3, 3] = bda, torch.tensor(shift)
    return matrix


TURNED = bev_augmentation(22.5, 1.05, (True, False))
STAYS_3 = dict(type='AugmentForTests', bda=TURNED.tolist(), moves=False)
STAYS_4 = dict(type='AugmentForTests', bda=square(TURNED).tolist(), moves=False)
MOVES = dict(type='AugmentForTests', bda=square(TURNED).tolist(), moves=True)
EGO, EGO_2 = dict(type='ToEgoForTests'), dict(type='ToEgoForTests', camera='CAM_2')
BEFORE = {  # what stands before the step
    'LoadAnnotationsBEVDepth': [IMAGES, STAYS_3, LOAD],
    'points before LoadAnnotationsBEVDepth': [LOAD, IMAGES, STAYS_3],
    'BEVAug before the points': [IMAGES, MOVES, LOAD],
    'BEVAug that moves points': [LOAD, IMAGES, MOVES],
    'BEVAug that leaves points': [LOAD, IMAGES, STAYS_4],
    'ego frame': [LOAD, EGO, IMAGES, STAYS_4],
    'ego frame of a camera': [LOAD, EGO_2, IMAGES, STAYS_3],
    'ego frame, moved': [LOAD, EGO, IMAGES, MOVES],
    'ego frame of a camera, moved': [LOAD, EGO_2, IMAGES, MOVES],
    'ego frame after the augmentation was drawn': [IMAGES, MOVES, LOAD, EGO_2],
}
cases = pytest.mark.parametrize('before', BEFORE.values(), ids=BEFORE)


def recorded(count: int = 3000, seed: int = 7) -> np.ndarray:
    """(M, 5) float32; whole intensities, which number the points, and rings."""
    generator = np.random.default_rng(seed)
    cloud = np.empty((count, 5), dtype=np.float32)
    cloud[:, :3] = generator.uniform((-40, -40, -2), (40, 40, 3), (count, 3))
    cloud[:, 3], cloud[:, 4] = np.arange(count), generator.integers(0, 32, count)
    return cloud


@pytest.fixture
def sample(tmp_path: Path) -> Dict[str, Any]:
    """What a BEVDet dataset gives."""
    name = str(tmp_path / 'lidar.bin')
    recorded().tofile(name)
    return dict(
        curr=dict(sample_info(), token='abc', lidar_path=name),
        pts_filename=name,
        sweeps=[],
        timestamp=0.0,
        cam_names=CAMERAS,
    )


def through(sample: Dict[str, Any], steps: List[Dict[str, Any]], **told: Any) -> Dict[str, Any]:
    return Compose([*steps, dict(type='GeoMIMLidarFrame', **told)])(dict(sample))


def assert_seen(results: Dict[str, Any], cloud: Optional[np.ndarray] = None) -> None:
    """Each point lies where its recorded place is seen, and the map turns as the images' geometry does."""
    points = results['points'].tensor
    assert len(points) >= 7
    xyz = (recorded() if cloud is None else cloud)[points[:, 3].long().numpy(), :3].astype(np.float64)
    pixels, depths = seen(results['curr'], CAMERAS, xyz)
    uv, depth = project_points(points, rig_of(results), 0)
    np.testing.assert_allclose(depth.numpy(), depths, atol=5e-3)
    ahead = depths > 2.0
    np.testing.assert_allclose(uv.numpy()[ahead], pixels[ahead], atol=1.0)


@cases
def test_points_end_where_the_images_show_them(sample: Dict[str, Any], before: List[Dict[str, Any]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        assert_seen(through(sample, before))


@cases
def test_sweeps_shuffles_and_ranges_hide_nothing(sample: Dict[str, Any], before: List[Dict[str, Any]]) -> None:
    """Nine sweeps of other points among them, in any order."""
    torch.manual_seed(0)
    cloud = np.concatenate([recorded(), recorded(27000, seed=8)])
    cloud[:, 3] = np.arange(len(cloud))
    swept = str(Path(sample['pts_filename']).with_name('sweep.bin'))
    cloud[3000:].tofile(swept)
    sample['sweeps'] = [
        dict(data_path=swept, timestamp=0, sensor2lidar_rotation=np.eye(3), sensor2lidar_translation=np.zeros(3))
    ]
    steps = [step for one in before for step in ([LOAD, SWEEPS] if one is LOAD else [one])]
    limits = dict(type='PointsRangeFilter', point_cloud_range=[-30.0, -30, -5, 30, 30, 5])
    assert_seen(through(sample, [*steps, SHUFFLE, limits]), cloud)


@cases
def test_points_that_are_not_finite_hide_no_place(sample: Dict[str, Any], before: List[Dict[str, Any]]) -> None:
    cloud = recorded()
    cloud[::3, :3], cloud[1::7, 2] = np.nan, -np.inf
    cloud.tofile(sample['pts_filename'])
    results = through(sample, before, drop_nonfinite=True)
    assert results['dropped_points'] == int((~np.isfinite(cloud).all(axis=1)).sum())
    assert_seen(results)


@pytest.mark.parametrize('moved', [False, True])
def test_few_points_of_the_file_among_many_are_enough(sample: Dict[str, Any], moved: bool) -> None:
    """Pasted objects stand before them, and twenty sweeps behind them."""
    cloud = np.concatenate([recorded(4000, seed=9), recorded(), recorded(60000, seed=8)])
    cloud[:, 3] = np.arange(len(cloud))
    sample['points'] = LiDARPoints(cloud.copy(), 5)
    steps = [IMAGES, MOVES if moved else STAYS_4]
    assert_seen(through(sample, steps), cloud)


def test_clouds_of_the_same_point_over_and_over_take_no_more_memory(sample: Dict[str, Any]) -> None:
    zeros = np.zeros((300000, 5), dtype=np.float32)
    zeros.tofile(sample['pts_filename'])
    assert len(through(sample, [LOAD, IMAGES, STAYS_3])['points']) == len(zeros)


@pytest.mark.parametrize('width', [3, 4, 6])
@pytest.mark.parametrize('header', [b'', b'x' * 128])
def test_files_of_any_width_are_read(sample: Dict[str, Any], width: int, header: bytes) -> None:
    rows = np.concatenate([recorded(), recorded()], axis=1)[:, :width]
    Path(sample['pts_filename']).write_bytes(header + rows.tobytes())
    sample['points'] = LiDARPoints(recorded(), 5)
    assert_seen(
        Compose([*(build_from_cfg(step, PIPELINES) for step in (IMAGES, MOVES, dict(type='GeoMIMLidarFrame')))])(sample)
    )


def test_small_augmentations_are_told_apart_to_the_millimetre(sample: Dict[str, Any]) -> None:
    """From none at all to a metre: moved by the step or before it, points end in the same place."""
    for degrees, shift in ((0.0, 0.0), (0.0, 3e-4), (0.01, 0.0), (0.0, 2e-3), (0.1, 0.01), (-5.0, 1.0)):
        bda = square(bev_augmentation(degrees, 1.0, (False, False)), (shift, -shift, 0.0)).tolist()
        steps = [LOAD, IMAGES, dict(type='AugmentForTests', bda=bda)]
        moved, left = (
            through(sample, [*steps[:2], dict(steps[2], moves=moves)])['points'].tensor for moves in (True, False)
        )
        torch.testing.assert_close(moved, left, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    'extra',
    [
        dict(type='GlobalRotScaleTrans', rot_range=[0.3, 0.3], scale_ratio_range=[1.0, 1.0], translation_std=[0, 0, 0]),
        dict(type='GlobalRotScaleTrans', rot_range=[0, 0], scale_ratio_range=[1.1, 1.1], translation_std=[0, 0, 0]),
        dict(type='RandomFlip3D', flip_ratio_bev_vertical=1.0, flip_ratio_bev_horizontal=0.0, sync_2d=False),
        dict(type='RandomJitterPoints', jitter_std=[0.02] * 3),
    ],
    ids=lambda extra: extra['type'],
)
def test_points_that_something_else_moved_are_refused_unless_everything_is_told(
    sample: Dict[str, Any], extra: Dict[str, Any]
) -> None:
    np.random.seed(0)
    for before in ([LOAD, extra, IMAGES, STAYS_3], [LOAD, IMAGES, MOVES, extra], [LOAD, EGO, IMAGES, STAYS_4, extra]):
        if extra['type'] == 'GlobalRotScaleTrans':
            sample['bbox3d_fields'] = []
        for told in ({}, dict(frame='lidar'), dict(augmented=False)):
            with pytest.raises(ValueError, match=r'sample abc: the points are not those of .*lidar\.bin.*frame='):
                through(sample, before, **told)
        through(sample, before, frame='lidar', augmented=True)


def test_points_that_far_poses_have_misplaced_are_refused(sample: Dict[str, Any]) -> None:
    """ToEgo in float32, of a car that moves by metres between LiDAR and camera; the LiDAR's own ego frame needs no far pose."""
    sample['curr'].update(sample_info(5e5, 4.6e6))
    assert_seen(through(sample, [LOAD, EGO, IMAGES, MOVES]))
    with pytest.raises(ValueError, match='sample keyframe: .* ToEgo with poses far from 0'):
        through(sample, [LOAD, EGO_2, IMAGES, MOVES])


@cases
def test_what_is_told_is_checked(sample: Dict[str, Any], before: List[Dict[str, Any]]) -> None:
    frame = 'CAM_2' if EGO_2 in before else 'ego' if EGO in before else 'lidar'
    augmented = before[-1] is MOVES and LOAD in before[:2]
    for told in (dict(frame=frame), dict(augmented=augmented), dict(frame=frame, augmented=augmented)):
        assert_seen(through(sample, before, **told))
    other = next(name for name in ('lidar', 'ego') if name != frame)
    for told in (dict(frame=other), dict(augmented=not augmented), dict(frame=other, augmented=augmented)):
        with pytest.raises(ValueError, match='sample abc: the points were told to be in .* but they are in .* frame'):
            through(sample, before, **told)


def test_a_frame_that_does_not_exist_is_named(sample: Dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="there is no frame 'CAM_9'; there are lidar, ego, CAM_0"):
        through(sample, [LOAD, IMAGES, MOVES], frame='CAM_9')


@pytest.mark.parametrize('names', [dict(), dict(pts_filename='s3://bucket/lidar.bin'), dict(pts_filename='.')])
def test_without_a_file_points_are_believed_or_refused(sample: Dict[str, Any], names: Dict[str, str]) -> None:
    """As loaded with a warning where no published step moves them; refused where steps differ."""
    cloud = LiDARPoints(recorded(), 5)
    del sample['pts_filename'], sample['curr']['lidar_path']
    sample.update(names)

    def run(augment: Dict[str, Any], ego: Sequence[Dict[str, Any]] = (), **told: Any) -> Dict[str, Any]:
        given = dict(sample, points=cloud.clone())
        return through(given, [*ego, IMAGES, augment], **told)

    with pytest.warns(UserWarning, match='nothing checks .* augmented=False'):
        assert_seen(run(STAYS_3))
    for augment in (STAYS_4, MOVES):
        with pytest.raises(ValueError, match='sample abc: .* cannot be known, .* cannot be read; .* augmented=False'):
            run(augment)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        assert_seen(run(STAYS_4, augmented=False))
        assert_seen(run(MOVES, augmented=True))
        assert_seen(run(MOVES, [EGO_2], frame='CAM_2', augmented=True))
        none = dict(type='AugmentForTests', bda=torch.eye(4).tolist(), moves=True)
        assert_seen(run(none))


@pytest.mark.parametrize(
    'bda, message',
    [
        (torch.zeros(6, 32, 48), r'last entry of img_inputs has shape \(6, 32, 48\), .* must be \(3, 3\) or \(4, 4\)'),
        (torch.eye(3)[:2], r'shape \(2, 3\)'),
        (torch.zeros(3, 3), 'bda must be an invertible matrix'),
        (torch.diag(torch.tensor([1.0, 1, 1, 0])), 'whose last row is 0 0 0 1'),
    ],
    ids=['a depth map, as in BEVDet of 2022', 'a row too few', 'zero', 'no homogeneous one'],
)
def test_no_augmentation_is_named(sample: Dict[str, Any], bda: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f'sample abc: .*{message}'):
        through(sample, [LOAD, IMAGES, dict(type='AugmentForTests', bda=bda.tolist(), moves=False)])


@PIPELINES.register_module(name='DepthForTests', force=True)
class Depth:
    """PointToMultiViewDepth: points taken for the LiDAR's are projected in float32, the nearest of a pixel counts."""

    def __call__(self, results: Dict[str, Any]) -> Dict[str, Any]:
        info, xyz = results['curr'], results['points'].tensor[:, :3]
        images, _, _, intrinsics, post_rots, post_trans, _ = results['img_inputs']
        maps = torch.zeros(len(images), *images.shape[-2:])
        lidar2global = single(info, 'ego2global') @ single(info, 'lidar2ego')
        for index, camera in enumerate(results['cam_names']):
            view = info['cams'][camera]
            to_camera = torch.inverse(single(view, 'ego2global') @ single(view, 'sensor2ego')) @ lidar2global
            there = (xyz @ to_camera[:3, :3].T + to_camera[:3, 3]) @ intrinsics[index].T
            depth = there[:, 2]
            pixel = torch.cat([there[:, :2] / depth[:, None], depth[:, None]], dim=1)
            pixel = (pixel @ post_rots[index].T + post_trans[index]).round().long()
            inside = (depth >= 1) & (depth < 60) & (pixel[:, 0] >= 0) & (pixel[:, 1] >= 0)
            inside &= (pixel[:, 0] < maps.shape[2]) & (pixel[:, 1] < maps.shape[1])
            order = depth[inside].argsort(descending=True)
            maps[index, pixel[inside][order, 1], pixel[inside][order, 0]] = depth[inside][order]
        return {**results, 'gt_depth': maps}


def single(view: Dict[str, Any], name: str) -> Tensor:
    """(4, 4) float32 of a record's pose."""
    return torch.from_numpy(matrix(view[f'{name}_rotation'], view[f'{name}_translation'])).float()


DEPTH = dict(type='DepthForTests')


@pytest.mark.parametrize(
    'before, east, fits',
    [
        ([LOAD, IMAGES, STAYS_3, DEPTH], 411.2, True),
        ([IMAGES, MOVES, LOAD, DEPTH, SWEEPS], 411.2, True),
        ([LOAD, SWEEPS, IMAGES, STAYS_4, DEPTH], 411.2, True),
        ([LOAD, IMAGES, MOVES, DEPTH], 411.2, False),
        ([LOAD, EGO, IMAGES, STAYS_4, DEPTH], 411.2, False),
        ([LOAD, IMAGES, STAYS_3, DEPTH], 4.6e6, False),
    ],
)
def test_depths_that_were_projected_before_are_compared(
    sample: Dict[str, Any], before: List[Dict[str, Any]], east: float, fits: bool
) -> None:
    sample['curr'].update(sample_info(east))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        results = through(sample, before)
    found = [str(one.message) for one in caught if 'gt_depth does not show the points' in str(one.message)]
    assert len(found) == (0 if fits else 1)
    assert_seen(dict(results, points=results['points'][:3000]))

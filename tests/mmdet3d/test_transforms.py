"""Flips keep points, boxes and pixels together, depth maps hold the right pixels, and mmdet3d's dataset runs it all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS
from mmdet3d.structures import LiDARInstance3DBoxes, LiDARPoints
from mmdet3d.utils import register_all_modules
from mmengine.dataset import pseudo_collate

from geomim.adapter.step import PretrainBatch
from geomim.method.depth import project_points
from geomim.mmdet3d.loading import CheckPointCloud, LoadCameraRig
from geomim.mmdet3d.transforms import (
    BEVFlip,
    PackGeoMIMInputs,
    PointsToDepthMap,
    SurroundImageAug,
)
from geomim.mmengine.preprocessor import GeoMIMDataPreprocessor
from geomim.mmengine.rig import build_rig

NAMES = ['CAM_A', 'CAM_B', 'CAM_C']
FRAME = Path(os.environ.get('GEOMIM_NUSCENES_FRAME', Path(__file__).parents[2].parent / 'shared/data/nuscenes_frame'))


def camera(yaw: float, focal: float = 120.0) -> Dict[str, Any]:
    """A camera near the LiDAR that looks along (sin yaw, cos yaw, 0) of its frame (x right, y ahead)."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    lidar2cam = np.array([[cos, -sin, 0, 0], [0, 0, -1, 0.2], [sin, cos, 0, -0.1], [0, 0, 0, 1]])
    return {
        'cam2img': [[focal, 0, 100.0], [0, focal, 60.0], [0, 0, 1]],
        'cam2ego': np.linalg.inv(lidar2cam).tolist(),
        'lidar2cam': lidar2cam.tolist(),
    }


def make_results(size: tuple = (128, 192), num_points: int = 400) -> Dict[str, Any]:
    """A loaded sample of three cameras, random points and two boxes."""
    random = np.random.default_rng(0)
    results: Dict[str, Any] = {'token': 'abc', 'images': {n: camera(y) for n, y in zip(NAMES, (0.0, 0.9, -2.0))}}
    results = LoadCameraRig().transform(results)
    results['img'] = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in NAMES]
    points = random.uniform((-20, -20, -2, 0, 0), (20, 20, 2, 255, 1), (num_points, 5)).astype(np.float32)
    results['points'] = LiDARPoints(points, points_dim=5)
    boxes = [[5.0, 3.0, -1.0, 4.0, 2.0, 3.0, 0.7, 1.0, 2.0], [-8.0, 6.0, -1.0, 6.0, 3.0, 3.0, -2.2, -0.5, 0.25]]
    results['gt_bboxes_3d'] = LiDARInstance3DBoxes(torch.tensor(boxes), box_dim=9)
    results['lidar_path'] = 'sweep.bin'
    return results


def pixels(results: Dict[str, Any]) -> tuple:
    return project_points(results['points'].tensor.double(), build_rig([results], torch.float64), 0)


def inside(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Plain twin: which points (M, >= 3) lie in a box (bottom centre, length, width, height, yaw)."""
    local = points[:, :2] - box[:2]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    along, across = local @ [cos, sin], local @ [-sin, cos]
    height = points[:, 2] - box[2]
    return (abs(along) < box[3] / 2) & (abs(across) < box[4] / 2) & (height > 0) & (height < box[5])


@pytest.mark.parametrize('flip_x', [0.0, 1.0])
@pytest.mark.parametrize('flip_y', [0.0, 1.0])
def test_flips_keep_pixels_and_boxes_on_their_points(flip_x: float, flip_y: float) -> None:
    before = make_results(num_points=4000)
    after = BEVFlip(flip_x, flip_y).transform(dict(before))
    signs = [1 - 2 * flip_x, 1 - 2 * flip_y, 1]
    old, new = before['points'].tensor, after['points'].tensor
    np.testing.assert_array_equal(new[:, :3], old[:, :3] * torch.tensor(signs))
    np.testing.assert_array_equal(new[:, 3:], old[:, 3:])
    np.testing.assert_array_equal(after['bev_aug_matrix'], np.diag([*signs, 1]).astype(np.float32))
    for one, other in zip(pixels(before), pixels(after)):
        np.testing.assert_allclose(one, other, atol=1e-6)
    for one, other in zip(before['gt_bboxes_3d'].tensor.numpy(), after['gt_bboxes_3d'].tensor.numpy()):
        held = inside(old.numpy(), one)
        assert held.sum() > 5
        np.testing.assert_array_equal(held, inside(new.numpy(), other))
        np.testing.assert_allclose(other[7:], one[7:] * signs[:2])


def test_flipping_twice_is_no_flip() -> None:
    before = make_results()
    after = BEVFlip(1.0, 0.0).transform(BEVFlip(1.0, 0.0).transform(dict(before)))
    np.testing.assert_array_equal(after['bev_aug_matrix'], np.eye(4))
    np.testing.assert_array_equal(after['points'].tensor, before['points'].tensor)


def test_flips_come_at_their_rates_and_are_independent() -> None:
    np.random.seed(0)
    signs = np.array(
        [np.diag(BEVFlip().transform(make_results(num_points=3))['bev_aug_matrix'])[:2] for _ in range(200)]
    )
    assert (np.abs(signs.mean(0)) < 0.25).all()
    assert abs((signs[:, 0] * signs[:, 1]).mean()) < 0.25


def test_bad_flip_rate_is_refused() -> None:
    with pytest.raises(ValueError, match='flip_y .*-0.1'):
        BEVFlip(flip_y=-0.1)


def test_known_point_lands_in_its_pixel() -> None:
    results = make_results()
    # Camera A looks along y from (0, 0.1, 0.2): depth 10 m, u = 100 + 120 * 2 / 10, v = 60 - 120 * (0.8 - 0.2) / 10
    results['points'] = LiDARPoints(torch.tensor([[2.0, 10.1, 0.8, 9.0, 0.0]]), points_dim=5)
    depth = PointsToDepthMap().transform(results)['depth_map']
    assert depth.shape == (3, 128, 192)
    assert depth.dtype == np.float32
    assert np.argwhere(depth[0]).tolist() == [[52, 124]]
    assert depth[0, 52, 124] == pytest.approx(10.0, abs=1e-5)


@pytest.mark.parametrize('seed', range(3))
def test_depth_map_equals_a_plain_loop_under_augmentation(seed: int) -> None:
    np.random.seed(seed)
    results = make_results(num_points=60)
    raw = results['points'].tensor.double().numpy().copy()
    results = SurroundImageAug((64, 96), resize=(0.6, 0.9)).transform(results)
    results = PointsToDepthMap().transform(BEVFlip(1.0, 1.0).transform(results))
    expected = np.zeros((3, 64, 96))
    for index, name in enumerate(NAMES):
        info = results['images'][name]
        for x, y, z in raw[:, :3]:
            u, v, depth = np.array(info['cam2img']) @ (np.array(info['lidar2cam']) @ [x, y, z, 1])[:3]
            if depth <= 0:
                continue
            matrix = results['img_aug_matrix'][index].astype(float)
            u, v = matrix[:2, :2] @ [u / depth, v / depth] + matrix[:2, 3]
            if 0 <= u < 96 and 0 <= v < 64:
                expected[index, int(v), int(u)] = depth
    assert (expected > 0).sum() > 10
    np.testing.assert_allclose(results['depth_map'], expected, atol=1e-4)


def test_depth_map_needs_equal_image_sizes() -> None:
    results = make_results()
    results['img'][1] = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match=r'abc.*CAM_B.*\(64, 64\).*SurroundImageAug'):
        PointsToDepthMap().transform(results)


@pytest.mark.parametrize('bad, message', [(None, 'abc, sweep.bin.*empty'), (float('nan'), 'abc, sweep.bin.*row 3')])
def test_bad_point_cloud_is_named(bad: Any, message: str) -> None:
    results = make_results()
    if bad is None:
        results['points'] = LiDARPoints(torch.zeros(0, 5), points_dim=5)
    else:
        results['points'].tensor[3, 1] = bad
    with pytest.raises(ValueError, match=message):
        CheckPointCloud().transform(dict(results))
    packed = PackGeoMIMInputs().transform(dict(results))  # without that step the model's door names it
    with pytest.raises(ValueError, match=message):
        GeoMIMDataPreprocessor()(pseudo_collate([packed]))


@pytest.mark.parametrize('seed', range(2))
def test_depth_maps_of_a_worker_and_of_the_model_are_the_same(seed: int) -> None:
    np.random.seed(seed)
    results = SurroundImageAug((64, 96), resize=(0.6, 0.9)).transform(make_results(num_points=3000))
    results = BEVFlip(1.0, 1.0).transform(results)
    worker = PackGeoMIMInputs().transform(PointsToDepthMap().transform(dict(results)))
    bare = PackGeoMIMInputs().transform(dict(results))
    assert 'depth_map' not in bare['inputs']
    given, made = (GeoMIMDataPreprocessor()(pseudo_collate([sample, sample]))['inputs'] for sample in (worker, bare))
    assert int((given['depth_map'] > 0).sum()) > 100
    assert torch.equal(PretrainBatch(**made).measured_depth(), given['depth_map'])


def test_packing_keeps_inputs_and_geometry() -> None:
    results = PointsToDepthMap().transform(make_results())
    results.update(sample_idx=7, img_path=['a', 'b', 'c'])
    packed = PackGeoMIMInputs().transform(results)
    assert {key: tuple(value.shape) for key, value in packed['inputs'].items()} == {
        'img': (3, 3, 128, 192),
        'points': (400, 5),
        'depth_map': (3, 128, 192),
    }
    meta = packed['data_samples'].metainfo
    expected = {'cam_names', 'cam2img', 'cam2ego', 'lidar2cam', 'img_aug_matrix', 'bev_aug_matrix'}
    assert expected | {'sample_idx', 'token', 'lidar_path', 'img_path'} == set(meta)
    assert meta['img_path'] == ['a', 'b', 'c']


def test_packing_names_what_is_absent() -> None:
    with pytest.raises(ValueError, match='written points'):
        PackGeoMIMInputs().transform({key: value for key, value in make_results().items() if key != 'points'})


@pytest.mark.parametrize('scope', ['mmdet3d', 'mmdet', 'mmengine'])
def test_transforms_are_found_from_every_host(scope: str) -> None:
    registry = __import__(f'{scope}.registry', fromlist=['TRANSFORMS']).TRANSFORMS
    for name in ('LoadCameraRig', 'LoadSurroundImages', 'SurroundImageAug', 'BEVFlip', 'PointsToDepthMap'):
        assert registry.get(name).__module__.startswith('geomim.mmdet3d')
        assert name in repr(registry.build({'type': name}))


def keyframe_dataset(pipeline: List[Dict[str, Any]]) -> Any:
    infos = list(FRAME.glob('*.pkl'))
    if not infos:
        pytest.skip(f'no nuScenes keyframe in {FRAME}; set GEOMIM_NUSCENES_FRAME to a folder with one')
    register_all_modules(init_default_scope=True)
    return DATASETS.build(
        {
            'type': 'NuScenesDataset',
            'data_root': str(FRAME),
            'ann_file': infos[0].name,
            'data_prefix': {'pts': '', 'img': '', 'sweeps': ''},
            'pipeline': pipeline,
            'modality': {'use_lidar': True, 'use_camera': True},
            'metainfo': {'version': 'v1.0-mini'},
            'filter_empty_gt': False,
        }
    )


def test_real_keyframe_through_mmdet3ds_dataset() -> None:
    load = [
        {'type': 'LoadCameraRig'},
        {'type': 'LoadSurroundImages'},
        {'type': 'LoadSurroundPoints', 'coord_type': 'LIDAR', 'load_dim': 5, 'use_dim': 5},
        {'type': 'LoadSurroundSweeps', 'sweeps_num': 9, 'load_dim': 5, 'use_dim': 5, 'pad_empty_sweeps': True},
        {'type': 'CheckPointCloud'},
        {'type': 'PointsRangeFilter', 'point_cloud_range': [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]},
        {'type': 'SurroundImageAug', 'final_size': (256, 704)},
    ]
    finish = [{'type': 'PointsToDepthMap'}, {'type': 'PackGeoMIMInputs'}]
    samples = []
    for flips in ({'flip_x': 0.0, 'flip_y': 0.0}, {'flip_x': 1.0, 'flip_y': 1.0}):
        np.random.seed(5)
        samples.append(keyframe_dataset([*load, {'type': 'BEVFlip', **flips}, *finish])[0])
    plain, flipped = (sample['inputs'] for sample in samples)
    assert tuple(plain['img'].shape) == (6, 3, 256, 704)
    torch.testing.assert_close(flipped['points'][:, :2], -plain['points'][:, :2])
    torch.testing.assert_close(plain['img'], flipped['img'])
    same = (plain['depth_map'] - flipped['depth_map']).abs() < 1e-3
    assert same.float().mean() > 0.9999  # a point on a pixel's border may cross it by rounding
    filled = (plain['depth_map'] > 0).float().mean(dim=(1, 2))
    assert (filled > 0.005).all()
    assert plain['depth_map'].max() < 80

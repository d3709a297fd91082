"""A batch keeps its geometry, images are normalised as ImageNet's, and samples that do not fit are named."""

from __future__ import annotations

from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from mmdet3d.structures import Det3DDataSample
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS

from geomim.method.depth import project_points
from geomim.mmengine.preprocessor import GeoMIMDataPreprocessor


def rotation(random: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(random.normal(size=(3, 3)))[0]


def make_sample(
    seed: int = 0, cams: int = 3, size: tuple = (32, 64), points: int = 20, depth: bool = True
) -> Dict[str, Any]:
    random = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (2, cams, 1, 1))
    for pose in poses.reshape(-1, 4, 4):
        pose[:3, :3], pose[:3, 3] = rotation(random), random.uniform(-2, 2, 3)
    intrinsics = np.tile(np.array([[1266.4, 0, 816.3], [0, 1266.4, 491.5], [0, 0, 1]]), (cams, 1, 1))
    image_aug = np.tile(np.eye(4, dtype=np.float32), (cams, 1, 1))
    image_aug[:, :2, :2] *= 0.44
    image_aug[:, :2, 3] = random.uniform(-30, 0, (cams, 2))
    sample = Det3DDataSample()
    sample.set_metainfo(
        {
            'token': f'token{seed}',
            'cam_names': [f'CAM_{i}' for i in range(cams)],
            'cam2img': intrinsics,
            'cam2ego': poses[0],
            'lidar2cam': poses[1],
            'img_aug_matrix': image_aug,
            'bev_aug_matrix': np.diag([-1.0, 1, 1, 1]).astype(np.float32),
            'lidar_path': f'sweep{seed}.bin',
        }
    )
    inputs = {
        'img': torch.from_numpy(random.integers(0, 256, (cams, 3, *size), dtype=np.uint8)),
        'points': torch.from_numpy(random.uniform(-50, 50, (points, 5)).astype(np.float32)),
    }
    if depth:
        inputs['depth_map'] = torch.from_numpy(random.uniform(0, 60, (cams, *size)).astype(np.float32))
    return {'inputs': inputs, 'data_samples': sample}


def run(samples: List[Dict[str, Any]], **arguments: Any) -> Dict[str, Any]:
    return GeoMIMDataPreprocessor(**arguments)(pseudo_collate(samples), training=True)


def test_images_are_normalised_rgb() -> None:
    samples = [make_sample(0), make_sample(1)]
    images = run(samples)['inputs']['images']
    assert images.dtype == torch.float32
    assert tuple(images.shape) == (2, 3, 3, 32, 64)
    bgr = samples[1]['inputs']['img'][2].numpy().astype(float)  # twin: the loaded channel order is blue, green, red
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        expected = (bgr[2 - channel] / 255 - mean) / std
        np.testing.assert_allclose(images[1, 2, channel].numpy(), expected, atol=1e-4)


def test_channel_order_can_be_left_alone() -> None:
    sample = make_sample()
    images = run([sample], mean=(0, 0, 0), std=(1, 1, 1), bgr_to_rgb=False)['inputs']['images']
    torch.testing.assert_close(images[0], sample['inputs']['img'].float())


def test_batch_has_everything_in_order() -> None:
    samples = [make_sample(0, points=7), make_sample(1, points=11)]
    batch = run(samples)
    inputs = batch['inputs']
    assert set(inputs) == {'images', 'points', 'depth_map', 'rig'}
    assert [len(points) for points in inputs['points']] == [7, 11]
    torch.testing.assert_close(inputs['depth_map'][1], samples[1]['inputs']['depth_map'])
    assert [sample.token for sample in batch['data_samples']] == ['token0', 'token1']
    assert inputs['rig'].names == ('CAM_0', 'CAM_1', 'CAM_2')
    assert inputs['rig'].img_aug.dtype == torch.float32
    for index, sample in enumerate(samples):
        meta = sample['data_samples'].metainfo
        product = inputs['rig'].cam2bev[index].double().numpy() @ meta['lidar2cam']
        np.testing.assert_allclose(product, np.tile(np.eye(4), (3, 1, 1)), atol=1e-5)
        np.testing.assert_array_equal(inputs['rig'].img_aug[index].numpy(), meta['img_aug_matrix'])
        np.testing.assert_array_equal(inputs['rig'].bev_aug[index].numpy(), meta['bev_aug_matrix'])
        np.testing.assert_allclose(inputs['rig'].intrinsics[index].numpy(), meta['cam2img'], rtol=1e-6)


def test_rig_projects_as_the_calibration_says() -> None:
    sample = make_sample(3)
    rig = run([sample])['inputs']['rig']
    meta = sample['data_samples'].metainfo
    point = np.array([3.0, 7.0, 1.0])
    uv, depth = project_points(torch.from_numpy(point * [-1, 1, 1])[None].float(), rig, 0)
    for camera in range(3):
        u, v, z = meta['cam2img'][camera] @ (meta['lidar2cam'][camera] @ [*point, 1])[:3]
        assert depth[camera, 0].item() == pytest.approx(z, abs=1e-4)
        if z > 0.5:
            matrix = meta['img_aug_matrix'][camera]
            np.testing.assert_allclose(uv[camera, 0], matrix[:2, :2] @ [u / z, v / z] + matrix[:2, 3], rtol=1e-3)


def test_depth_map_and_points_are_optional() -> None:
    sample = make_sample(depth=False)
    del sample['inputs']['points']
    assert set(run([sample])['inputs']) == {'images', 'rig'}


def test_mean_and_std_stay_out_of_checkpoints() -> None:
    assert list(GeoMIMDataPreprocessor().state_dict()) == []


@pytest.mark.parametrize(
    'second, message',
    [
        (make_sample(1, cams=2), r'token0 is \(3, 3, 32, 64\), of sample token1 \(2, 3, 32, 64\)'),
        (make_sample(1, size=(64, 64)), r'token0 is \(3, 3, 32, 64\), of sample token1 \(3, 3, 64, 64\)'),
    ],
)
def test_samples_that_differ_are_named(second: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run([make_sample(0), second])


def test_cameras_in_another_order_are_named() -> None:
    other = make_sample(1)
    other['data_samples'].set_metainfo({'cam_names': ['CAM_1', 'CAM_0', 'CAM_2']})
    with pytest.raises(ValueError, match=r"token0 has cameras \['CAM_0'.*token1 has \['CAM_1'"):
        run([make_sample(0), other])


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('cam2img', float('nan'), r'token0.*intrinsics\[sample 0, CAM_1.*nan'),
        ('cam2img', -1266.4, 'focal length .*CAM_1.*-1266'),
        ('cam2ego', float('inf'), 'cam2ego.*CAM_1.*inf'),
        ('img_aug_matrix', float('nan'), 'img_aug.*CAM_1.*nan'),
    ],
)
def test_bad_geometry_is_named(key: str, value: float, message: str) -> None:
    sample = make_sample()
    sample['data_samples'].metainfo[key][1, 0, 0] = value
    with pytest.raises(ValueError, match=message):
        run([sample])


def test_bad_values_are_named() -> None:
    for key, message in (
        ('points', r'token0, sweep0.bin.*row 2'),
        ('depth_map', r'token0: depth_map\[1, 2, 3\] is nan'),
    ):
        sample = make_sample()
        sample['inputs'][key][(2, 1) if key == 'points' else (1, 2, 3)] = float('nan')
        with pytest.raises(ValueError, match=message):
            run([sample])
    with pytest.raises(ValueError, match='token0, sweep0.bin: the point cloud is empty'):
        run([make_sample(points=0)])
    sample = make_sample()
    sample['inputs']['img'] = sample['inputs']['img'].float()
    sample['inputs']['img'][0, 0, 0, 0] = float('inf')
    with pytest.raises(ValueError, match=r'token0: img\[0, 0, 0, 0\] is inf'):
        run([sample])


def test_absent_geometry_names_the_transform() -> None:
    sample = make_sample()
    sample['data_samples'] = Det3DDataSample(metainfo={'token': 'bare'})
    with pytest.raises(ValueError, match='sample bare has no cam_names.*LoadCameraRig'):
        run([sample])


@pytest.mark.parametrize('arguments', [{'mean': (1, 2)}, {'std': (0, 1, 1)}, {'mean': (float('nan'), 1, 1)}])
def test_bad_normalisation_is_refused(arguments: Dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='three finite numbers'):
        GeoMIMDataPreprocessor(**arguments)


def test_registered_in_the_root() -> None:
    assert isinstance(MODELS.build({'type': 'GeoMIMDataPreprocessor'}), GeoMIMDataPreprocessor)


def test_it_can_be_built_on_the_meta_device() -> None:
    with torch.device('meta'):
        assert GeoMIMDataPreprocessor().mean.device.type == 'meta'

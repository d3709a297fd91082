"""Images, boxes, poses and depth maps stay together under every augmentation, in the present and in the past, and the
numbers of BEVDet's configurations mean what they mean there."""

from __future__ import annotations

import copy
import math
import warnings
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from mmcv.transforms import Compose
from mmdet3d.structures import LiDARInstance3DBoxes
from mmdet3d.structures.ops import box_np_ops
from mmengine.dataset import pseudo_collate
from mmengine.registry import TRANSFORMS
from nuscenes.nuscenes import NuScenes
from pyquaternion import Quaternion

from geomim import CameraRig, DepthBins
from geomim.bevdet.boxes.transform import transform_boxes
from geomim.bevdet.datasets import (
    BEVDetBEVAug,
    BEVDetDataPreprocessor,
    BoxesToKeyEgo,
    LoadSurroundFrames,
    PackBEVDetInputs,
    SurroundFramesAug,
)
from geomim.bevdet.datasets.data_config import BDAConfig, BEVDraw, DataConfig
from geomim.bevdet.datasets.transforms import channels_first
from geomim.bevdet.detectors import BEVDet
from geomim.method.depth import depth_labels, project_points

from ..conftest import DATA_CONFIG

Build = Callable[..., Any]
STEREO = dict(multi_adj_frame_id_cfg=(1, 2, 1), stereo=True)


@pytest.fixture(scope='module')
def tables(bevdet_world: Any) -> NuScenes:
    return NuScenes('v1.0-trainval', str(bevdet_world), verbose=False)


@pytest.fixture
def sample(make_dataset: Build) -> Dict[str, Any]:
    """The second keyframe of a scene, with its past, before any transform."""
    data = make_dataset(**STEREO)
    return {**copy.deepcopy(data.get_data_info(1)), 'box_type_3d': LiDARInstance3DBoxes}


def run(steps: List[Dict[str, Any]], results: Dict[str, Any], seed: int = 0) -> Dict[str, Any]:
    np.random.seed(seed)
    return Compose([TRANSFORMS.build(step) for step in steps])(copy.deepcopy(results))


def global_pose(tables: NuScenes, sample_token: str, channel: str) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From the tables: intrinsics (3, 3), camera to ego and ego to global (4, 4)."""
    record = tables.get('sample_data', tables.get('sample', sample_token)['data'][channel])
    mount = tables.get('calibrated_sensor', record['calibrated_sensor_token'])
    rows = (mount, tables.get('ego_pose', record['ego_pose_token']))
    matrices = [np.eye(4), np.eye(4)]
    for matrix, row in zip(matrices, rows):
        matrix[:3, :3], matrix[:3, 3] = Quaternion(row['rotation']).rotation_matrix, row['translation']
    return np.array(mount['camera_intrinsic']), matrices[0], matrices[1]


def into_key_ego(tables: NuScenes, results: Dict[str, Any], channel: str) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Valid annotations as BEVDet reads them from the tables: centres (M, 3), yaw (M,), velocities (M, 2)."""
    ego2global = global_pose(tables, results['token'], channel)[2]
    rotation, centres, yaws, velocities = ego2global[:3, :3], [], [], []
    for token in tables.get('sample', results['token'])['anns']:
        row = tables.get('sample_annotation', token)
        if row['num_lidar_pts'] + row['num_radar_pts'] == 0:
            continue
        centres.append(rotation.T @ (np.array(row['translation']) - ego2global[:3, 3]))
        heading = rotation.T @ Quaternion(row['rotation']).rotation_matrix[:, 0]
        yaws.append(math.atan2(heading[1], heading[0]))
        velocities.append((rotation.T @ np.nan_to_num(tables.box_velocity(token)))[:2])
    return np.array(centres), np.array(yaws), np.array(velocities)


def pixels(packed: Dict[str, Any], points: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Points (M, 3) of the packed BEV frame -> pixels (F, N, M, 2) of the packed images and depths (F, N, M), float64."""
    given = {key: value.double() for key, value in packed['inputs'].items()}
    bev = given['bev_aug']
    key_ego = (points.double() - bev[:3, 3]) @ torch.inverse(bev[:3, :3]).T
    to_camera = torch.inverse(given['ego2global'] @ given['cam2ego'])
    local = key_ego @ to_camera[..., :3, :3].transpose(-1, -2) + to_camera[..., None, :3, 3]
    projected = local @ given['intrinsics'].transpose(-1, -2)
    uv = projected[..., :2] / projected[..., 2:]
    augmented = uv @ given['img_aug'][..., :2, :2].transpose(-1, -2) + given['img_aug'][..., None, :2, 3]
    return augmented, local[..., 2]


def test_a_thing_stays_on_its_pixel(tables: NuScenes, sample: Dict[str, Any], bevdet_pipeline: Build) -> None:
    """In every frame and camera, whatever the augmentation: where the tables say that a place of the world is seen."""
    places, *_ = into_key_ego(tables, sample, 'CAM_FRONT_LEFT')
    key2global = global_pose(tables, sample['token'], 'CAM_FRONT_LEFT')[2]
    world = places @ key2global[:3, :3].T + key2global[:3, 3]
    seen, apart, draws = 0, [], set()
    for seed in range(4):
        packed = run(bevdet_pipeline(frames=3, depth=False), sample, seed)
        centres = packed['data_samples'].gt_instances_3d.bboxes_3d.gravity_center
        assert len(centres) == len(world) > 15
        uv, depth = pixels(packed, centres)
        draws.add(round(packed['inputs']['img_aug'][0, 0, 0, 0].item(), 4))
        for f, token in enumerate(packed['data_samples'].frame_tokens):
            for n, channel in enumerate(packed['data_samples'].cam_names):
                intrinsics, cam2ego, ego2global = global_pose(tables, token, channel)
                to_camera = np.linalg.inv(ego2global @ cam2ego)
                local = world @ to_camera[:3, :3].T + to_camera[:3, 3]
                raw = local @ intrinsics.T
                raw = raw[:, :2] / raw[:, 2:]
                augmentation = packed['inputs']['img_aug'][f, n].double().numpy()
                undone = (uv[f, n].numpy() - augmentation[:2, 3]) @ np.linalg.inv(augmentation[:2, :2]).T
                visible = (local[:, 2] > 2) & (np.abs(raw - [200, 112]) < 300).all(axis=1)
                np.testing.assert_allclose(depth[f, n].numpy()[visible], local[visible, 2], atol=2e-3)
                apart.append(np.abs(undone - raw)[visible])
                seen += visible.sum()
    assert len(draws) == 4
    assert seen > 4 * 3 * 15
    assert np.concatenate(apart).max() < 0.1  # pixels; the infos hold boxes and LiDAR poses in float32
    assert np.median(np.concatenate(apart)) < 0.01


def test_the_same_pixel_of_the_same_picture(sample: Dict[str, Any], bevdet_pipeline: Build) -> None:
    """Images whose colours are their coordinates: what is seen at an augmented pixel is what was there before."""
    steps = bevdet_pipeline(frames=3, depth=False)
    loaded = run(steps[:1], sample)
    v, u = np.mgrid[:225, :400]
    picture = np.stack([u * 0.6, v, np.full_like(u, 255)], axis=-1).astype(np.uint8)
    for index, frame in enumerate(loaded['frames']):
        frame['img'] = [np.minimum(picture, 255 - 40 * index)] * 6
    for seed in range(3):
        packed = run(steps[1:], loaded, seed)['inputs']
        random = np.random.default_rng(seed)
        for f in range(3):
            for n in range(6):
                row, column = random.integers(20, 108), random.integers(20, 204)
                colour = packed['images'][f, n, :, row, column].numpy().astype(float)
                if colour[2] < 200 - 40 * f:
                    continue  # outside of the picture
                matrix = packed['img_aug'][f, n].double().numpy()
                raw = np.linalg.inv(matrix[:2, :2]) @ (np.array([column + 0.5, row + 0.5]) - matrix[:2, 3]) - 0.5
                limit = 255 - 40 * f
                assert colour[0] == pytest.approx(min(raw[0] * 0.6, limit), abs=2), (seed, f, n)
                assert colour[1] == pytest.approx(min(raw[1], limit), abs=2), (seed, f, n)
        torch.testing.assert_close(packed['img_aug'][0], packed['img_aug'][2])  # one draw a camera
        assert len({round(float(matrix[0, 0]), 5) for matrix in packed['img_aug'][0]}) == 6


@pytest.mark.parametrize('ego_camera', [None, 'CAM_FRONT'])
def test_boxes_are_those_of_the_tables(
    tables: NuScenes, sample: Dict[str, Any], bevdet_pipeline: Build, ego_camera: Any
) -> None:
    """In the ego frame at the time stamp of the camera; with CAM_FRONT they are BEVDet's."""
    packed = run(bevdet_pipeline(frames=3, training=False, depth=False, ego_camera=ego_camera), sample)
    boxes = packed['data_samples'].gt_instances_3d.bboxes_3d
    centres, yaws, velocities = into_key_ego(tables, sample, ego_camera or 'CAM_FRONT_LEFT')
    np.testing.assert_allclose(boxes.gravity_center.numpy(), centres, atol=2e-3)
    turn = np.angle(np.exp(1j * (boxes.yaw.numpy() - yaws)))
    assert np.abs(turn).max() < 2e-3
    np.testing.assert_allclose(boxes.tensor[:, 7:].numpy(), velocities, atol=0.02)
    assert np.abs(velocities).max() > 2
    if ego_camera is not None:
        other = into_key_ego(tables, sample, 'CAM_FRONT_LEFT')[0]
        assert np.abs(other - centres).max() > 0.02  # the two frames do differ


def test_boxes_hold_the_same_points(make_dataset: Build, bevdet_pipeline: Build) -> None:
    data = make_dataset()
    for index, seed in ((0, 0), (1, 1), (3, 2)):
        info = {**copy.deepcopy(data.get_data_info(index)), 'box_type_3d': LiDARInstance3DBoxes}
        points = np.fromfile(info['lidar_points']['lidar_path'], np.float32).reshape(-1, 5)[:, :3].astype(np.float64)
        packed = run(bevdet_pipeline(depth=False), info, seed)
        still = run(bevdet_pipeline(depth=False, training=False), info, seed)
        counts = []
        for results, grown in ((packed, 0), (still, 0), (still, 0.2), (still, -0.2)):
            boxes = results['data_samples'].gt_instances_3d.bboxes_3d.tensor[:, :7].numpy()
            boxes = boxes + np.array([0, 0, -grown, 2 * grown, 2 * grown, 2 * grown, 0])
            matrix = results['inputs']['bev_aug'].double().numpy() @ results['data_samples'].lidar2key_ego
            moved = points @ matrix[:3, :3].T + matrix[:3, 3]
            counts.append(box_np_ops.points_in_rbbox(moved, boxes).sum(axis=0))
        in_lidar_frame = box_np_ops.points_in_rbbox(points, info['ann_info']['gt_bboxes_3d'].tensor[:, :7].numpy()).sum(
            0
        )
        assert in_lidar_frame.sum() > 300
        assert np.abs(counts[0] - counts[1]).sum() <= 0.01 * counts[1].sum()  # a point on a face
        assert (counts[2] >= in_lidar_frame).all()  # the LiDAR leans by 1.4 degrees: upright differs
        assert (counts[3] <= in_lidar_frame).all()


@pytest.mark.parametrize('flip_dx', [False, True])
@pytest.mark.parametrize('flip_dy', [False, True])
def test_bev_augmentation_in_closed_form(flip_dx: bool, flip_dy: bool) -> None:
    """BEVDet's: turn, scale, mirror; headings pi - yaw and -yaw."""
    draw = BEVDraw(angle=20.0, scale=1.04, flip_dx=flip_dx, flip_dy=flip_dy)
    boxes = LiDARInstance3DBoxes(
        torch.tensor([[5.0, 3, -1, 4, 2, 1.5, 0.7, 2, 1], [-8, 6, 0, 6, 3, 3, -2.2, -0.5, 0.25]]), box_dim=9
    )
    before = boxes.tensor.clone()
    moved = transform_boxes(boxes, draw.matrix()).tensor
    torch.testing.assert_close(boxes.tensor, before)
    angle, sign_x, sign_y = math.radians(20), -1 if flip_dx else 1, -1 if flip_dy else 1
    for box, given in zip(moved.tolist(), before.tolist()):
        for at, scale in ((0, 1.04), (7, 1.04)):
            x = scale * sign_x * (math.cos(angle) * given[at] - math.sin(angle) * given[at + 1])
            y = scale * sign_y * (math.sin(angle) * given[at] + math.cos(angle) * given[at + 1])
            assert box[at : at + 2] == pytest.approx([x, y], abs=1e-5)
        assert box[2:6] == pytest.approx([1.04 * value for value in given[2:6]], abs=1e-5)
        yaw = given[6] + angle
        yaw = math.pi - yaw if flip_dx else yaw
        yaw = -yaw if flip_dy else yaw
        assert math.remainder(box[6] - yaw, 2 * math.pi) == pytest.approx(0, abs=1e-5)
    back = transform_boxes(transform_boxes(boxes, draw.matrix()), np.linalg.inv(draw.matrix())).tensor
    torch.testing.assert_close(back, before, atol=1e-5, rtol=0)


def test_velocities_are_where_the_thing_goes(sample: Dict[str, Any], bevdet_pipeline: Build) -> None:
    """A box a second later, augmented, is the augmented box moved by its augmented velocity."""
    later = copy.deepcopy(sample)
    tensor = later['ann_info']['gt_bboxes_3d'].tensor
    tensor[:, :2] += tensor[:, 7:9]
    results = [run(bevdet_pipeline(frames=3, depth=False), given, 5)['data_samples'] for given in (sample, later)]
    now, then = (result.gt_instances_3d.bboxes_3d.tensor for result in results)
    assert now[:, 7:9].norm(dim=1).max() > 2
    torch.testing.assert_close(then[:, :2], now[:, :2] + now[:, 7:9], atol=1e-3, rtol=0)


def test_bevdets_numbers() -> None:
    config, bda = DataConfig.create(), BDAConfig.create()
    assert config.cams == (
        'CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT'
    )  # fmt: skip
    assert (config.resize, config.rot, config.flip, config.crop_h) == ((-0.06, 0.11), (-5.4, 5.4), True, (0.0, 0.0))
    assert (bda.rot_lim, bda.scale_lim, bda.flip_dx_ratio, bda.flip_dy_ratio) == ((-22.5, 22.5), (0.95, 1.05), 0.5, 0.5)
    for size, scale, top in (((256, 704), 0.44, 140), ((512, 1408), 0.88, 280)):
        matrix = SurroundFramesAug(dict(input_size=size), training=False).of_width(1600).draw((900, 1600)).matrix(size)
        np.testing.assert_allclose(matrix, [[scale, 0, 0], [0, scale, -top], [0, 0, 1]], atol=1e-9)
    larger = SurroundFramesAug(dict(input_size=(256, 704), resize_test=0.04), training=False)
    matrix = larger.of_width(1600).draw((900, 1600)).matrix((256, 704))
    np.testing.assert_allclose(matrix, [[0.48, 0, -32], [0, 0.48, -176], [0, 0, 1]], atol=1e-9)


def plain_post_matrix(draw: Any, size: Tuple[int, int]) -> np.ndarray:
    """BEVDet's post_rot and post_tran, one step after the other."""
    rotation, translation = np.eye(2) * draw.scale, -np.array([draw.left, draw.top], dtype=float)
    if draw.mirror:
        mirror = np.array([[-1.0, 0], [0, 1]])
        rotation, translation = mirror @ rotation, mirror @ translation + [size[1], 0]
    angle = math.radians(draw.angle)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    centre = np.array([size[1], size[0]]) / 2
    rotation, translation = turn @ rotation, turn @ translation + centre - turn @ centre
    return np.vstack([np.column_stack([rotation, translation]), [0, 0, 1]])


def test_training_draws_are_bevdets() -> None:
    augmentation = SurroundFramesAug().of_width(1600)
    np.random.seed(1)
    draws = [augmentation.draw((900, 1600)) for _ in range(2000)]
    scales = np.array([draw.scale for draw in draws])
    assert scales.min() == pytest.approx(0.38, abs=1e-3)
    assert scales.max() == pytest.approx(0.55, abs=1e-3)
    angles = np.array([draw.angle for draw in draws])
    assert np.abs(angles).max() == pytest.approx(5.4, abs=0.05)
    assert np.mean([draw.mirror for draw in draws]) == pytest.approx(0.5, abs=0.04)
    for draw in draws[:50]:
        assert draw.top == int(900 * draw.scale) - 256  # cut to the bottom
        assert 0 <= draw.left <= max(0, int(1600 * draw.scale) - 704)
        np.testing.assert_allclose(draw.matrix((256, 704)), plain_post_matrix(draw, (256, 704)), atol=1e-9)
    bevs = [BDAConfig().draw() for _ in range(2000)]
    assert np.abs([draw.angle for draw in bevs]).max() == pytest.approx(22.5, abs=0.1)
    assert np.mean([draw.flip_dx for draw in bevs]) == pytest.approx(0.5, abs=0.04)
    assert min(draw.scale for draw in bevs) == pytest.approx(0.95, abs=1e-3)


def test_depth_maps_hold_the_nearest_point(sample: Dict[str, Any], bevdet_pipeline: Build) -> None:
    """A loop over points and cameras, through the packed matrices; points without BEV augmentation."""
    points = np.fromfile(sample['lidar_points']['lidar_path'], np.float32).reshape(-1, 5)[:, :3].astype(np.float64)
    packed = run(bevdet_pipeline(frames=3), sample, 4)
    lidar2bev = packed['inputs']['bev_aug'].double().numpy() @ packed['data_samples'].lidar2key_ego
    moved = torch.from_numpy(points @ lidar2bev[:3, :3].T + lidar2bev[:3, 3])
    uv, depth = pixels(packed, moved)
    expected = np.zeros((6, 128, 224))
    for n in range(6):
        for (u, v), d in zip(uv[0, n].tolist(), depth[0, n].tolist()):
            if 1.0 <= d < 60.0 and 0 <= u < 224 and 0 <= v < 128:
                pixel = (n, int(v), int(u))
                expected[pixel] = min(d, expected[pixel] or d)
    found = packed['inputs']['depth_map'].numpy()
    assert (expected > 0).sum(axis=(1, 2)).min() > 100
    agree = np.abs(found - expected) < 2e-3
    assert (~agree).sum() < 0.02 * (expected > 0).sum()  # points at the edge of a pixel
    assert found[found > 0].min() >= 1.0
    assert found.max() < 60.0


def plain_depth_maps(points: torch.Tensor, rig: CameraRig, size: Tuple[int, int]) -> np.ndarray:
    """The nearest point of each pixel, by NumPy's unbuffered minimum, as a worker's loop would find it."""
    uv, depth = (value.numpy() for value in project_points(points, rig, 0))
    u, v = uv[..., 0], uv[..., 1]
    counts = (u >= 0) & (u < size[1]) & (v >= 0) & (v < size[0]) & (depth >= 1.0) & (depth < 60.0)
    camera = np.nonzero(counts)[0]
    maps = np.full((len(depth), *size), np.inf, dtype=np.float32)
    np.minimum.at(maps, (camera, v[counts].astype(int), u[counts].astype(int)), depth[counts])
    maps[np.isinf(maps)] = 0
    return maps


@pytest.mark.parametrize('seed', [4, 5])
def test_a_worker_and_the_detector_give_the_same_depth_labels(
    sample: Dict[str, Any], bevdet_pipeline: Build, seed: int
) -> None:
    worker = run(bevdet_pipeline(frames=3), sample, seed)
    bare = run(bevdet_pipeline(frames=3, depth='points'), sample, seed)
    assert set(bare['inputs']) == set(worker['inputs']) - {'depth_map'} | {'points', 'cam2lidar'}
    points = torch.from_numpy(np.fromfile(sample['lidar_points']['lidar_path'], np.float32).reshape(-1, 5)[:, :3])
    assert torch.equal(bare['inputs']['points'], points)
    bins = DepthBins(1.0, 60.0, 0.5)
    detector = SimpleNamespace(img_view_transformer=SimpleNamespace(depth_bins=bins, input_size=(128, 224)))
    given, made = (BEVDetDataPreprocessor()(pseudo_collate([one, one]))['inputs'] for one in (worker, bare))
    on_device = BEVDet.measured_depth(detector, made)
    assert int((on_device > 0).sum()) > 1000
    assert torch.equal(on_device, BEVDet.measured_depth(detector, given))
    names = ('intrinsics', 'cam2ego', 'img_aug')
    intrinsics, cam2ego, img_aug = (made[name][:1, 0] for name in names)
    rig = CameraRig.create(intrinsics, cam2ego, made['cam2lidar'][:1], img_aug)
    np.testing.assert_array_equal(on_device[0].numpy(), plain_depth_maps(points, rig, (128, 224)))
    # float64 places a few points, those on a pixel's border, in the neighbouring one; the cells' labels hardly notice
    exact = plain_depth_maps(points.double(), rig.to(torch.float64), (128, 224))
    assert (np.abs(on_device[0].numpy() - exact) > 1e-3).sum() < 0.005 * (exact > 0).sum()
    labels, of_exact = depth_labels(on_device[0], bins, 16), depth_labels(torch.from_numpy(exact), bins, 16)
    assert (labels != of_exact).float().mean() < 0.01


def test_the_same_seed_gives_the_same_sample(sample: Dict[str, Any], bevdet_pipeline: Build) -> None:
    first, again, other = (run(bevdet_pipeline(frames=3), sample, seed) for seed in (7, 7, 8))
    for key, value in first['inputs'].items():
        torch.testing.assert_close(again['inputs'][key], value, rtol=0, atol=0)
    for key in ('images', 'img_aug', 'bev_aug', 'depth_map'):
        assert not torch.equal(other['inputs'][key], first['inputs'][key])
    boxes = [result['data_samples'].gt_instances_3d.bboxes_3d.tensor for result in (first, again, other)]
    assert torch.equal(boxes[0], boxes[1])
    assert not torch.equal(boxes[0], boxes[2])
    plain = [run(bevdet_pipeline(frames=3, training=False), sample, seed)['inputs']['images'] for seed in (1, 2)]
    assert torch.equal(*plain)


def test_the_key_ego_frame_is_the_first_cameras(sample: Dict[str, Any], bevdet_pipeline: Build) -> None:
    packed = run(bevdet_pipeline(frames=3), sample)['inputs']
    torch.testing.assert_close(packed['ego2global'][0, 0], torch.eye(4), atol=1e-6, rtol=0)
    assert packed['ego2global'][1, 0, :3, 3].norm() > 0.5  # the vehicle has moved
    torch.testing.assert_close(packed['ego2global'][2], packed['ego2global'][0])  # the scene's start: the key frame


def frame_without(results: Dict[str, Any], key: str, camera: str, past: bool) -> None:
    images = (results['past_frames'][0] if past else results)['images']
    images[camera].pop(key) if key else images.pop(camera)


@pytest.mark.parametrize('past', [False, True])
@pytest.mark.parametrize(
    'key, message',
    [
        ('ego2global', r"CAM_BACK: no 'ego2global' in the info file, .* python -m geomim infos ROOT"),
        ('cam2ego', "CAM_BACK: no 'cam2ego' in the info file"),
        ('img_path', "CAM_BACK: .* no 'img_path' in the info file"),
        ('', 'no camera CAM_BACK; the info file has'),
    ],
)
def test_what_is_missing_is_named(
    sample: Dict[str, Any], bevdet_pipeline: Build, past: bool, key: str, message: str
) -> None:
    token = (sample['past_frames'][0] if past else sample)['token']
    frame_without(sample, key, 'CAM_BACK', past)
    with pytest.raises(ValueError, match=f'sample {token}.*{message}'):
        run(bevdet_pipeline(frames=3)[:1], sample)


@pytest.mark.parametrize('kind', [np.uint8, np.float32])
def test_channels_first_is_a_transposed_stack(kind: Any) -> None:
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, 5, 7, 3)).astype(kind)
    packed = channels_first([list(frame) for frame in images])
    assert packed.dtype == kind
    np.testing.assert_array_equal(packed, np.transpose(images, (0, 1, 4, 2, 3)))


def test_wrong_numbers_and_orders(sample: Dict[str, Any], bevdet_pipeline: Build) -> None:
    steps = bevdet_pipeline(frames=3, depth=False)
    with pytest.raises(
        ValueError, match='3 frames with the key frame, LoadSurroundFrames expects 2; multi_adj_frame_id'
    ):
        run(bevdet_pipeline(frames=2), sample)
    with pytest.raises(ValueError, match='num_frames counts the key frame'):
        LoadSurroundFrames(num_frames=0)
    bad = copy.deepcopy(sample)
    bad['past_frames'][0]['images']['CAM_BACK']['ego2global'][0][3] = math.nan
    with pytest.raises(ValueError, match='CAM_BACK: ego2global must be .* finite'):
        run(steps[:1], bad)
    loaded = run(steps[:1], sample)
    loaded['frames'][1]['img'][2] = loaded['frames'][1]['img'][2][:200]
    with pytest.raises(ValueError, match=r'CAM_FRONT_RIGHT: image of shape \(200, 400, 3\), in the key frame'):
        run(steps[1:2], loaded)
    with pytest.raises(ValueError, match='BEVDetBEVAug goes after BoxesToKeyEgo'):
        run([steps[2], steps[4]], sample)
    with pytest.raises(ValueError, match='BoxesToKeyEgo goes after LoadSurroundFrames'):
        BoxesToKeyEgo().transform(copy.deepcopy(sample))
    with pytest.raises(ValueError, match='PackBEVDetInputs goes after BEVDetBEVAug'):
        run([*steps[:4], steps[5]], sample)
    loaded = run(steps[:5], sample)
    loaded['frames'][1]['cam_names'] = loaded['frames'][1]['cam_names'][::-1]
    with pytest.raises(ValueError, match='frames differ in their cameras'):
        PackBEVDetInputs().transform(loaded)


def moved(pose: Any, metres: float) -> List[List[float]]:
    matrix = np.array(pose)
    matrix[0, 3] += metres
    return matrix.tolist()


@pytest.mark.parametrize('frame', [None, 0])
@pytest.mark.parametrize('camera', ['CAM_FRONT_LEFT', 'CAM_BACK'])
@pytest.mark.parametrize(
    'key, change, message',
    [
        ('ego2global', lambda pose: moved(pose, 3000), r'ego2global lies \d+ m from the key frame'),
        ('ego2global', lambda pose: (2 * np.asarray(pose)).tolist(), 'ego2global has a last row other than 0 0 0 1'),
        ('ego2global', lambda pose: np.zeros((4, 4)).tolist(), 'ego2global has a last row other than 0 0 0 1'),
        ('cam2ego', lambda pose: np.diag([1, 1, 1, 0]).tolist(), 'cam2ego has a last row'),
        ('cam2img', lambda _: np.eye(3).tolist(), 'cam2img is the identity'),
    ],
)
def test_geometry_that_cannot_be_is_named(
    sample: Dict[str, Any], bevdet_pipeline: Build, frame: Any, camera: str, key: str, change: Any, message: str
) -> None:
    """Of the key frame and of a past one, of the camera whose ego frame is the model's and of another."""
    holder = sample if frame is None else sample['past_frames'][frame]
    entry = holder['images'][camera]
    entry[key] = change(entry[key])
    with pytest.raises(ValueError, match=f'sample {holder["token"]}, camera {camera}: {message}'):
        run(bevdet_pipeline(frames=3)[:1], sample)


@pytest.mark.parametrize(
    'step, key', [('BoxesToKeyEgo', 'ego2global'), ('BoxesToKeyEgo', 'lidar2ego'), ('GridToLidarEgo', 'ego2global')]
)
@pytest.mark.parametrize(
    'change, message',
    [
        (lambda pose: (np.asarray(pose) * math.nan).tolist(), 'holds values that are not finite'),
        (lambda pose: np.asarray(pose)[:3].tolist(), r'has shape \(3, 4\), expected \(4, 4\)'),
        (lambda pose: np.zeros((4, 4)).tolist(), 'has a last row other than 0 0 0 1'),
        (lambda pose: (np.asarray(pose) @ np.diag([3, 3, 3, 1])).tolist(), 'is scaled by 3'),
    ],
)
def test_poses_of_the_lidar_that_cannot_be_name_the_sample(
    sample: Dict[str, Any], step: str, key: str, change: Any, message: str
) -> None:
    holder = sample if key == 'ego2global' else sample['lidar_points']
    holder[key] = change(holder[key])
    with pytest.raises(ValueError, match=f'sample {sample["token"]}: {key} {message}'):
        run([dict(type=step)], dict(sample, cam_names=['CAM_FRONT'], bev_aug_matrix=np.eye(4)))


def test_a_lidar_whose_ego_pose_jumps_is_refused(sample: Dict[str, Any]) -> None:
    sample['ego2global'] = moved(sample['ego2global'], 3000)
    with pytest.raises(ValueError, match=rf'sample {sample["token"]}: the LiDAR lies \d+ m from the key frame'):
        run([dict(type='BoxesToKeyEgo')], dict(sample, cam_names=['CAM_FRONT']))


@pytest.mark.parametrize(
    'column, value', [(0, math.nan), (3, -1.0), (4, 0.0), (5, math.inf), (6, math.nan), (8, -math.inf)]
)
def test_boxes_that_teach_nothing_are_told_once(sample: Dict[str, Any], column: int, value: float) -> None:
    """Unknown velocities are none of them."""
    sample['cam_names'] = ['CAM_FRONT']
    boxes = torch.tensor([[3.0, 2, -1, 4, 2, 1.5, 0.3, math.nan, math.nan]]).repeat(3, 1)
    step = BoxesToKeyEgo()
    messages = []
    for bad in (False, True, True):
        boxes[1, column] = value if bad else 1.0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            step.transform(dict(sample, gt_bboxes_3d=LiDARInstance3DBoxes(boxes.clone(), box_dim=9)))
        messages.append([str(one.message) for one in caught])
    assert [len(each) for each in messages] == [0, 1, 0]
    assert messages[1][0].startswith(f'doubtful data: sample {sample["token"]}: 1 of 3 boxes have values')


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: DataConfig.create(dict(Ncams=5)), 'Ncams=5 for 6 cams'),
        (lambda: DataConfig.create(dict(cam=['CAM_FRONT'])), 'unknown cam; it may hold cams'),
        (lambda: DataConfig.create(dict(cams=['A', 'A'])), 'must name each camera once'),
        (lambda: DataConfig.create(dict(rot=(5.4, -5.4))), r'rot must be \(low, high\)'),
        (lambda: SurroundFramesAug(dict(input_size=(250, 704))), 'no multiple of 32; 224 or 256 would be'),
        (lambda: SurroundFramesAug(dict(resize=(-0.5, 0.1))), r'resize must be \(low, high\)'),
        (lambda: BEVDetBEVAug(dict(flip_dx_ratio=2)), r'flip_dx_ratio is a probability in \[0, 1\], got 2'),
        (lambda: BEVDetBEVAug(dict(scale_lim=(0, 1))), 'scale_lim must be'),
        (lambda: TRANSFORMS.build(dict(type='KeyFrameDepthMaps', depth_range=(0, 60))), 'must be .* above 0 m'),
    ],
)
def test_settings_that_cannot_be(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize('place', ['LoadAnnotations3D', 'BoxesToKeyEgo', 'BEVDetBEVAug'])
@pytest.mark.parametrize('cams', [['CAM_FRONT'], ['CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT']])
def test_boxes_that_no_camera_sees_are_no_targets(
    sample: Dict[str, Any], bevdet_pipeline: Build, cams: List[str], place: str
) -> None:
    """Where the pixels of the packed images say so, wherever the step stands."""
    steps = bevdet_pipeline(frames=3, depth=False, data_config=dict(DATA_CONFIG, cams=cams, Ncams=len(cams)))
    order = [step['type'] for step in steps]
    filtered = [*steps[: order.index(place) + 1], dict(type='ObjectInViewFilter'), *steps[order.index(place) + 1 :]]
    shares = []
    for seed in range(3):
        everything, found = run(steps, sample, seed), run(filtered, sample, seed)
        boxes, labels = (everything['data_samples'].gt_instances_3d[key] for key in ('bboxes_3d', 'labels_3d'))
        grid = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, 15)] * 3, indexing='ij'), dim=-1).reshape(-1, 3)
        corners = boxes.corners
        points = corners[:, :1] + torch.einsum('pk,mkc->mpc', grid, corners[:, [4, 3, 1]] - corners[:, :1])
        uv, depth = pixels(everything, points.flatten(0, 1))
        inside = (depth[0] > 0) & (uv[0] >= 0).all(-1) & (uv[0, ..., 0] < 224) & (uv[0, ..., 1] < 128)
        expected = inside.any(0).view(len(boxes), -1).any(1)
        left = found['data_samples'].gt_instances_3d
        torch.testing.assert_close(left.bboxes_3d.tensor, boxes.tensor[expected])
        assert torch.equal(left.labels_3d, labels[expected])
        shares.append(len(left.bboxes_3d) / len(boxes))
    assert 0 < min(shares) <= max(shares) < 0.9


def test_the_filter_takes_pretrainings_pipeline_too(sample: Dict[str, Any]) -> None:
    steps = [
        dict(type='LoadCameraRig', cameras=['CAM_FRONT']),
        dict(type='LoadSurroundImages'),
        dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
        dict(type='SurroundImageAug', final_size=(64, 96), resize=(0.25, 0.3)),
        dict(type='ObjectInViewFilter'),
        dict(type='BEVFlip', flip_x=1.0, flip_y=1.0),
        dict(type='ObjectInViewFilter'),
    ]
    unmoved, moved = run(steps[:5], sample), run(steps, sample)
    assert 0 < len(unmoved['gt_bboxes_3d']) < len(sample['ann_info']['gt_bboxes_3d'])
    np.testing.assert_array_equal(moved['gt_labels_3d'], unmoved['gt_labels_3d'])
    with pytest.raises(ValueError, match='needs LoadCameraRig'):
        run(steps[2:3] + steps[4:5], dict(sample, cam2img=np.eye(3)))

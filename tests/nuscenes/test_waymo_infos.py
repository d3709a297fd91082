"""Waymo's five cameras: pretraining and MV-FCOS3D++ on mmdet3d's own WaymoDataset, with info files made from a synthetic world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict

import mmengine
import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, init_default_scope

from geomim.method.depth import depth_maps
from geomim.mmdet3d.loading import LoadCameraRig
from geomim.mmengine.rig import build_rig
from geomim.nuscenes.waymo_infos import CAMERAS, make_waymo_infos

from ..helpers import linked_world, run_quietly

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'mmdet3d'
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
LEARNING = 60  # iterations


@pytest.fixture(scope='module')
def waymo_world(five_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five-camera world by links, with Waymo's info files and points."""
    return make_waymo_infos(linked_world(five_world, tmp_path_factory.mktemp('waymo') / 'world'))


def corners_hold(points: np.ndarray, box: np.ndarray, bottom: bool) -> np.ndarray:
    """Which points (M, 3) lie in a box x, y, z, length, width, height, yaw; z of its bottom or its middle."""
    local = points - box[:3]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    along, across = local[:, 0] * cos + local[:, 1] * sin, local[:, 1] * cos - local[:, 0] * sin
    up = local[:, 2] - (box[5] / 2 if bottom else 0)
    return (abs(along) <= box[3] / 2) & (abs(across) <= box[4] / 2) & (abs(up) <= box[5] / 2)


def test_boxes_hold_the_points_that_they_held(waymo_world: Path) -> None:
    before = mmengine.load(waymo_world / 'nuscenes_infos_train.pkl')
    after = mmengine.load(waymo_world / 'waymo_infos_train.pkl')
    names = {number: name for name, number in before['metainfo']['categories'].items()}
    waymo = {number: name for name, number in after['metainfo']['categories'].items()}
    held = differing = 0
    for old, new in zip(before['data_list'], after['data_list']):
        cloud = waymo_world / 'samples/LIDAR_TOP' / Path(old['lidar_points']['lidar_path']).name
        points = np.fromfile(cloud, np.float32).reshape(-1, 5)
        path = waymo_world / 'training/velodyne' / new['lidar_points']['lidar_path']
        moved = np.fromfile(path, np.float32).reshape(-1, new['lidar_points']['num_pts_feats'])
        kept = [
            row for row in old['instances'] if row['num_lidar_pts'] and names[row['bbox_label_3d']] in waymo_names()
        ]
        assert len(kept) == len(new['instances'])
        for row, other in zip(kept, new['instances']):
            assert waymo[other['bbox_label_3d']] == waymo_names()[names[row['bbox_label_3d']]]
            inside = corners_hold(points[:, :3], np.array(row['bbox_3d']), bottom=False)
            still = corners_hold(moved[:, :3], np.array(other['bbox_3d']), bottom=True)
            held, differing = held + int(inside.sum()), differing + int((inside != still).sum())
    assert held > 100
    # the LiDAR is tilted by a degree or two, and boxes stand upright in both frames
    assert differing < 0.1 * held


def waymo_names() -> Dict[str, str]:
    vehicles = dict.fromkeys(('car', 'truck', 'trailer', 'bus', 'construction_vehicle'), 'Car')
    return {**vehicles, 'pedestrian': 'Pedestrian', 'bicycle': 'Cyclist', 'motorcycle': 'Cyclist'}


def test_points_fall_on_the_pixels_that_they_fell_on(waymo_world: Path) -> None:
    old = mmengine.load(waymo_world / 'nuscenes_infos_val.pkl')['data_list'][0]
    new = mmengine.load(waymo_world / 'waymo_infos_val.pkl')['data_list'][0]
    assert new['sample_idx'] // 1_000_000 == 1
    for name in CAMERAS:
        lidar2ego = np.array(old['lidar_points']['lidar2ego'])
        point = np.array([3.0, 20.0, -1.0, 1.0])
        camera = old['images'][name]
        expected = np.array(camera['cam2img']) @ (np.array(camera['lidar2cam']) @ point)[:3]
        found = np.array(new['images'][name]['lidar2img']) @ lidar2ego @ point
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_folders_that_do_not_fit_are_named(small_world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='has no nuscenes_infos_train.pkl; python -m geomim infos'):
        make_waymo_infos(tmp_path)
    root = linked_world(small_world, tmp_path / 'world')
    with pytest.raises(ValueError, match='no camera CAM_SIDE_LEFT, CAM_SIDE_RIGHT.*--rig five'):
        make_waymo_infos(root)
    assert not list(root.glob('waymo_infos_*'))


def test_info_files_of_an_older_mmdet3d_give_way_to_those_beside(five_world: Path, tmp_path: Path) -> None:
    root = linked_world(five_world, tmp_path / 'world')
    (root / 'mmdet3d-1.1').mkdir()
    for split in ('train', 'val'):
        path = root / f'nuscenes_infos_{split}.pkl'
        path.rename(root / 'mmdet3d-1.1' / path.name)
        mmengine.dump({'infos': [], 'metadata': {}}, path)
    make_waymo_infos(root)
    assert mmengine.load(root / 'waymo_infos_val.pkl')['data_list']


def test_a_folder_of_another_order_is_named(five_world: Path, tmp_path: Path) -> None:
    root = linked_world(five_world, tmp_path / 'world')
    path = root / 'nuscenes_infos_train.pkl'
    infos = mmengine.load(path)
    infos['data_list'][0]['lidar_points']['lidar_path'] = 'scene-1/00000.bin'
    path.unlink()
    mmengine.dump(infos, path)
    with pytest.raises(ValueError, match=r'scene-1/00000.bin does not exist; --for waymo takes'):
        make_waymo_infos(root)


def on_world(config: Config, root: Path) -> Config:
    """Point a Waymo configuration to the world, which keeps images where nuScenes has them."""
    for name in LOADERS:
        loader = config[name]
        loader.num_workers, loader.persistent_workers = 0, False
        loader.dataset.update(data_root=f'{root}/', load_interval=1)
        loader.dataset.data_prefix = dict(
            pts='training/velodyne', **{camera: f'samples/{camera}' for camera in CAMERAS}
        )
    return config


def pretraining(root: Path) -> Config:
    config = on_world(Config.fromfile(CONFIGS / 'pretrain' / 'geomim_swin-b_50e_waymo_256x704.py'), root)
    config.model.init_from = config.model.teacher.checkpoint = None
    for name in LOADERS:  # the world's images are a sixth as large
        for step in config[name].dataset.pipeline:
            if step['type'] == 'SurroundImageAug':
                step.update(final_size=(64, 96), resize=(0.3, 0.32), test_resize=0.3)
    return config


def test_a_pretraining_sample_has_the_rig_of_the_vehicle(waymo_world: Path, five_world: Path) -> None:
    from mmdet3d.registry import DATASETS

    init_default_scope('mmdet3d')
    config = pretraining(waymo_world)
    sample = DATASETS.build(config.val_dataloader.dataset)[0]
    meta = sample['data_samples'].metainfo
    assert meta['cam_names'] == list(CAMERAS)
    mounts = json.loads(five_world.with_suffix('.json').read_text())['cameras']
    for pose, name in zip(meta['cam2ego'], CAMERAS):
        # cameras and LiDAR have their own time stamps; the vehicle drives on between them
        np.testing.assert_allclose(np.asarray(pose)[:3, 3], mounts[name]['translation'], atol=0.15)
    assert tuple(sample['inputs']['img'].shape) == (5, 3, 64, 96)
    maps = depth_maps([sample['inputs']['points']], build_rig([meta]), (64, 96))[0]
    assert all(int((depth > 0).sum()) > 10 for depth in maps)
    assert sample['inputs']['points'].shape[1] == 5


def test_waymos_pretraining_steps(waymo_world: Path) -> None:
    """The configuration's own teacher and grid, a small student."""
    from mmdet3d.registry import DATASETS

    init_default_scope('mmdet3d')
    config = pretraining(waymo_world)
    student = config.model.student
    student.encoder = dict(
        embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=(4, 4, 3, 2), pretrain_img_size=32
    )
    student.decoder = dict(dim=16, num_heads=2, depth=4, cross_view_after=(2,), geometry_from=3)
    student.view_transform.update(image_size=(64, 96), channels=8)
    model = MODELS.build(config.model)
    assert model.teacher.record.grid.shape == (234, 234)
    data = pseudo_collate([DATASETS.build(config.train_dataloader.dataset)[0]])
    losses = model.train()(**model.data_preprocessor(data, True), mode='loss')
    sum(losses.values()).backward()
    losses = {name: value.detach() for name, value in losses.items()}
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())
    assert float(losses['loss_depth']) > 0
    assert 0.1 < float(losses['loss_reconstruction']) < 10


@pytest.mark.parametrize(
    'name', ['pretrain/geomim_swin-b_50e_waymo_256x704.py', 'waymo/mvfcos3d_swin-b_geomim_8xb2_waymoD5-3d-3class.py']
)
def test_full_size_builds(name: str) -> None:
    config = Config.fromfile(CONFIGS / name)
    init_default_scope('mmdet3d')
    if 'pretrain' in name:
        config.model.init_from = config.model.teacher.checkpoint = None
    else:
        config.model.backbone.init_cfg = None
    model = MODELS.build(config.model)
    encoder = model.student.encoder if 'pretrain' in name else model.backbone
    assert sum(value.numel() for value in encoder.parameters()) > 86e6
    assert len(encoder.stages[2].blocks) == 18
    if 'pretrain' not in name:
        assert [level.conv.in_channels for level in model.neck.lateral_convs] == [128, 256, 512, 1024]


def test_points_in_the_ego_frame_need_no_pose_of_the_camera() -> None:
    lidar2cam = np.eye(4)
    lidar2cam[:3, 3] = [1.0, -2.0, 0.5]
    image = {'cam2img': np.c_[np.diag([100.0, 100.0, 1.0]), np.zeros(3)].tolist(), 'lidar2cam': lidar2cam.tolist()}
    results: Dict[str, Any] = {'sample_idx': 7, 'images': {'CAM_FRONT': image}}
    rig = LoadCameraRig(lidar_is_ego=True).transform(dict(results))
    np.testing.assert_allclose(rig['cam2ego'][0], np.linalg.inv(lidar2cam))
    assert rig['cam2img'].shape == (1, 3, 3)
    with pytest.raises(ValueError, match=r"sample 7, camera CAM_FRONT: no 'cam2ego'.*lidar_is_ego=True"):
        LoadCameraRig().transform(dict(results))


def train(config: Path, work_dir: Path) -> None:
    from geomim.nuscenes.infos import mmdet3d_tools

    run_quietly([mmdet3d_tools() / 'train.py', config, '--work-dir', work_dir])


def tiny_detector(root: Path, encoder: Path) -> Config:
    """The tiny configuration with smaller images, for four iterations."""
    config = on_world(Config.fromfile(CONFIGS / 'waymo' / 'mvfcos3d_tiny_synthetic.py'), root)
    config.model.backbone.init_cfg.checkpoint = str(encoder)
    for name in LOADERS:
        for step in config[name].dataset.pipeline:
            if step['type'] == 'MultiViewWrapper':
                step.transforms[0].scale = (160, 107)
    config.train_cfg.update(max_iters=4, val_interval=4)
    config.default_hooks.checkpoint.interval = 2
    config.default_hooks.logger.interval = 1
    return config


@pytest.mark.long
def test_mv_fcos3d_trains_and_evaluates(waymo_world: Path, tiny_encoder: Callable[[str], Path], tmp_path: Path) -> None:
    from geomim.checkpoints.loading import read_checkpoint

    config = tmp_path / 'tiny.py'
    tiny_detector(waymo_world, tiny_encoder('mmdet')).dump(config)
    train(config, tmp_path / 'run')
    log = next(tmp_path.glob('run/*/*.log')).read_text()
    assert 'GeoMIMSwin: ' in log
    assert 'left at their initial values: 4 (norm0.bias, norm0.weight, norm1.bias, norm1.weight)' in log
    assert 'mAP_0.25: ' in log
    before, after = (read_checkpoint(tmp_path / f'run/iter_{count}.pth')['state_dict'] for count in (2, 4))
    assert any(not torch.equal(before[name], value) for name, value in after.items())


@pytest.mark.long
def test_mv_fcos3d_learns_a_street_better_than_anothers_boxes(
    waymo_world: Path, tiny_encoder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Two frames, from an encoder that GeoMIM pretrained. Who does not look might as well give the other street's boxes."""
    path = tmp_path / 'learner.py'
    config = tiny_detector(waymo_world, tiny_encoder('mmdet'))
    config.val_dataloader.dataset.ann_file = config.test_dataloader.dataset.ann_file = 'waymo_infos_train.pkl'
    config.optim_wrapper.optimizer.lr = 3e-3
    config.train_cfg.update(max_iters=LEARNING, val_interval=LEARNING)
    config.default_hooks.checkpoint.interval = LEARNING
    warm_up, decay = config.param_scheduler
    warm_up.end = LEARNING // 10
    decay.update(T_max=LEARNING, end=LEARNING)
    config.dump(path)
    train(path, tmp_path / 'run')
    rows = [json.loads(line) for line in next((tmp_path / 'run').rglob('scalars.json')).read_text().splitlines()]
    (found,) = [row['mAP_0.25'] for row in rows if 'mAP_0.25' in row]
    others = boxes_of_the_other_street(config)
    assert others < 0.01
    assert found > others + 0.015


def boxes_of_the_other_street(config: Config) -> float:
    """mAP at an overlap of 0.25 of the validation scene's boxes in place of detections on the training scene."""
    from mmdet3d.registry import DATASETS, METRICS

    init_default_scope('mmdet3d')
    settings = config.val_dataloader.dataset
    street, other = (DATASETS.build({**settings, 'ann_file': f'waymo_infos_{split}.pkl'}) for split in ('train', 'val'))
    metric = METRICS.build(config.val_evaluator)
    metric.dataset_meta = street.metainfo
    for index in range(len(street)):
        sample = street[index]['data_samples'].to_dict()
        boxes = other[index % len(other)]['data_samples'].eval_ann_info
        labels = torch.as_tensor(boxes['gt_labels_3d'])
        scores = torch.ones(len(labels))
        sample['pred_instances_3d'] = dict(bboxes_3d=boxes['gt_bboxes_3d'], labels_3d=labels, scores_3d=scores)
        metric.process({}, [sample])
    return float(metric.evaluate(len(street))['mAP_0.25'])

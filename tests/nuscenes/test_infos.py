"""Info files of the synthetic world by mmdet3d's own converter: mmdet3d's dataset and metric read them, cameras and points
fit together, and the data folder is touched only when all is done."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

import mmengine
from mmdet3d.structures.ops import box_np_ops
from mmengine.config import Config

from geomim.__main__ import main
from geomim.method.depth import depth_maps
from geomim.mmengine.rig import build_rig
from geomim.nuscenes import infos
from geomim.nuscenes.bevdet_infos import make_bevdet_infos
from geomim.nuscenes.infos import NUSCENES_CAMERAS, info_names, make_infos
from geomim.synthetic import Recipe, make_recipe, write_world
from geomim.synthetic.cast import camera_beams, cast, freeze
from geomim.synthetic.keyframe import KEYFRAME
from geomim.synthetic.sensors import FARTHEST_PIXEL

from ..helpers import linked_version, run_quietly

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'mmdet3d'
PREFIX = 'NuScenes metric/pred_instances_3d_NuScenes'


@pytest.fixture(scope='module')
def base() -> Any:
    import mmdet3d.utils

    mmdet3d.utils.register_all_modules(init_default_scope=True)
    return Config.fromfile(str(CONFIGS / '_base_/nuscenes_surround.py'))


def dataset(base: Any, root: Path, split: str, pipeline: List[Any], **changes: Any) -> Any:
    from mmdet3d.datasets import NuScenesDataset

    settings = dict(base.val_dataloader.dataset, data_root=f'{root}/', ann_file=f'nuscenes_infos_{split}.pkl')
    settings.pop('type')
    return NuScenesDataset(**{**settings, 'pipeline': pipeline, **changes})


def points_in(boxes: Any, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """How many of the points each box, made larger on all sides by a margin (metres), holds, by mmdet3d."""
    larger = boxes.tensor[:, :7].numpy() + np.array([0, 0, -margin, 2 * margin, 2 * margin, 2 * margin, 0])
    return box_np_ops.points_in_rbbox(points[:, :3], larger).sum(axis=0)


def digests(root: Path) -> Dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob('*')
        if path.is_file()
    }


@pytest.mark.parametrize('split, count', [('train', 4), ('val', 2)])
def test_mmdet3ds_dataset_reads_ten_sweeps(base: Any, small_world: Path, split: str, count: int) -> None:
    pipeline = [
        dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5),
        dict(type='LoadPointsFromMultiSweeps', sweeps_num=10, use_dim=[0, 1, 2, 3, 4], test_mode=True),
    ]
    data = dataset(base, small_world, split, pipeline, test_mode=False, filter_empty_gt=False)
    assert len(data) == count
    grown = []
    for index in range(count):
        info, sample = data.get_data_info(index), data[index]
        points = sample['points'].tensor
        alone = np.fromfile(info['lidar_points']['lidar_path'], np.float32).reshape(-1, 5)
        first = 'lidar_sweeps' not in info or not info['lidar_sweeps']
        assert first == (index % 2 == 0)
        if first:
            continue
        assert len(info['lidar_sweeps']) == 10
        times = points[:, 4].unique()
        np.testing.assert_allclose(times, np.arange(11) / 20, atol=1e-4)  # seconds since the sweep
        assert len(points) > 9 * len(alone)
        # what stands still has grown by the sweeps' points, in its box, though the vehicle has moved on
        boxes, labels = info['ann_info']['gt_bboxes_3d'], info['ann_info']['gt_labels_3d']
        still = boxes.tensor[:, 7:].norm(dim=1) < 1e-3
        now, ten = points_in(boxes, alone), points_in(boxes, points.numpy())
        grown += (ten / np.maximum(now, 1))[still.numpy() & (now > 60)].tolist()
        assert labels.min() >= 0
    assert len(grown) > 5
    assert 8 < np.median(grown) < 13


def test_boxes_hold_the_points_that_they_count(base: Any, small_world: Path) -> None:
    total = 0
    for split in ('train', 'val'):
        data = dataset(base, small_world, split, [], test_mode=False, use_valid_flag=True)
        for index in range(len(data)):
            info = data.get_data_info(index)
            counts = [instance['num_lidar_pts'] for instance in info['instances'] if instance['bbox_3d_isvalid']]
            assert all(instance['bbox_3d_isvalid'] == (instance['num_lidar_pts'] > 0) for instance in info['instances'])
            points = np.fromfile(info['lidar_points']['lidar_path'], np.float32).reshape(-1, 5)[:, :3]
            boxes = info['ann_info']['gt_bboxes_3d']
            assert len(boxes) == len(counts) > 15
            # in the frame of the LiDAR, which leans by 1.4 degrees, mmdet3d's boxes stand upright
            assert (points_in(boxes, points, 0.2) >= counts).all()
            assert (points_in(boxes, points, -0.2) <= counts).all()
            assert np.abs(points_in(boxes, points) - counts).sum() < 0.1 * np.sum(counts)
            total += np.sum(counts)
    assert total > 5000


def test_ground_truth_scores_all_that_there_is(base: Any, small_world: Path) -> None:
    """Through mmdet3d's NuScenesMetric: AP of 1 for every class with a valid box in its range."""
    from mmdet3d.evaluation.metrics import NuScenesMetric

    data = dataset(base, small_world, 'val', [], test_mode=False, use_valid_flag=True)
    metric = NuScenesMetric(str(small_world), str(small_world / 'nuscenes_infos_val.pkl'), metric='bbox')
    metric.dataset_meta = data.metainfo
    ranges = metric.eval_detection_configs.class_range
    present = set()
    for index in range(len(data)):
        info = data.get_data_info(index)
        boxes, labels = info['ann_info']['gt_bboxes_3d'], torch.from_numpy(info['ann_info']['gt_labels_3d'])
        ego = boxes.tensor[:, :3] @ torch.tensor(info['lidar_points']['lidar2ego']).float()[:3, :3].T
        apart = (ego[:, :2] + torch.tensor(info['lidar_points']['lidar2ego'])[:2, 3]).norm(dim=1)
        names = [data.metainfo['classes'][label] for label in labels]
        present |= {name for name, distance in zip(names, apart) if distance < ranges[name]}
        found = dict(bboxes_3d=boxes, labels_3d=labels, scores_3d=torch.ones(len(labels)))
        sample = dict(pred_instances_3d=found, pred_instances={}, sample_idx=info['sample_idx'])
        metric.process({}, [sample])
    scores = metric.evaluate(len(data))
    assert len(present) >= 8
    for name in data.metainfo['classes']:
        for distance in ('0.5', '1.0', '2.0', '4.0'):
            assert scores[f'{PREFIX}/{name}_AP_dist_{distance}'] == pytest.approx(float(name in present), abs=1e-3), (
                name
            )
        if name in present:
            errors = {kind: scores[f'{PREFIX}/{name}_{kind}_err'] for kind in ('trans', 'scale', 'orient', 'vel')}
            for kind, error in errors.items():
                assert np.isnan(error) or error < 0.01, (name, kind)
    assert scores[f'{PREFIX}/mAP'] == pytest.approx(len(present) / 10, abs=1e-3)
    means = [min(1.0, scores[f'{PREFIX}/{kind}']) for kind in ('mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE')]
    expected = (5 * len(present) / 10 + sum(1 - error for error in means)) / 10
    assert scores[f'{PREFIX}/NDS'] == pytest.approx(expected, abs=2e-3)
    if len(present) == 10:
        assert scores[f'{PREFIX}/NDS'] > 0.9


def rig_world(rig: str, folder: Path) -> Path:
    """One keyframe a scene of another rig; the converter is patched for it, so it runs in a process of its own."""
    root = write_world(folder / rig, make_recipe(scenes='1+1', frames=1, image_size=(120, 200), rig=rig))
    run_quietly(['-m', 'geomim', 'infos', root, '--for', 'mmdet3d'])
    return root


@pytest.mark.parametrize('rig', ['nuscenes', 'front', 'five'])
def test_cameras_of_any_rig_see_the_points(rig: str, small_world: Path, tmp_path: Path) -> None:
    """By lidar2cam and cam2img, points on things at rest fall on pixels of those things."""
    if rig == 'nuscenes':
        root, recipe = small_world, make_recipe(scenes='2+1', frames=2, image_size=(225, 400))
        names = NUSCENES_CAMERAS
    else:
        root, recipe = rig_world(rig, tmp_path), make_recipe(scenes='1+1', frames=1, image_size=(120, 200), rig=rig)
        names = tuple(recipe.rig['cameras'])
        assert len(names) == {'front': 1, 'five': 5}[rig]
    agree, visible = 0, 0
    for split in ('train', 'val'):
        file = mmengine.load(str(root / f'nuscenes_infos_{split}.pkl'))
        assert file['metainfo']['version'] == recipe.version == 'v1.0-trainval'
        for info in file['data_list']:
            assert set(info['images']) == set(names)
            found = seen_points(root, recipe, info)
            agree, visible = agree + found[0], visible + found[1]
    assert visible > 300 * len(names)
    assert agree > 0.97 * visible


def seen_points(root: Path, recipe: Recipe, info: Dict[str, Any]) -> Any:
    """How many points on things at rest fall on pixels of the thing, and how many on pixels of their depth."""
    start = info['timestamp'] * 1e6 if info['timestamp'] < 1e12 else info['timestamp']
    index = min(range(len(recipe.scenes)), key=lambda number: abs(recipe.start(number) - start))
    time = round((start - recipe.start(index)) / KEYFRAME) * KEYFRAME / 1e6
    scene, rig = recipe.scene(index), recipe.build_rig()
    points = np.fromfile(root / 'samples/LIDAR_TOP' / info['lidar_points']['lidar_path'], np.float32).reshape(-1, 5)
    points = points[:, :3].astype(np.float64)
    lidar2world = scene.ego2world(time) @ rig.lidar.lidar2ego
    np.testing.assert_allclose(info['lidar_points']['lidar2ego'], rig.lidar.lidar2ego, atol=1e-6)
    body = body_of(scene, time, points @ lidar2world[:3, :3].T + lidar2world[:3, 3])
    points, body = points[body >= 0], body[body >= 0]
    agree = visible = 0
    for camera in rig.cameras:
        image = info['images'][camera.name]
        assert (root / 'samples' / camera.name / image['img_path']).is_file()
        np.testing.assert_allclose(np.array(image['cam2img'])[:3, :3], camera.intrinsics, atol=1e-6)
        assert abs(image['timestamp'] - (recipe.start(index) / 1e6 + time + camera.delay)) < 1e-4
        moment = time + camera.delay
        frozen = freeze(scene, moment)
        hits = cast(scene, frozen, camera_beams(camera, scene.ego2world(moment)), FARTHEST_PIXEL)
        matrix = np.array(image['lidar2cam'])
        local = points @ matrix[:3, :3].T + matrix[:3, 3]
        ahead = local[:, 2] > 0.5
        pixels = local[ahead] @ np.array(image['cam2img'])[:3, :3].T
        u, v = (pixels[:, :2] / pixels[:, 2:]).T
        height, width = camera.size
        inside = (u >= 1) & (u < width - 1) & (v >= 1) & (v < height - 1)
        u, v, depth, number = u[inside].astype(int), v[inside].astype(int), pixels[inside, 2], body[ahead][inside]
        owner = np.where(hits.solid >= 0, frozen.owner[np.maximum(hits.solid, 0)], -1)
        tolerance = 0.15 + 0.01 * depth
        near = np.abs(hits.t[v, u] - depth) < tolerance
        agree, visible = agree + (near & (owner[v, u] == number)).sum(), visible + near.sum()
        unhidden = hits.t[v, u] > depth - tolerance  # nothing stands before them in the camera's view
        if unhidden.sum() < 50:  # a bus beside the camera
            continue
        assert np.median((np.abs(hits.t[v, u] - depth) / tolerance)[unhidden]) < 0.3, camera.name
        assert near[unhidden].mean() > 0.75, camera.name  # the rest is at an edge
    return agree, visible


def body_of(scene: Any, time: float, points: np.ndarray) -> np.ndarray:
    """The body at rest in whose box each world point (M, 3) lies well above the ground; -1 for none."""
    frozen, owner = freeze(scene, time), np.full(len(points), -1)
    for number, body in enumerate(scene.bodies):
        local = points - frozen.position[number]
        cos, sin = np.cos(frozen.yaw[number]), np.sin(frozen.yaw[number])
        local = np.stack([local[:, :2] @ [cos, sin], local[:, :2] @ [-sin, cos], local[:, 2]], axis=1)
        half = np.array(body.size) / 2 + 0.05
        inside = (
            (np.abs(local[:, :2]) <= half[:2]).all(axis=1) & (local[:, 2] > 0.2) & (local[:, 2] < body.size[2] + 0.05)
        )
        owner[inside & (owner < 0)] = number if body.speed == 0 and len(body.solids) < 40 else -2
    return np.where(owner < 0, -1, owner)


def test_a_second_call_leaves_the_files_as_they_are(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infos, '_convert', lambda *_: pytest.fail('converted again'))
    files = [small_world / name for name in info_names()]
    before = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in files]
    assert make_infos(small_world) == small_world.resolve()
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in files] == before


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """What the info step says; the host's logger keeps the stream of the test that first used it."""
    said: List[str] = []
    monkeypatch.setattr(infos, 'print_log', lambda text, *_, **__: said.append(text))
    return said


@pytest.fixture
def linked(small_world: Path, tmp_path: Path) -> Path:
    """The small world without info files, by links."""
    root = tmp_path / 'linked'
    root.mkdir()
    for entry in small_world.iterdir():
        if entry.suffix != '.pkl':
            (root / entry.name).symlink_to(entry)
    return root


def fake(version: str, cameras: List[str]) -> None:
    for name in info_names(version):
        Path('data/nuscenes', name).write_bytes(b'new ' + version.encode())


def test_nothing_is_touched_when_the_converter_fails(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(version: str, cameras: List[str]) -> None:
        Path('data/nuscenes', info_names()[0]).write_bytes(b'half')
        raise RuntimeError('no space left')

    (linked / info_names()[1]).write_bytes(b'old')
    before, here = sorted(path.name for path in linked.iterdir()), Path.cwd()
    monkeypatch.setattr(infos, '_convert', fail)
    with pytest.raises(RuntimeError, match='no space left'):
        make_infos(linked)
    assert sorted(path.name for path in linked.iterdir()) == before
    assert (linked / info_names()[1]).read_bytes() == b'old'
    assert Path.cwd() == here
    monkeypatch.setattr(infos, '_convert', fake)
    make_infos(linked)
    assert {(linked / name).read_bytes() for name in info_names()} == {b'new v1.0-trainval'}
    assert Path.cwd() == here


def test_the_real_converter_changes_nothing_else(linked: Path, small_world: Path, tmp_path: Path) -> None:
    """With --out elsewhere and a table that it cannot read."""
    tables = linked / 'v1.0-trainval'
    tables.unlink()
    tables.mkdir()
    for path in (small_world / 'v1.0-trainval').iterdir():
        (tables / path.name).write_bytes(path.read_bytes())
    (tables / 'ego_pose.json').write_text('[{"token": "ha')
    before = digests(tables)
    run_quietly(['-m', 'geomim', 'infos', linked, '--for', 'mmdet3d', '--out', tmp_path / 'out'], status=2)
    assert digests(tables) == before
    assert not list(linked.glob('*.pkl'))
    assert not (tmp_path / 'out').exists() or not list((tmp_path / 'out').iterdir())


def test_boxes_out_of_sight_are_spared_and_the_files_stay_the_same(
    linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the converter left to itself; the devkit makes less than half as many boxes."""
    import nuscenes.nuscenes as devkit

    made, known = [0], devkit.NuScenes
    get_box = devkit.NuScenes.get_box

    def counted(tables: Any, token: str) -> Any:
        made[-1] += 1
        return get_box(tables, token)

    monkeypatch.setattr(devkit.NuScenes, 'get_box', counted)
    make_infos(linked, tmp_path / 'ours', force=True)
    assert devkit.NuScenes is known
    made.append(0)
    monkeypatch.setattr(infos, '_boxes_in_sight_alone', contextlib.nullcontext)
    make_infos(linked, tmp_path / 'theirs', force=True)
    for name in info_names():
        assert (tmp_path / 'ours' / name).read_bytes() == (tmp_path / 'theirs' / name).read_bytes()
    assert 100 < made[-2] < made[-1] / 2


def test_force_and_out(linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infos, '_convert', fake)
    for name in info_names():
        (linked / name).write_bytes(b'old')
    make_infos(linked, tmp_path / 'out')
    assert {(tmp_path / 'out' / name).read_bytes() for name in info_names()} == {b'new v1.0-trainval'}
    assert {(linked / name).read_bytes() for name in info_names()} == {b'old'}
    make_infos(linked, force=True)
    assert {(linked / name).read_bytes() for name in info_names()} == {b'new v1.0-trainval'}


def test_a_folder_that_is_no_nuscenes_root_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for folder in (tmp_path, tmp_path / 'nowhere'):
        with pytest.raises(ValueError, match=f'{folder} is no nuScenes root: .*v1.0-trainval/sample.json.*v1.0-mini'):
            make_infos(folder)
    assert main(['infos', str(tmp_path), '--for', 'mmdet3d']) == 2
    assert re.search('geomim infos: .* is no nuScenes root', capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_the_config_of_real_data_reads_the_world(base: Any, small_world: Path, tmp_path: Path) -> None:
    """A child for the smaller images, as the config's header describes."""
    from mmengine.runner import Runner

    import geomim.mmdet3d  # noqa: F401

    text = f"""
_base_ = ['{CONFIGS / '_base_/nuscenes_surround.py'}']
image_aug = dict(_base_.image_aug, final_size=(64, 128), resize=(0.32, 0.4), test_resize=0.36)
train_pipeline = [*_base_.load, _base_.sweeps, image_aug, *_base_.finish_train]
test_sweeps = dict(_base_.sweeps, test_mode=True)
test_pipeline = [*_base_.load, test_sweeps, dict(image_aug, training=False), *_base_.finish_test]
common = dict(data_root='{small_world}')
serial = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline, **common)), **serial)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **common), **serial)
"""
    (tmp_path / 'child.py').write_text(text)
    config = Config.fromfile(str(tmp_path / 'child.py'))
    np.random.seed(0)
    loader = Runner.build_dataloader(copy.deepcopy(config.train_dataloader), seed=0)
    assert len(loader.dataset) >= 4  # four keyframes, resampled so that the classes are equally frequent
    batch = next(iter(loader))
    assert tuple(batch['inputs']['img'][1].shape) == (6, 3, 64, 128)
    assert batch['inputs']['points'][0].shape[1] == 5
    rig = build_rig([sample.metainfo for sample in batch['data_samples']])
    assert (depth_maps(batch['inputs']['points'], rig, (64, 128))[0] > 0).float().mean() > 0.01
    assert batch['data_samples'][0].cam_names == list(config.cameras)
    test = next(iter(Runner.build_dataloader(copy.deepcopy(config.val_dataloader), seed=0)))
    first = mmengine.load(str(small_world / 'nuscenes_infos_val.pkl'))['data_list'][0]
    assert test['data_samples'][0].token == first['token']
    np.testing.assert_array_equal(test['data_samples'][0].bev_aug_matrix, np.eye(4))


def test_base_config_states_the_published_recipe(base: Any) -> None:
    train = {step.type: step for step in base.train_dataloader.dataset.dataset.pipeline}
    test = {step.type: step for step in base.test_dataloader.dataset.pipeline}
    assert tuple(train['SurroundImageAug'].final_size) == (256, 704)
    assert tuple(train['SurroundImageAug'].resize) == (0.38, 0.55)
    assert train['LoadSurroundSweeps'].sweeps_num == 9
    assert train['PointsRangeFilter'].point_cloud_range == [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
    assert test['SurroundImageAug'].training is False
    assert test['SurroundImageAug'].test_resize == 0.48
    assert test['LoadSurroundSweeps'].test_mode is True
    assert not {'BEVFlip', 'PointShuffle'} & set(test)
    assert list(train).index('CheckPointCloud') < list(train).index('PointsRangeFilter')  # which drops NaN silently
    assert base.train_dataloader.batch_size == 2


def test_the_world_says_what_it_was_made_from(small_world: Path) -> None:
    written = json.loads((small_world / 'geomim_synthetic.json').read_text())
    assert written['scenes'] == ['scene-0001', 'scene-0002', 'scene-0003']
    assert (written['version'], written['frames'], written['image_size']) == ('v1.0-trainval', 2, [225, 400])


# ------------------------------------------------------------------------------------------------------ the test split


def test_the_test_split_has_info_files_without_annotations(unannotated_world: Path, small_world: Path) -> None:
    """All its scenes, whatever the devkit lists; the rest is as with annotations."""
    made = {path.name for path in unannotated_world.glob('*.pkl')}
    assert made == {'nuscenes_infos_test.pkl', 'bevdet_infos_test.pkl'}
    annotated = [info for name in info_names() for info in mmengine.load(str(small_world / name))['data_list']]
    by_token = {info['token']: info for info in annotated}
    for name in made:
        file = mmengine.load(str(unannotated_world / name))
        assert file['metainfo']['version'] == 'v1.0-test'
        assert {info['token'] for info in file['data_list']} == set(by_token)
        for info in file['data_list']:
            assert info['instances'] == []
            assert info['lidar_points'] == by_token[info['token']]['lidar_points']
            images = {key: {**image, 'ego2global': 0} for key, image in info['images'].items()}
            assert images == {
                key: {**image, 'ego2global': 0} for key, image in by_token[info['token']]['images'].items()
            }


def test_mmdet3ds_own_dataset_reads_the_test_split(base: Any, unannotated_world: Path) -> None:
    data = dataset(base, unannotated_world, 'test', [])
    assert len(data) == 6
    assert len(data[0]['eval_ann_info']['gt_labels_3d']) == 0


def test_the_test_split_beside_others_is_asked_for(
    linked: Path, unannotated_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (linked / 'v1.0-test').symlink_to(unannotated_world / 'v1.0-test')
    monkeypatch.setattr(infos, '_convert', fake)
    make_infos(linked)
    assert sorted(path.name for path in linked.glob('*.pkl')) == sorted(info_names())
    assert main(['infos', str(linked), '--for', 'mmdet3d', '--version', 'v1.0-test']) == 0
    assert (linked / 'nuscenes_infos_test.pkl').read_bytes() == b'new v1.0-test'


# ------------------------------------------------------------------------------------------- files of an older mmdet3d

OLD = pickle.dumps({'infos': [{'token': 'a'}], 'metadata': {'version': 'v1.0-trainval'}})


def test_new_files_are_made_beside_those_of_an_older_mmdet3d(
    linked: Path, monkeypatch: pytest.MonkeyPatch, told: List[str], capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(infos, '_convert', fake)
    for name in info_names():
        (linked / name).write_bytes(OLD)
    assert main(['infos', str(linked), '--for', 'mmdet3d']) == 0
    assert 'nuscenes_infos_train.pkl is an info file of mmdet3d before 1.1' in told[0]
    assert f'{linked.resolve() / "mmdet3d-1.1"}: info files for mmdet3d' in capsys.readouterr().out
    assert {(linked / name).read_bytes() for name in info_names()} == {OLD}
    assert {(linked / 'mmdet3d-1.1' / name).read_bytes() for name in info_names()} == {b'new v1.0-trainval'}
    monkeypatch.setattr(infos, '_convert', lambda *_: pytest.fail('converted again'))
    assert make_infos(linked) == linked.resolve() / 'mmdet3d-1.1'
    monkeypatch.setattr(infos, '_convert', fake)
    assert make_infos(linked, force=True) == linked.resolve()  # as asked for, in their place
    assert {(linked / name).read_bytes() for name in info_names()} == {b'new v1.0-trainval'}


# ------------------------------------------------------------------------------------------------- links and file names


@pytest.mark.parametrize('hard_links', [True, False])
def test_where_there_are_no_symbolic_links(
    linked: Path, monkeypatch: pytest.MonkeyPatch, told: List[str], hard_links: bool
) -> None:
    """As on Windows without a developer's rights: the converter sees the same files, and nothing stays behind."""
    before = dict(contents(linked))
    seen: Dict[str, Path] = {}

    def look(version: str, cameras: List[str]) -> None:
        here = dict(contents(Path('data/nuscenes')))
        assert {name: path.read_bytes() for name, path in here.items()} == {
            name: path.read_bytes() for name, path in before.items()
        }
        assert not any(path.is_symlink() for path in here.values())
        assert all(path.samefile(before[name]) == hard_links for name, path in here.items())
        seen.update(here)
        fake(version, cameras)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(1314, 'A required privilege is not held by the client')

    monkeypatch.setattr(infos, '_convert', look)
    monkeypatch.setattr(Path, 'symlink_to', refuse)
    if not hard_links:
        monkeypatch.setattr(infos.os, 'link', refuse)
    make_infos(linked)
    assert 'no symbolic links here (' in told[0]
    assert 'hard links' in told[0]
    assert 'copies' in told[0]
    assert len(seen) > 20
    assert {path.name for path in linked.iterdir()} == {name.split('/')[0] for name in before} | set(info_names())
    assert dict(contents(linked)).keys() - set(info_names()) == before.keys()


def contents(folder: Path) -> Iterator[Tuple[str, Path]]:
    """(name from the folder on, path) of every file; pathlib's own search does not enter links to folders."""
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            yield (Path(place) / name).relative_to(folder).as_posix(), Path(place) / name


def own_tables(world: Path, root: Path, move: Callable[[str, int, str], str]) -> Path:
    """A world by links whose files lie where ``move`` says, by sensor, number of the scene and number of the file."""
    tables = {path.stem: path for path in (world / 'v1.0-trainval').iterdir()}
    rows = {
        name: json.loads(tables[name].read_text()) for name in ('sensor', 'calibrated_sensor', 'sample', 'sample_data')
    }
    channels = {row['token']: row['channel'] for row in rows['sensor']}
    channels = {row['token']: channels[row['sensor_token']] for row in rows['calibrated_sensor']}
    scenes = {row['token']: row['scene_token'] for row in rows['sample']}
    order = list(dict.fromkeys(scenes.values()))
    counts: Counter = Counter()
    for row in rows['sample_data']:
        scene, channel = order.index(scenes[row['sample_token']]), channels[row['calibrated_sensor_token']]
        name = move(channel, scene, f'{counts[scene, channel]:05d}{Path(row["filename"]).suffix}')
        counts[scene, channel] += 1
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(world / row['filename'])
        row['filename'] = name
    (root / 'v1.0-trainval').mkdir(parents=True)
    (root / 'maps').symlink_to(world / 'maps')
    for name, path in tables.items():
        if name != 'lidarseg':
            text = json.dumps(rows['sample_data']) if name == 'sample_data' else path.read_text()
            (root / 'v1.0-trainval' / path.name).write_text(text)
    return root


MOVES = {
    'a folder per scene': (lambda sensor, scene, name: f'scene-{scene}/data/{sensor}/{name}', lambda sensor: ''),
    'a folder per sensor': (lambda sensor, scene, name: f'samples/{sensor}/{scene}/{name}', 'samples/{}'.format),
    'one folder': (lambda sensor, scene, name: f'all/{sensor}_{scene}_{name}', lambda sensor: 'all'),
}


@pytest.mark.parametrize('layout', MOVES)
@pytest.mark.parametrize('world', ['small_world', 'five_world'])
def test_files_of_different_scenes_are_told_apart(
    request: pytest.FixtureRequest, world: str, layout: str, tmp_path: Path, told: List[str]
) -> None:
    """What an info file names, below the ``data_prefix`` that is told, is the file that the tables name."""
    source = request.getfixturevalue(world)
    move, prefix = MOVES[layout]
    root = own_tables(source, tmp_path / 'moved', move)
    files = infos._keyframe_files(root / 'v1.0-trainval')
    said = ' '.join(told)
    checked = set()
    for name in info_names():
        file = mmengine.load(str(source / name))
        original = copy.deepcopy(file)
        files.put_into(file)
        for info, before in zip(file['data_list'], original['data_list']):
            for sensor, image in info['images'].items():
                found = root / prefix(sensor) / image['img_path']
                assert found.samefile(source / 'samples' / sensor / before['images'][sensor]['img_path'])
                checked.add(found)
                assert f"'{sensor}': '{prefix(sensor)}'" in said or layout == 'a folder per sensor'
            cloud = root / prefix('LIDAR_TOP') / info['lidar_points']['lidar_path']
            assert cloud.samefile(source / 'samples/LIDAR_TOP' / before['lidar_points']['lidar_path'])
            assert ('lidar_sweeps' in info) == (layout == 'one folder' and 'lidar_sweeps' in before)
    assert len(checked) == sum(len(info['images']) for name in info_names() for info in read_list(source / name))
    assert ('the info files have none' in said) == (layout != 'one folder')


def read_list(path: Path) -> List[Any]:
    return mmengine.load(str(path))['data_list']


def test_nuscenes_own_names_stay(small_world: Path, told: List[str]) -> None:
    files = infos._keyframe_files(small_world / 'v1.0-trainval')
    for name in info_names():
        file = mmengine.load(str(small_world / name))
        before = repr(file)
        files.put_into(file)
        assert repr(file) == before
    assert told == []


def test_the_info_step_for_other_rigs_tells_scenes_apart(five_world: Path, tmp_path: Path) -> None:
    root = own_tables(five_world, tmp_path / 'moved', MOVES['a folder per scene'][0])
    done = run_quietly(['-m', 'geomim', 'infos', root, '--for', 'mmdet3d'])
    assert "'CAM_FRONT': ''" in done.stdout + done.stderr
    for name in info_names():
        for info, before in zip(read_list(root / name), read_list(five_world / name)):
            assert info['token'] == before['token']
            for sensor, image in info['images'].items():
                real = five_world / 'samples' / sensor / before['images'][sensor]['img_path']
                assert (root / image['img_path']).samefile(real)


@pytest.mark.parametrize('table', ['sample_data', 'sensor', 'ego_pose', 'scene'])
def test_a_table_that_is_no_json_is_named(
    linked: Path, small_world: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    tables = linked / 'v1.0-trainval'
    tables.unlink()
    tables.mkdir()
    for path in (small_world / 'v1.0-trainval').iterdir():
        (tables / path.name).symlink_to(path)
    (tables / f'{table}.json').unlink()
    (tables / f'{table}.json').write_text('[{"token": "ha')
    if table != 'sensor':
        for name in info_names():
            (linked / name).symlink_to(small_world / name)
    with pytest.raises(ValueError, match=rf'table .*{table}\.json is no JSON .*interrupted download'):
        make_bevdet_infos(linked)


def test_a_split_without_a_scene_is_named(small_world: Path, tmp_path: Path) -> None:
    """The world's scenes are those of trainval; nuScenes' mini split has other names."""
    root = tmp_path / 'own'
    tables = linked_version(small_world, root, 'v1.0-mini')
    for table in (small_world / 'v1.0-trainval').iterdir():
        if table.stem != 'lidarseg':
            (tables / table.name).symlink_to(table)
    said = run_quietly(['-m', 'geomim', 'infos', root], status=2).stderr
    assert 'nuscenes_infos_train.pkl would hold nothing: no scene of v1.0-mini' in said
    assert 'scene.json has scene-0001' in said
    assert not list(root.glob('*.pkl'))

"""Map segmentation through mmdet3d's own train.py and test.py: from an exported encoder to scores and checkpoints, and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch

pytest.importorskip('mmdet3d')

from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS

HERE = Path(__file__).resolve().parents[1]  # of micro_detector.py
CONFIGS = HERE.parents[1] / 'configs' / 'mmdet3d'
IMAGE_SIZE = (64, 128)
ITERATIONS = 3
MAP_GRID = dict(x=[-48.0, 48.0, 3.0], y=[-48.0, 48.0, 3.0])


def micro_map_config(world: Path, encoder: Any = None) -> Config:
    """The tiny configuration on the small world, with smaller images, fewer cells and channels."""
    config = Config.fromfile(
        CONFIGS / 'map_segmentation' / 'bevdepth4d_map_tiny_synthetic.py', format_python_code=False
    )
    config.custom_imports.imports.append('micro_detector')
    model = config.model
    model.img_backbone.init_cfg = None
    if encoder is not None:
        model.img_backbone.init_cfg = dict(type='Pretrained', checkpoint=str(encoder))
    model.img_neck.out_channels = 16
    view = model.img_view_transformer
    view.update(input_size=IMAGE_SIZE, in_channels=16, out_channels=8)
    view.grid_config.update(x=[-51.2, 51.2, 3.2], y=[-51.2, 51.2, 3.2], depth=[1.0, 61.0, 4.0])
    view.depthnet_cfg.aspp_mid_channels = 8
    model.pre_process.update(numC_input=8, num_channels=[8])
    model.img_bev_encoder_backbone.update(numC_input=16, num_channels=[8, 8, 16])
    model.img_bev_encoder_neck.update(in_channels=24, out_channels=16)
    model.map_head.update(in_channels=16, map_grid=MAP_GRID)
    for loader in (config.train_dataloader, config.val_dataloader):
        point_to(loader, world)
    config.train_dataloader.batch_size = 2
    config.test_dataloader = config.val_dataloader
    config.train_cfg.update(max_iters=ITERATIONS, val_interval=ITERATIONS)
    config.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=-1)
    config.default_hooks.logger.interval = 1
    config.custom_hooks.append(dict(type='DetectorRecordHook'))
    return config


def point_to(loader: Config, world: Path) -> None:
    loader.update(num_workers=0, persistent_workers=False)
    loader.dataset.data_root = f'{world}/'
    loader.dataset.metainfo.version = 'v1.0-trainval'
    for step in loader.dataset.pipeline:
        if 'data_config' in step:
            step.data_config.update(input_size=IMAGE_SIZE, rot=(-5.4, 5.4), flip=True)
        if step.type == 'BEVDetBEVAug':
            step.training = loader.dataset.test_mode is False
        if step.type == 'LoadBEVMapLabels':
            step.update(data_root=str(world), map_grid=MAP_GRID)


def start(script: str, work_dir: Path, config: Config, *options: str) -> subprocess.CompletedProcess:
    """One of mmdet3d's scripts on a configuration, as a user starts it."""
    from geomim.nuscenes.infos import mmdet3d_tools

    work_dir.mkdir(parents=True, exist_ok=True)
    config.dump(str(work_dir / 'micro.py'))
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get('PYTHONPATH', '')]))
    ours = {'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore', 'PYTHONPATH': path, 'GEOMIM_PLAIN_CONFIGS': '1'}
    command = [
        sys.executable,
        str(mmdet3d_tools() / script),
        str(work_dir / 'micro.py'),
        *options,
        '--work-dir',
        str(work_dir),
    ]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ours}, cwd=str(work_dir))


def losses(work_dir: Path) -> List[Dict[str, float]]:
    return [json.loads(line) for line in (work_dir / 'losses_0.jsonl').read_text().splitlines()]


def weights(path: Path) -> Dict[str, Any]:
    from geomim.mmengine.compat import load_local_checkpoint

    return load_local_checkpoint(path, 'cpu')['state_dict']


@pytest.fixture(scope='module')
def encoder(tiny_encoder: Callable[[str], Path]) -> Path:
    return tiny_encoder('bevdet')


@pytest.fixture(scope='module')
def unbroken(bevdet_world: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp('unbroken')
    done = start('train.py', work_dir, micro_map_config(bevdet_world, encoder))
    assert done.returncode == 0, done.stderr[-4000:]
    return work_dir


def test_a_run_trains_from_the_encoder_and_is_scored(unbroken: Path, encoder: Path) -> None:
    text = '\n'.join(path.read_text() for path in unbroken.glob('*/*.log'))
    assert f'GeoMIMSwin: {encoder} (bevdet layout)' in text
    for word in ('missing in the file', 'without a place', 'resized'):
        assert word not in text
    rows = losses(unbroken)
    assert [row['iter'] for row in rows] == list(range(ITERATIONS))
    assert {'loss_depth', 'map.loss_drivable_area', 'map.loss_divider'} <= set(rows[0])
    assert all(abs(value) < float('inf') for row in rows for value in row.values())
    scores = json.loads((unbroken / 'scores_0.json').read_text())
    assert 0 <= scores['map/mIoU'] <= 100
    assert 0 <= scores['map/IoU_drivable_area@0.50'] <= scores['map/IoU_drivable_area']


def test_a_checkpoint_scores_again_what_it_scored(unbroken: Path, bevdet_world: Path, tmp_path: Path) -> None:
    saved = unbroken / f'iter_{ITERATIONS}.pth'
    done = start('test.py', tmp_path, micro_map_config(bevdet_world), str(saved))
    assert done.returncode == 0, done.stderr[-4000:]
    (found,) = [json.loads(path.read_text()) for path in tmp_path.glob('*/*.json') if 'map/mIoU' in path.read_text()]
    wanted = json.loads((unbroken / 'scores_0.json').read_text())
    for name in ('map/mIoU', 'map/IoU_walkway', 'map/IoU_drivable_area@0.35'):
        assert found[name] == pytest.approx(wanted[name], abs=1e-4)


def test_a_killed_run_resumes_to_the_same(bevdet_world: Path, encoder: Path, unbroken: Path, tmp_path: Path) -> None:
    config = micro_map_config(bevdet_world, encoder)
    config.custom_hooks[-1]['kill_at'] = ITERATIONS
    killed = start('train.py', tmp_path, config)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-4000:]
    config.custom_hooks[-1]['kill_at'] = -1
    resumed = start('train.py', tmp_path, config, '--resume')
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    assert losses(tmp_path)[-1] == losses(unbroken)[-1]
    assert len(losses(tmp_path)) == ITERATIONS + 1, 'the last iteration must have been done again, and only that'
    ours, theirs = weights(tmp_path / f'iter_{ITERATIONS}.pth'), weights(unbroken / f'iter_{ITERATIONS}.pth')
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_few_frames_are_learnt_better_than_their_mean(bevdet_world: Path) -> None:
    """A map that is the same for every frame cannot be right for two streets; one that is seen in the images can."""
    config = micro_map_config(bevdet_world)
    config.model.img_view_transformer.loss_depth_weight = 0.1
    pipeline = config.train_dataloader.dataset.pipeline
    for step in pipeline:
        if 'data_config' in step:
            step.data_config.update(rot=(0.0, 0.0), flip=False)
        if step.type == 'BEVDetBEVAug':
            step.training = False
    data = DATASETS.build(config.train_dataloader.dataset)
    frames = [data[index] for index in (0, len(data) - 1)]
    assert len({data.get_data_info(index)['scene_token'] for index in (0, len(data) - 1)}) == 2
    model = MODELS.build(config.model)
    model.init_weights()
    optimizer = build_optim_wrapper(model, dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=6e-3)))
    for _ in range(80):
        model.train_step(pseudo_collate(frames), optimizer)
    model.eval()
    learnt = [model.val_step(pseudo_collate([frame]))[0].pred_bev_map.data for frame in frames]
    labels = torch.stack([frame['data_samples'].gt_bev_map.data for frame in frames]).float()
    found, mean, full = (
        scores(frames, maps) for maps in (learnt, [labels.mean(0)] * 2, [torch.ones_like(labels[0])] * 2)
    )
    for name in ('drivable_area', 'divider'):
        assert found[name] > mean[name] > full[name]
    names = ('drivable_area', 'divider', 'walkway', 'carpark_area')
    assert sum(found[name] for name in names) > sum(mean[name] for name in names) > sum(full[name] for name in names)


def scores(frames: List[Dict[str, Any]], maps: List[torch.Tensor]) -> Dict[str, float]:
    """IoU of each class, by its name."""
    metric = METRICS.build(dict(type='BEVMapIoU', prefix='it'))
    for frame, found in zip(frames, maps):
        sample = frame['data_samples'].to_dict()
        sample['pred_bev_map'] = dict(sample['gt_bev_map'], data=found)
        metric.process({}, [sample])
    return {name.replace('it/IoU_', ''): value for name, value in metric.evaluate(len(frames)).items()}

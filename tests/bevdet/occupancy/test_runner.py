"""The occupancy network through mmengine's Runner on the small world: it trains from an exported encoder, learns, is scored."""

from __future__ import annotations

import math
import uuid
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from geomim.bevdet.datasets import OCCUPANCY_CLASSES, OccupancyMetric
from geomim.bevdet.occupancy.detector import BEVStereo4DOCC
from geomim.mmengine.compat import load_local_checkpoint

CONFIGS = Path(__file__).resolve().parents[3] / 'configs' / 'mmdet3d'
IMAGE_SIZE, VOXELS, ITERATIONS = (64, 128), (40, 40, 4), 20


class Recorder(Hook):
    """Every loss and score."""

    def __init__(self) -> None:
        self.losses: List[Dict[str, float]] = []
        self.with_prev: List[bool] = []
        self.scores: Dict[str, float] = {}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append({name: float(value) for name, value in outputs.items()})
        self.with_prev.append(runner.model.with_prev)

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        self.scores = dict(metrics or {})


def micro_config(root: Path, encoder: Any, work_dir: Path) -> Config:
    """The tiny configuration with smaller images, voxels of 2 x 2 x 1.6 m, and what is occupied weighing more: most is free."""
    config = Config.fromfile(CONFIGS / 'occupancy' / 'bevstereo4docc_tiny_synthetic.py', import_custom_modules=False)
    config.model.img_backbone.init_cfg.checkpoint = str(encoder)
    config.model.img_neck.out_channels = 16
    config.model.loss_occ = dict(type='mmdet.CrossEntropyLoss', class_weight=[4.0] * 17 + [1.0])
    config.optim_wrapper.optimizer.lr = 4e-3
    view = config.model.img_view_transformer
    view.update(input_size=IMAGE_SIZE, in_channels=16)
    view.grid_config.update(x=[-40, 40, 2.0], y=[-40, 40, 2.0], z=[-1, 5.4, 1.6], depth=[1.0, 45.0, 2.0])
    view.depthnet_cfg.aspp_mid_channels = 8
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = f'{root}/'
        loader.dataset.metainfo.version = 'v1.0-trainval'
        for step in loader.dataset.pipeline:
            if 'data_config' in step:
                step.data_config.input_size = IMAGE_SIZE
            if step.type == 'LoadOccupancyLabels':
                step.voxels = VOXELS
    config.test_dataloader = config.val_dataloader
    config.param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=False)]
    config.train_cfg.update(max_iters=ITERATIONS, val_interval=ITERATIONS)
    config.default_hooks.checkpoint.update(interval=ITERATIONS // 2, max_keep_ckpts=-1)
    (past_frames,) = [hook for hook in config.custom_hooks if hook.type == 'SequentialControlHook']
    past_frames.begin_iter = ITERATIONS - 1
    config.update(work_dir=str(work_dir), experiment_name=uuid.uuid4().hex, log_level='WARNING')
    return config


def run(config: Config) -> Recorder:
    runner, recorder = Runner.from_cfg(config), Recorder()
    runner.register_hook(recorder)
    runner.train()
    return recorder


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('occupancy')


@pytest.fixture(scope='module')
def trained(bevdet_world: Path, encoder: Path, work_dir: Path) -> Recorder:
    torch.set_num_threads(1)
    return run(micro_config(bevdet_world, encoder, work_dir))


def test_a_run_trains_is_scored_and_leaves_checkpoints(trained: Recorder, work_dir: Path) -> None:
    assert len(trained.losses) == ITERATIONS
    assert {'loss_depth', 'loss_occ'} <= set(trained.losses[0])
    assert all(math.isfinite(value) for row in trained.losses for value in row.values())
    assert trained.with_prev == [False] * (ITERATIONS - 1) + [True]
    names = {'occupancy/mIoU', *(f'occupancy/IoU_{name}' for name in OCCUPANCY_CLASSES[:-1])}
    assert names == set(trained.scores)
    assert (work_dir / f'iter_{ITERATIONS}.pth').is_file()


def test_a_checkpoint_fits_the_model_and_the_encoder_is_its_whole_start(
    trained: Recorder, bevdet_world: Path, encoder: Path, work_dir: Path
) -> None:
    model = MODELS.build(micro_config(bevdet_world, encoder, work_dir).model)
    assert isinstance(model, BEVStereo4DOCC)
    model.load_state_dict(load_local_checkpoint(work_dir / f'iter_{ITERATIONS}.pth', 'cpu')['state_dict'], strict=True)
    model.init_weights()
    start = load_local_checkpoint(encoder, 'cpu')
    for name, value in model.img_backbone.state_dict().items():
        (given,) = [start[key] for key in start if key in (name, f'backbone.{name}', f'img_backbone.{name}')]
        assert torch.equal(value, given), name


def test_it_learns_more_than_to_say_the_same_everywhere(
    trained: Recorder, bevdet_world: Path, encoder: Path, work_dir: Path
) -> None:
    """On the scene kept for validation, against the best single class for all voxels."""
    occupancy = [row['loss_occ'] for row in trained.losses]
    assert np.mean(occupancy[-4:]) < 0.7 * np.mean(occupancy[:2])
    data = DATASETS.build(micro_config(bevdet_world, encoder, work_dir).val_dataloader.dataset)
    truth = [data[index]['data_samples'].to_dict() for index in range(len(data))]
    trivial = [score_of(truth, label) for label in range(len(OCCUPANCY_CLASSES))]
    assert 0 < max(trivial) < 2
    assert trained.scores['occupancy/mIoU'] > 2 * max(trivial)


def score_of(truth: List[Dict[str, Any]], label: int) -> float:
    metric = OccupancyMetric()
    everywhere = dict(semantics=torch.full(VOXELS, label))
    metric.process({}, [dict(sample, pred_occupancy=everywhere) for sample in truth])
    return metric.evaluate(len(truth))['occupancy/mIoU']

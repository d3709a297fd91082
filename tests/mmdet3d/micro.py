"""The smallest pretraining run through mmengine's real Runner: a configuration, and a script that runs it in a process of its own.

python micro.py WORK_DIR DATA_ROOT [--config NAME] [--load-from FILE] [--iters N] [--epochs N] [--workers N] [--resume] [--kill-at N]
    [--launcher pytorch] [--encoder JSON] [--zero] [--average]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'mmdet3d' / 'pretrain'
IMAGE_SIZE = (64, 96)


def micro_config(work_dir: Any, data_root: Any, iters: int = 4, name: str = 'geomim_tiny_synthetic') -> Config:
    """A tiny configuration on the synthetic world, with smaller images, a coarser grid, fewer channels, and an untrained
    teacher."""
    config = Config.fromfile(CONFIGS / f'{name}.py')
    config.model.teacher.checkpoint = None
    config.work_dir = str(work_dir)
    student = config.model.student
    student.encoder.update(embed_dims=8, num_heads=(1, 2, 2, 4), window_size=(4, 4, 3, 2))
    student.decoder = dict(dim=16, num_heads=2, depth=4, cross_view_after=(2,), geometry_from=3)
    student.view_transform.update(
        image_size=IMAGE_SIZE, x_bound=(-54, 54, 1.2), y_bound=(-54, 54, 1.2), depth_bound=(1, 61, 4), channels=8
    )
    student.view_transform.downsample = 1
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.num_workers = 0
        loader.dataset.data_root = f'{data_root}/'
        loader.dataset.metainfo.version = 'v1.0-trainval'
        for step in loader.dataset.pipeline:
            if step['type'] == 'SurroundImageAug':
                step.update(final_size=IMAGE_SIZE, resize=(0.27, 0.33), rotation=(-5.4, 5.4), flip=0.5, test_resize=0.3)
    config.train_dataloader.batch_size = 2
    pipeline = config.train_dataloader.dataset.pipeline
    if not any(step['type'] == 'BEVFlip' for step in pipeline):  # chance in every step that can hold it
        check = [step['type'] for step in pipeline].index('CheckPointCloud')
        pipeline.insert(check, dict(type='BEVFlip', flip_x=0.5, flip_y=0.5))
    config.train_cfg.update(max_iters=iters, val_interval=iters)
    config.default_hooks.checkpoint.interval = 1
    config.default_hooks.logger.interval = 1
    config.custom_hooks = [
        dict(type='EpochSeedHook'),
        dict(type='TeacherGuardHook'),
        dict(type='ReconstructionPicturesHook', interval=2),
        dict(type='EncoderExportHook'),
        dict(type='MicroRecordHook', path=f'{work_dir}/losses.jsonl'),
    ]
    return config


@HOOKS.register_module(force=True)
class MicroRecordHook(Hook):
    """Writes every loss, and kills the process the hard way at a given iteration."""

    def __init__(self, path: str, kill_at: int = -1) -> None:
        self.path = path
        self.kill_at = kill_at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        with open(self.path, 'a') as file:
            losses = {name: float(value) for name, value in outputs.items()}
            file.write(json.dumps({'iter': runner.iter, **losses}) + '\n')
        if runner.iter + 1 == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def by_epoch(config: Config, epochs: int) -> None:
    """The same run in epochs, as the full-size configurations have it."""
    config.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=epochs)
    config.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    config.train_dataloader.batch_size = 1
    config.train_dataloader.dataset.indices = 2  # two iterations an epoch
    config.train_dataloader.worker_init_fn = dict(type='geomim_worker_init')
    config.default_hooks.checkpoint.by_epoch = True
    config.log_processor.by_epoch = True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('work_dir')
    parser.add_argument('data_root')
    parser.add_argument('--config', default='geomim_tiny_synthetic')
    parser.add_argument('--load-from')
    parser.add_argument('--iters', type=int, default=4)
    parser.add_argument('--epochs', type=int, default=0)
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--kill-at', type=int, default=-1)
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('--launcher', default='none')
    parser.add_argument('--encoder', type=json.loads)
    parser.add_argument('--zero', action='store_true', help='states of the optimizer spread over the processes')
    parser.add_argument('--average', action='store_true', help="by mmengine's own hook")
    arguments = parser.parse_args()
    config = micro_config(arguments.work_dir, arguments.data_root, arguments.iters, arguments.config)
    config.load_from = arguments.load_from
    if arguments.encoder:
        sys.path.append(str(Path(__file__).resolve().parents[1]))
        from helpers import let_timm_import

        let_timm_import()
        config.model.student.encoder = arguments.encoder
    if arguments.epochs:
        by_epoch(config, arguments.epochs)
    if arguments.zero:
        optimizer = config.optim_wrapper.optimizer
        optimizer.update(type='ZeroRedundancyOptimizer', optimizer_type=optimizer.type)
    if arguments.average:
        config.custom_hooks.insert(0, dict(type='EMAHook', momentum=0.5))
    config.train_dataloader.num_workers = arguments.workers
    config.custom_hooks[-1]['kill_at'] = arguments.kill_at
    config.resume = arguments.resume
    config.launcher = arguments.launcher
    Runner.from_cfg(config).train()


if __name__ == '__main__':
    main()

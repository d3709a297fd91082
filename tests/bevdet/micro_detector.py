"""The smallest detectors and maps through mmdet3d's own scripts: a configuration as a file, a start as a user does it, and a hook that
writes down what happens.

Runs of mmdet3d's script import this module by the configuration's ``custom_imports``; its folder must be on PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import mmengine.config.config
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / 'configs' / 'mmdet3d'
IMAGE_SIZE = (64, 128)
CELL = 3.2  # metres
MAP_GRID = dict(x=[-48.0, 48.0, 3.0], y=[-48.0, 48.0, 3.0])

if (
    'GEOMIM_PLAIN_CONFIGS' in os.environ
):  # a run prints its configuration seven times; making that pretty takes half of its time
    mmengine.config.config.FormatCode = lambda text, **_: (text, False)


def micro_config(name: str, data_root: Any, encoder: Any = None, image_width: int = 400, iterations: int = 4) -> Config:
    """A tiny configuration on a world with info files, with smaller images, fewer cells and channels, and chance in every step."""
    (path,) = CONFIGS.rglob(f'{name}.py')
    config = Config.fromfile(path, format_python_code=False)
    config.custom_imports.imports.append('micro_detector')
    model = config.model
    model.img_backbone.init_cfg = encoder and dict(type='Pretrained', checkpoint=str(encoder))
    model.img_neck.out_channels = 16
    view = model.img_view_transformer
    view.update(input_size=IMAGE_SIZE, in_channels=16, out_channels=8)
    view.grid_config.update(x=[-51.2, 51.2, CELL], y=[-51.2, 51.2, CELL], depth=[1.0, 61.0, 4.0])
    view.depthnet_cfg.aspp_mid_channels = 8
    model.pre_process.update(numC_input=8, num_channels=[8])
    model.img_bev_encoder_backbone.update(numC_input=16, num_channels=[8, 8, 16])
    model.img_bev_encoder_neck.update(in_channels=24, out_channels=16)
    if model.get('map_head'):
        model.map_head.update(in_channels=16, map_grid=MAP_GRID)
    else:
        shrink_head(model)
        config.val_evaluator.update(data_root=f'{data_root}/', ann_file=f'{data_root}/bevdet_infos_val.pkl')
    for loader in (config.train_dataloader, config.val_dataloader):
        point_to(loader, data_root, image_width)
    config.train_dataloader.batch_size = 2
    config.test_dataloader, config.test_evaluator = config.val_dataloader, config.val_evaluator
    config.train_cfg.update(max_iters=iterations, val_interval=iterations)
    config.default_hooks.checkpoint.update(interval=3, max_keep_ckpts=-1)
    config.default_hooks.logger.interval = 1
    for hook in config.custom_hooks:
        if hook.type == 'SequentialControlHook':
            hook.begin_iter = 2
    config.custom_hooks.append(dict(type='DetectorRecordHook'))
    return config


def shrink_head(model: Config) -> None:
    voxel = CELL / model.train_cfg.pts.out_size_factor
    model.pts_bbox_head.update(in_channels=16, share_conv_channel=8)
    model.pts_bbox_head.separate_head.init_bias = 0.0  # boxes from the start, for the scores to work on
    model.train_cfg.pts.update(grid_size=[256, 256, 40], voxel_size=[voxel, voxel, 0.2])
    for part in (model.test_cfg.pts, model.pts_bbox_head.bbox_coder):
        part.voxel_size = [voxel, voxel]


def point_to(loader: Config, data_root: Any, image_width: int) -> None:
    loader.update(num_workers=0, persistent_workers=False)
    loader.dataset.data_root = f'{data_root}/'
    version = 'v1.0-trainval' if (Path(data_root) / 'v1.0-trainval').exists() else 'v1.0-mini'
    loader.dataset.metainfo.version = version
    size = (image_width * 9 // 16, image_width)
    maps = any(step.type == 'LoadBEVMapLabels' for step in loader.dataset.pipeline)
    for step in loader.dataset.pipeline:
        if 'data_config' in step:
            step.data_config.update(
                input_size=IMAGE_SIZE, src_size=size, resize=(0.0, 0.04), rot=(-5.4, 5.4), flip=True
            )
        if step.type == 'LoadBEVMapLabels':
            step.update(data_root=str(data_root), map_grid=MAP_GRID)
        if step.type == 'BEVDetBEVAug' and maps:
            step.training = not loader.dataset.test_mode


def start(
    script: str, work_dir: Path, config: Config, *options: Any, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """One of mmdet3d's scripts on a configuration, as a user starts it."""
    from geomim.nuscenes.infos import mmdet3d_tools

    work_dir.mkdir(parents=True, exist_ok=True)
    config.dump(str(work_dir / 'micro.py'))
    command: List[Any] = [sys.executable]
    if processes > 1:
        command += ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}']
        options = (*options, '--launcher', 'pytorch')
    command += [mmdet3d_tools() / script, work_dir / 'micro.py', *options, '--work-dir', work_dir]
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get('PYTHONPATH', '')]))
    ours = {'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore', 'PYTHONPATH': path, 'GEOMIM_PLAIN_CONFIGS': '1'}
    environment = {**os.environ, **ours}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment, cwd=work_dir
    )


def train(work_dir: Path, config: Config, *options: Any, processes: int = 1) -> None:
    done = start('train.py', work_dir, config, *options, processes=processes)
    assert done.returncode == 0, done.stderr[-4000:]


def losses(work_dir: Path, rank: int = 0) -> List[Dict[str, float]]:
    return [json.loads(line) for line in (work_dir / f'losses_{rank}.jsonl').read_text().splitlines()]


def scores(work_dir: Path) -> Dict[str, float]:
    return json.loads((work_dir / 'scores_0.json').read_text())


def log(work_dir: Path) -> str:
    return '\n'.join(path.read_text() for path in work_dir.glob('*/*.log'))


def assert_starts_from_the_whole(encoder: Path, work_dir: Path) -> None:
    text = log(work_dir)
    assert f'GeoMIMSwin: {encoder} (bevdet layout)' in text
    for word in ('missing in the file', 'without a place', 'resized'):
        assert word not in text


@HOOKS.register_module(force=True)
class DetectorRecordHook(Hook):
    """Writes every loss, whether past frames counted and a sum of the weights, and kills the process the hard way at a given iteration."""

    def __init__(self, kill_at: int = -1) -> None:
        self.kill_at = kill_at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        model = getattr(runner.model, 'module', runner.model)
        row = {name: float(value) for name, value in outputs.items()}
        weights = sum(float(value.detach().double().sum()) for value in model.parameters())
        row.update(iter=runner.iter, with_prev=model.with_prev, weights=weights)
        with open(Path(runner.work_dir) / f'losses_{runner.rank}.jsonl', 'a') as file:
            file.write(json.dumps(row) + '\n')
        if runner.iter + 1 == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_val_epoch(self, runner, metrics=None) -> None:
        (Path(runner.work_dir) / f'scores_{runner.rank}.json').write_text(json.dumps(metrics or {}))

"""The LiDAR detectors that the project trains itself: they learn on the synthetic world, are evaluated, and become teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import pytest
import torch

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv.pytorch')

from mmengine.config import Config
from mmengine.runner import Runner

from geomim.mmdet3d import LidarTeacher

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'mmdet3d'
ITERATIONS = 3


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def on_world(config: Config, root: Path, work_dir: Path) -> Config:
    """A configuration that reads the world at ``root``, for a few iterations."""
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[loader].update(num_workers=0, persistent_workers=False)
        config[loader].dataset.data_root = f'{root}/'
        config[loader].dataset.metainfo.version = 'v1.0-trainval'
    for evaluator in ('val_evaluator', 'test_evaluator'):
        config[evaluator].update(data_root=f'{root}/', ann_file=f'{root}/nuscenes_infos_val.pkl')
    config.train_cfg.update(max_iters=ITERATIONS, val_interval=ITERATIONS)
    config.default_hooks.checkpoint.interval = ITERATIONS
    config.default_hooks.logger.interval = 1
    config.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    config.work_dir = str(work_dir)
    return config


@pytest.mark.parametrize('kind', ['pillar', pytest.param('voxel', marks=pytest.mark.long)])
def test_a_small_detector_trains_is_evaluated_and_teaches(kind: str, small_world: Path, tmp_path: Path) -> None:
    config = Config.fromfile(CONFIGS / 'teacher' / f'centerpoint_{kind}_tiny_synthetic.py')
    runner = Runner.from_cfg(on_world(config, small_world, tmp_path))
    losses = []

    def note(inputs: Any, data_samples: Any = None, mode: str = 'tensor', forward: Any = runner.model.forward) -> Any:
        result = forward(inputs, data_samples, mode=mode)
        if mode == 'loss':
            losses.append(float(sum(result.values())))
        return result

    runner.model.forward = note
    before = {name: value.clone() for name, value in runner.model.state_dict().items() if name.endswith('weight')}
    runner.train()
    assert len(losses) == ITERATIONS
    assert losses[-1] < losses[0]
    after = runner.model.state_dict()
    still = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert still == []
    scalars = runner.message_hub.log_scalars
    assert any(name.endswith('pred_instances_3d_NuScenes/mAP') for name in scalars)

    teacher = LidarTeacher(detector=config.model, tap='pts_neck', checkpoint=str(tmp_path / f'iter_{ITERATIONS}.pth'))
    grid = teacher.record.grid
    assert (grid.shape, grid.axis_order, teacher.record.channels) == ((90, 90), 'yx', 64)
    assert grid.x_bound == pytest.approx((-54.0, 54.0, 1.2))
    trained = dict(runner.model.named_parameters())['pts_backbone.blocks.0.0.weight']
    assert torch.equal(dict(teacher.detector.named_parameters())['pts_backbone.blocks.0.0.weight'], trained)

"""The pretraining of experiments/reconstruction.py: what a seed decides, and the table."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Callable

import pytest

pytest.importorskip('mmdet3d')


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('experiments/reconstruction.py')


def test_a_run_has_its_seed_its_length_and_nothing_but_training(script: ModuleType, repository: Path) -> None:
    config = script.Config.fromfile(repository / 'configs/mmdet3d/pretrain/geomim_tiny_synthetic.py')
    pipeline = config.train_dataloader.dataset.pipeline
    run = script.run_config(config, Path('out/seed-2'), 2, 50)
    assert (run.randomness.seed, run.model.mask_seed, run.resume) == (2, 2, True)
    assert [run.train_cfg.max_iters, *(part.end for part in run.param_scheduler)] == [50, 5, 50]
    assert run.train_dataloader.dataset.pipeline == pipeline
    assert run.val_cfg is run.val_dataloader is run.test_evaluator is None
    assert config.val_dataloader is not None
    assert config.train_dataloader.num_workers, 'the evaluation reads the configuration after the run'


def test_the_table_has_a_row_per_seed_and_the_margin(script: ModuleType) -> None:
    depth = {'all': [0.5, 100]}
    losses = {'student_average_map_loss': 0.6, 'mean_target_loss': 0.5, 'constant_map_loss': 0.8}
    runs = [
        {
            'seed': seed, 'iterations': 50, 'seconds': 120.0, **losses, 'prior_depth_within_one_bin': {'all': [0.25, 100]},
            'student': {'reconstruction_loss': loss, 'depth_within_one_bin': depth},
        }
        for seed, loss in ((0, 0.4), (1, 0.45))
    ]  # fmt: skip
    text = script.table(runs)
    assert '| 0 | 50 | 2 | 0.4000 | 0.6000 | 0.5000 | 0.8000 | 20.0% | 0.500 (0.250) |' in text
    assert '15.0% \N{PLUS-MINUS SIGN} 7.1%.' in text

"""The pretraining of experiments/reconstruction.py: what it keeps, what a seed decides, and the table."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict

import pytest
import torch

pytest.importorskip('mmdet3d')


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script('experiments/reconstruction.py')


class Drawn(torch.utils.data.Dataset):
    """Samples that differ each time."""

    metainfo: Dict[str, Any] = {}

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> Dict[str, Any]:
        return {'inputs': {'img': number + random.random()}, 'data_samples': torch.zeros(1)}


def test_a_frame_is_the_same_in_every_epoch_and_in_a_resumed_run(script: ModuleType) -> None:
    kept, resumed = (script.KeptFrames({'type': Drawn}) for _ in range(2))
    images = [kept[number]['inputs']['img'] for number in range(len(kept))]
    assert len(set(images)) == 3
    kept[1]['inputs'].clear()  # a preprocessor's business, not the next epoch's
    assert [kept[number]['inputs']['img'] for number in (2, 1, 0)] == images[::-1]
    assert resumed[2]['inputs']['img'] == images[2]


def test_a_run_has_its_seed_its_length_and_nothing_but_training(script: ModuleType, repository: Path) -> None:
    config = script.Config.fromfile(repository / 'configs/mmdet3d/pretrain/geomim_tiny_synthetic.py')
    pipeline = config.train_dataloader.dataset.pipeline
    run = script.run_config(config, Path('out/seed-2'), 2, 50)
    assert (run.randomness.seed, run.model.mask_seed, run.resume) == (2, 2, True)
    assert [run.train_cfg.max_iters, *(part.end for part in run.param_scheduler)] == [50, 5, 50]
    assert run.train_dataloader.dataset.dataset.pipeline == pipeline
    assert run.val_cfg is run.val_dataloader is run.test_evaluator is None
    assert config.val_dataloader is not None
    assert 'KeptFrames' not in str(config.train_dataloader), 'the evaluation reads the configuration after the run'


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

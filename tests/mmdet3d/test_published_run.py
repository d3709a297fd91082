"""What the pretraining configurations say of a run is what the published one says: schedule and steps over the points."""

from __future__ import annotations

from math import cos, pi
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'mmdet3d' / 'pretrain'
OFFICIAL = sorted(path.name for path in CONFIGS.glob('geomim_swin-*.py'))
EPOCH = 510  # iterations
BASE, WARM_UP = 2e-4, 500


def between(start: float, end: float, share: float) -> float:
    """mmcv's ``annealing_cos``."""
    return end + 0.5 * (start - end) * (1 + cos(pi * share))


def published_rate(iteration: int, epochs: int, by_epoch: bool = True) -> float:
    """``policy: CosineAnnealing`` of mmcv 1.x with the published ``warmup``, ``warmup_iters``, ``warmup_ratio``, ``min_lr_ratio``."""
    share = iteration // EPOCH / epochs if by_epoch else iteration / (epochs * EPOCH)
    rate = between(BASE, BASE * 1e-3, share)
    return rate * (1 - (1 - iteration / WARM_UP) * (1 - 1 / 3)) if iteration < WARM_UP else rate


def published_momentum(iteration: int, epochs: int) -> float:
    """``policy: cyclic``, which counts iterations."""
    up, whole = 0.4 * epochs * EPOCH, epochs * EPOCH
    lowest = 0.9 * 0.85 / 0.95
    return (
        between(0.9, lowest, iteration / up)
        if iteration < up
        else between(lowest, 0.9, (iteration - up) / (whole - up))
    )


def schedule(config: Config) -> List[Tuple[float, float]]:
    """Rate and momentum of every iteration, stepped as the Runner's hook does it."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=config.optim_wrapper.optimizer.lr)
    defaults = dict(optimizer=OptimWrapper(optimizer), epoch_length=EPOCH)
    parts = [PARAM_SCHEDULERS.build(dict(part), default_args=defaults) for part in config.param_scheduler]
    found = []
    for iteration in range(config.train_cfg.max_epochs * EPOCH):
        group = optimizer.param_groups[0]
        found.append((group['lr'], group['betas'][0]))
        for part in parts:
            if not part.by_epoch or (iteration + 1) % EPOCH == 0:
                part.step()
    return found


@pytest.mark.parametrize('by_epoch', [True, False])
def test_the_rate_falls_once_an_epoch_and_the_momentum_every_iteration(by_epoch: bool) -> None:
    config = Config.fromfile(CONFIGS / OFFICIAL[0])
    if not by_epoch:
        config.merge_from_dict({'param_scheduler.1.convert_to_iter_based': True})
    epochs = config.train_cfg.max_epochs
    assert (epochs, config.optim_wrapper.optimizer.lr) == (50, BASE)
    rates, momenta = zip(*schedule(config))
    iterations = range(epochs * EPOCH)
    tolerance = (
        1e-6 if by_epoch else 2e-3
    )  # while the cosine moves, the host applies the two factors one after the other
    np.testing.assert_allclose(rates, [published_rate(step, epochs, by_epoch) for step in iterations], rtol=tolerance)
    np.testing.assert_allclose(momenta, [published_momentum(step, epochs) for step in iterations], rtol=1e-5)


@pytest.mark.parametrize('name', OFFICIAL)
def test_official_runs_share_that_schedule(name: str) -> None:
    config = Config.fromfile(CONFIGS / name)
    first = Config.fromfile(CONFIGS / OFFICIAL[0])
    assert (config.param_scheduler, config.optim_wrapper) == (first.param_scheduler, first.optim_wrapper)


def steps(node: Any, found: Callable[[Dict[str, Any]], Any]) -> None:
    """Hands every transform of every pipeline under a configuration's node to ``found``."""
    if isinstance(node, dict):
        for step in node.get('pipeline', ()):
            found(step)
        for value in node.values():
            steps(value, found)


@pytest.mark.parametrize('name', sorted(path.name for path in CONFIGS.glob('*.py')))
def test_points_are_neither_pasted_nor_shuffled(name: str) -> None:
    types: List[str] = []
    steps(Config.fromfile(CONFIGS / name)._cfg_dict.to_dict(), lambda step: types.append(step['type']))
    assert types.count('PackGeoMIMInputs') == 3  # training, validation, test
    assert not {'PointShuffle', 'ObjectSample'} & set(types)

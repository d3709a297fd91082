"""Randomness that a resumed run repeats: everything drawn is a function of the seed, the epoch or the iteration, and the rank."""

from __future__ import annotations

import random

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.registry import FUNCTIONS, HOOKS

from ..adapter.seeds import derived_seed, mask_generator


def current_mask_generator(seed: int, per_rank: bool) -> torch.Generator:
    """The generator for the masks of the current iteration of a Runner."""
    iteration = int(MessageHub.get_current_instance().get_info('iter', 0) or 0)
    return mask_generator(seed, iteration, get_rank() if per_rank else 0)


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds Python, NumPy and torch at the start of each epoch from (seed, epoch, rank).

    A run that resumes at an epoch then sees the augmentations of the unbroken one, bit for bit on a CPU. With worker processes it
    needs ``worker_init_fn=dict(type='geomim_worker_init')`` and ``persistent_workers=False``.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner) -> None:
        by_epoch = hasattr(runner.train_loop, '_max_epochs') and runner.train_loop.max_epochs > 1
        epoch = runner.epoch if by_epoch else 0  # an iteration-based loop replays its data from the start
        seed = derived_seed('epoch', runner.seed or 0, epoch, get_rank())
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds torch before each iteration from (seed, iteration, rank): dropout and drop path of a run that resumes within an epoch, or
    in a loop that counts iterations, are those of the unbroken one.

    Leaves Python's and NumPy's generators, from which data is drawn, to :class:`EpochSeedHook`.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        torch.manual_seed(derived_seed('iteration', runner.seed or 0, runner.iter, get_rank()))


@HOOKS.register_module()
class GeoMIMSeedHook(EpochSeedHook, IterationSeedHook):
    """Seeds at the start of each epoch and before each iteration, as the hook of this name does in BEVDet codebases."""


@FUNCTIONS.register_module(name='geomim_worker_init')
def worker_init(worker_id: int) -> None:
    """Seeds a data worker from torch's own per-epoch seed, so that augmentations change from epoch to epoch."""
    del worker_id  # torch's seed differs by worker already
    worker_seed = torch.initial_seed() % 2**32
    np.random.seed(worker_seed)
    random.seed(worker_seed)

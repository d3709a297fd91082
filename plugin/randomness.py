"""Randomness that a resumed run repeats: everything drawn is a function of the seed, the epoch or the iteration, and the rank."""

from __future__ import annotations

import random
from typing import Any, Optional

import numpy as np
import torch
from mmcv.runner import Hook

from .host import HOOKS, get_dist_info, unwrapped

_STREAMS = {'epoch': 1, 'masks': 2, 'iteration': 3}  # as under mmengine, so that equal runs draw equal masks


def derived_seed(stream: str, *numbers: int) -> int:
    """A 32-bit seed for a named stream and its numbers; different numbers give unrelated seeds."""
    sequence = np.random.SeedSequence([_STREAMS[stream], *[number % 2**32 for number in numbers]])
    return int(sequence.generate_state(1)[0])


def mask_generator(seed: int, iteration: int, per_rank: bool = True) -> torch.Generator:
    """A CPU generator for the masks of an iteration; it leaves the global generator alone."""
    rank = get_dist_info()[0] if per_rank else 0
    return torch.Generator().manual_seed(derived_seed('masks', seed, iteration, rank))


@HOOKS.register_module()
class GeoMIMSeedHook(Hook):
    """Makes a run that resumes draw what an unbroken one draws, and tells the pretrainer its iteration, for its masks.

    Seeds Python, NumPy and torch at the start of each epoch from (seed, epoch, rank), and torch again before each
    iteration from (seed, iteration, rank): data is drawn as in the unbroken run where a run resumes at an epoch's start.

    Args:
        seed: that of the run (``runner.meta['seed']``, else 0) by default.
    """

    def __init__(self, seed: Optional[int] = None) -> None:
        self.seed = seed

    def before_epoch(self, runner: Any) -> None:
        """Seed all generators."""
        seed = derived_seed('epoch', self._seed(runner), runner.epoch, get_dist_info()[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def before_train_iter(self, runner: Any) -> None:
        """Seed torch; set the model's ``iteration``."""
        torch.manual_seed(derived_seed('iteration', self._seed(runner), runner.iter, get_dist_info()[0]))
        unwrapped(runner.model).iteration = runner.iter

    def _seed(self, runner: Any) -> int:
        return self.seed if self.seed is not None else (runner.meta or {}).get('seed') or 0

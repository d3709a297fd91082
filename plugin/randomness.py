"""Randomness that a resumed run repeats: everything drawn is a function of the seed, the epoch or the iteration, and the rank."""

from __future__ import annotations

import random
from typing import Any, Optional

import numpy as np
import torch
from mmcv.runner import Hook

from ..adapter.seeds import derived_seed
from .host import HOOKS, get_dist_info, unwrapped


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

"""Exponential moving average of the weights whose memory grows during the run (METHOD 7)."""

from __future__ import annotations

import math
from typing import Any

from mmengine.model import BaseAveragedModel
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class RampedEMA(BaseAveragedModel):
    """Average with decay ``decay * (1 - exp(-u / ramp))`` at update u, for mmengine's ``EMAHook(ema_type='RampedEMA')``.

    Buffers of floating type, the statistics of normalisation layers, are averaged as weights are; integer buffers stay.
    The first update takes the weights over as they are. A checkpoint's ``state_dict`` then holds the average, which is
    also what is evaluated.

    Args:
        model: the model to average.
        decay: decay that the ramp leads to, in [0, 1).
        init_updates: updates that count as done before the first one.
        ramp: updates after which 63 % of ``decay`` are reached.
        update_buffers: average the buffers too; else they are copied.
        options: ``interval`` and ``device`` of mmengine's averaged models.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.999,
        init_updates: int = 10560,
        ramp: float = 2000.0,
        update_buffers: bool = True,
        **options: Any,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f'RampedEMA: decay must lie in [0, 1), got {decay}')
        if init_updates < 0 or ramp <= 0:
            raise ValueError(
                f'RampedEMA: init_updates must be at least 0 and ramp above 0, got {init_updates} and {ramp}'
            )
        super().__init__(model, update_buffers=update_buffers, **options)
        self.decay, self.init_updates, self.ramp = decay, init_updates, ramp

    def decay_at(self, update: int) -> float:
        """The decay of an update, counted from 1."""
        return self.decay * (1 - math.exp(-(self.init_updates + update) / self.ramp))

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: Tensor) -> None:
        """One update of one tensor, in place; ``steps`` updates came before."""
        averaged_param.lerp_(source_param, 1 - self.decay_at(int(steps) // self.interval + 1))

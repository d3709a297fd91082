"""Exponential moving average of the weights whose memory grows during the run (METHOD 7)."""

from __future__ import annotations

from typing import Any

from mmdet.models.layers import ExpMomentumEMA
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class RampedEMA(ExpMomentumEMA):
    """Average with decay ``decay * (1 - exp(-u / ramp))`` at update u, for mmengine's ``EMAHook(ema_type='RampedEMA')``.

    mmdet's average with exponential momentum, in the published words, whose updates are counted from ``init_updates`` on.
    Buffers of floating type, the statistics of normalisation layers, are averaged as weights are; integer buffers stay.
    The first update takes the weights over as they are. A checkpoint's ``state_dict`` then holds the average, which is
    also what is evaluated.

    Args:
        model: the model to average.
        decay: decay that the ramp leads to, in (0, 1).
        init_updates: updates that count as done before the first one.
        ramp: updates after which 63 % of ``decay`` are reached.
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
        **options: Any,
    ) -> None:
        if not 0 < decay < 1:
            raise ValueError(f'RampedEMA: decay must lie in (0, 1), got {decay}')
        if init_updates < 0 or ramp <= 0:
            raise ValueError(
                f'RampedEMA: init_updates must be at least 0 and ramp above 0, got {init_updates} and {ramp}'
            )
        super().__init__(model, momentum=1 - decay, gamma=ramp, update_buffers=True, **options)
        self.init_updates = init_updates

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: Tensor) -> None:
        """One update of one tensor, in place; ``steps`` updates came before."""
        super().avg_func(averaged_param, source_param, int(steps) // self.interval + self.init_updates)

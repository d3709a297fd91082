"""Depth bins that widen with the distance (spacing-increasing discretisation, SID, of STS: Surround-view Temporal Stereo)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

from ...method.depth import DepthBins


@dataclass(frozen=True)
class SpacingIncreasingBins(DepthBins):
    """As many bins as :class:`DepthBins`, at equal steps of the logarithm from ``lower`` to ``upper - 1``, metres.

    Raises:
        ValueError: fewer than two bins, or an upper bound of not more than ``lower + 1``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 2 or self.upper - 1 <= self.lower:
            raise ValueError(
                f'spacing-increasing depth bins need at least two bins and an upper bound above lower + 1 m, got '
                f'{(self.lower, self.upper, self.step)}'
            )

    @property
    def _log_range(self) -> float:
        return math.log((self.upper - 1) / self.lower)

    def values(self) -> Tensor:
        """(D,) lower edges, metres."""
        fraction = torch.arange(self.count, dtype=torch.float) / (self.count - 1)
        return torch.exp(math.log(self.lower) + fraction * self._log_range)

    def position(self, depth: Tensor) -> Tensor:
        return (depth.log() - math.log(self.lower)) * (self.count - 1) / self._log_range + 1


def make_depth_bins(bound: Sequence[float], sid: bool) -> DepthBins:
    """Bins of BEVDet's ``grid_config['depth']`` = (lower, upper, step), metres."""
    if len(bound) != 3:
        raise ValueError(f"grid_config['depth'] must be (lower, upper, step) in metres, got {tuple(bound)}")
    kind = SpacingIncreasingBins if sid else DepthBins
    return kind(*(float(value) for value in bound))

"""How well a pretraining model did on a batch, in figures that can be compared from run to run.

Shape legend: B samples, N cameras, D depth bins, h x w feature cells.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional

import torch
from torch import Tensor

from ..method.depth import DepthBins
from ..method.pretrainer import PretrainOutput

DEPTH_RANGES = ((0, 10), (10, 20), (20, 40))  # metres, the upper bound excluded
_COUNT = 'labelled_cells'
_OF_CELLS = ('depth_within_one_bin', 'depth_error')


def measure(result: PretrainOutput, bins: Optional[DepthBins] = None) -> Dict[str, Tensor]:
    """Per-sample figures of a pass, each (B,), without reading a value back.

    ``reconstruction_loss`` beside ``constant_map_loss`` (the loss of the best map that is constant over the cells: each channel's mean)
    and ``target_power`` (that of the zero map), over the cells that the loss counts; ``depth_within_one_bin`` of ``labelled_cells`` cells,
    ``depth_loss`` by sample.

    With the depth bins also, for each of ``DEPTH_RANGES`` that the label may lie in, ``depth_within_one_bin_0_10m`` of
    ``labelled_cells_0_10m`` cells, and ``depth_error_0_10m``, metres between the likeliest bin and the labelled one, their mean. 0 where
    there is no such cell.
    """
    target, labels = result.target, result.depth_labels
    cells = torch.ones_like(target[:, 0], dtype=torch.bool) if result.cells is None else result.cells
    share = cells[:, None] / cells.sum(dim=(1, 2)).clamp(min=1)[:, None, None, None]  # of a cell in its sample

    def power(maps: Tensor) -> Tensor:
        """(B, C, X, Y) -> (B,) mean square over channels and cells."""
        return (maps.square() * share).sum(dim=(2, 3)).mean(dim=1)

    errors = torch.stack([power(prediction.float() - target) for prediction in result.predictions])
    labelled = labels >= 0
    guesses = torch.stack([depth.argmax(dim=1).view_as(labels) for depth in result.depth])
    away = (guesses - labels).abs()
    near = (away <= 1) & labelled
    count = labelled.flatten(1).sum(1)
    figures = {
        'reconstruction_loss': errors.mean(0),
        'constant_map_loss': power(target - (target * share).sum(dim=(2, 3), keepdim=True)),
        'target_power': power(target),
        'depth_within_one_bin': near.flatten(2).sum(2).float().mean(0) / count.clamp(min=1),
        'labelled_cells': count,
        'depth_loss': result.depth_loss.expand(len(target)),
    }
    if bins is not None:
        figures.update(_by_range(away, labels, bins))
    return figures


def _by_range(away: Tensor, labels: Tensor, bins: DepthBins) -> Dict[str, Tensor]:
    """Figures of the labelled cells (B, N, h, w) by distance, of guesses (K, B, N, h, w) so many bins away."""
    figures = {}
    metres = labels * bins.step + (bins.lower + bins.step / 2)  # the middle of the bin
    for lower, upper in DEPTH_RANGES:
        inside = (labels >= 0) & (metres >= lower) & (metres < upper)
        count = inside.flatten(1).sum(1)
        near, metres_away = (
            (value * inside).flatten(2).sum(2).float().mean(0) / count.clamp(min=1)
            for value in (away <= 1, away * bins.step)
        )
        for name, value in zip((*_OF_CELLS, _COUNT), (near, metres_away, count)):
            figures[f'{name}_{lower}_{upper}m'] = value
    return figures


def count_behind(name: str) -> Optional[str]:
    """The figure that says of how many cells another is the mean; None for one of a whole sample."""
    return next((name.replace(kind, _COUNT) for kind in _OF_CELLS if name.startswith(kind)), None)


class RunningMeans:
    """Means of figures over the samples of many batches, those of cells over all their cells; summed where the figures are.

    What is not finite does not count: the step is left out too.
    """

    def __init__(self) -> None:
        self._names: List[str] = []
        self._sums: Optional[Tensor] = None

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Figures of :func:`measure`, each (B,); no value is read back."""
        self._names = list(figures)
        behind = [figures.get(count_behind(name) or '') for name in figures]
        values = torch.stack([value.float() for value in figures.values()])
        weights = torch.stack([torch.ones_like(values[0]) if count is None else count.float() for count in behind])
        finite = torch.isfinite(values)
        weights = weights * finite
        sums = torch.stack([torch.where(finite, values, torch.zeros_like(values)) * weights, weights]).sum(dim=2)
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self) -> Dict[str, float]:
        """The means, read back at once, without those of no cell; the sums start anew."""
        totals, weights = ([], []) if self._sums is None else self._sums.tolist()
        self._sums = None
        return {name: total / weight for name, total, weight in zip(self._names, totals, weights) if weight}

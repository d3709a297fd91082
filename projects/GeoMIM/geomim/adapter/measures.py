"""How well a pretraining model did on a batch, in figures that can be compared from run to run.

Shape legend: B samples.
"""

from __future__ import annotations

from typing import Dict

import torch
from torch import Tensor

from ..method.pretrainer import PretrainOutput


def measure(result: PretrainOutput) -> Dict[str, Tensor]:
    """Per-sample figures of a pass, each (B,).

    ``reconstruction_loss`` beside ``constant_map_loss`` (the loss of the best map that is constant over the cells: each channel's mean)
    and ``target_power`` (that of the zero map), over the cells that the loss counts; ``depth_within_one_bin`` of ``labelled_cells`` cells,
    ``depth_loss`` by sample.
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
    near = ((guesses - labels).abs() <= 1) & labelled
    count = labelled.flatten(1).sum(1)
    return {
        'reconstruction_loss': errors.mean(0),
        'constant_map_loss': power(target - (target * share).sum(dim=(2, 3), keepdim=True)),
        'target_power': power(target),
        'depth_within_one_bin': near.flatten(2).sum(2).float().mean(0) / count.clamp(min=1),
        'labelled_cells': count,
        'depth_loss': result.depth_loss.expand(len(target)),
    }

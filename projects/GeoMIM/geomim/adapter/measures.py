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
    and ``target_power`` (that of the zero map); ``depth_within_one_bin`` of ``labelled_cells`` cells, ``depth_loss`` by sample.
    """
    axes = (1, 2, 3)
    target, labels = result.target, result.depth_labels
    errors = torch.stack([(prediction.float() - target).square().mean(axes) for prediction in result.predictions])
    labelled = labels >= 0
    guesses = torch.stack([depth.argmax(dim=1).view_as(labels) for depth in result.depth])
    near = ((guesses - labels).abs() <= 1) & labelled
    count = labelled.flatten(1).sum(1)
    return {
        'reconstruction_loss': errors.mean(0),
        'constant_map_loss': (target - target.mean(dim=(2, 3), keepdim=True)).square().mean(axes),
        'target_power': target.square().mean(axes),
        'depth_within_one_bin': near.flatten(2).sum(2).float().mean(0) / count.clamp(min=1),
        'labelled_cells': count,
        'depth_loss': result.depth_loss.expand(len(target)),
    }

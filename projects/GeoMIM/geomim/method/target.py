"""The reconstruction target: the teacher's BEV map, normalised patch by patch, and the loss against it (paper section 3.4; METHOD 4).

Shape legend: B samples, K copies, C channels, X x Y BEV cells (or Y x X: patches are square), p cells along a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence

import torch
from torch import Tensor


@dataclass(frozen=True)
class TargetConfig:
    """The teacher's channels, patch side in cells, and the epsilon of the normalisation."""

    channels: int = 256
    patch_size: int = 18
    eps: float = 1e-6


def at_least_float32(value: Tensor) -> Tensor:
    """Half precision raised to float32; float64 stays, so that the whole step can be checked in it."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def normalise_patches(bev: Tensor, patch_size: int = 18, eps: float = 1e-6) -> Tensor:
    """(t - mean) / sqrt(var + eps) over all cells and channels of each patch, unbiased variance.

    Args:
        bev: (B, C, X, Y).
        patch_size: p; must divide X and Y.

    Raises:
        ValueError: a map that cannot be cut into whole patches.
    """
    if bev.dim() != 4:
        raise ValueError(f'a BEV target must be (B, C, X, Y), got shape {tuple(bev.shape)}')
    batch, channels, rows, cols = bev.shape
    if rows % patch_size or cols % patch_size:
        fitting = [side for side in range(1, min(rows, cols) + 1) if rows % side == 0 and cols % side == 0]
        raise ValueError(
            f'a BEV target of {rows} x {cols} cells cannot be cut into {patch_size}-cell patches; sides that fit: {fitting}'
        )
    patches = bev.view(batch, channels, rows // patch_size, patch_size, cols // patch_size, patch_size)
    var, mean = torch.var_mean(patches, dim=(1, 3, 5), keepdim=True)
    return ((patches - mean) / (var + eps).sqrt()).view_as(bev)


def reconstruction_loss(predictions: Sequence[Tensor], target: Tensor, cells: Optional[Tensor] = None) -> Tensor:
    """Mean squared error against the target (B, C, X, Y), averaged over the K copies' predictions.

    Args:
        predictions: K maps (B, C, X, Y).
        target: (B, C, X, Y).
        cells: (B, X, Y) bool, those that count, all of the batch alike; None counts all. 0 where none does.

    Raises:
        ValueError: a prediction of another shape.
    """
    for prediction in predictions:
        if prediction.shape != target.shape:
            raise ValueError(
                f"the student's BEV map {tuple(prediction.shape)} and the target {tuple(target.shape)} differ in shape"
            )
    errors = [at_least_float32(prediction) - target for prediction in predictions]
    if cells is None:
        return torch.stack([error.square().mean() for error in errors]).mean()
    counted = (cells.sum() * target.shape[1]).clamp(min=1)
    seen = [error.masked_fill(~cells[:, None], 0).square().sum() / counted for error in errors]
    return torch.stack(seen).mean()

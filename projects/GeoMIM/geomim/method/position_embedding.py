"""The sine-cosine position embedding that MAE and MixMAE start from.

Shape legend: D channels, S x S cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

LONGEST = 10000.0  # the slowest wave is this much longer than the fastest


def sine_cosine_embedding(dim: int, side: int) -> Tensor:
    """Sines and cosines of the row, then of the column, at D / 4 wavelengths each.

    Without it a student that starts from random weights cannot tell its hidden positions apart: they all hold the same
    mask token. Checkpoints bring their own.

    Args:
        dim: D; what is left over of a multiple of four stays zero.
        side: S.

    Returns:
        (1, D, S, S).

    Source: MAE (arXiv 2111.06377), appendix A.1; MixMAE (arXiv 2205.13137) trains its weights with it.
    """
    quarter = dim // 4
    waves = LONGEST ** -(torch.arange(quarter, dtype=torch.float) / max(1, quarter))
    angles = torch.arange(side, dtype=torch.float)[None, :] * waves[:, None]
    along = torch.cat([angles.sin(), angles.cos()])  # (D / 2, S)
    rows, columns = along[:, :, None].expand(-1, -1, side), along[:, None, :].expand(-1, side, -1)
    embedding = torch.zeros(1, dim, side, side)
    embedding[0, : 4 * quarter] = torch.cat([rows, columns])
    return embedding

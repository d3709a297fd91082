"""Complementary masks for K copies of the images (paper section 3.1; METHOD 2.1).

Shape legend: K copies, h x w cells. A mask is 1 where a cell is hidden and 0 where it is kept.
"""

from __future__ import annotations

from numbers import Integral
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

MASK_CELL = 32  # pixels; the stride of the last encoder stage, so that no token straddles two groups


def mask_grid_size(image_size: Tuple[int, int], cell: int = MASK_CELL, copies: int = 2) -> Tuple[int, int]:
    """Cells (h, w) of an image of ``image_size`` = (H, W) pixels.

    Raises:
        ValueError: a size that is no multiple of the cell, copies that are no whole number of at least 2, or fewer cells.
    """
    height, width = image_size
    if height % cell or width % cell or height <= 0 or width <= 0:
        raise ValueError(
            f'image size {height} x {width} (height x width) is no multiple of the {cell}-pixel mask cell; '
            f'{max(1, round(height / cell)) * cell} x {max(1, round(width / cell)) * cell} would be'
        )
    cells = (height // cell) * (width // cell)
    if not isinstance(copies, Integral) or copies < 2:
        raise ValueError(
            f'copies must be at least 2 and a whole number (each copy keeps 1 / copies of the cells), got {copies}'
        )
    if cells < copies:
        raise ValueError(f'an image of {height} x {width} has {cells} mask cells, fewer than {copies} copies')
    return height // cell, width // cell


def complementary_masks(
    image_size: Tuple[int, int],
    copies: int = 2,
    cell: int = MASK_CELL,
    device: Optional[torch.device] = None,
    generator: Optional[torch.Generator] = None,
) -> Tensor:
    """Masks (K, h, w), float32: one random permutation of the cells is cut into K equal groups, copy k keeps group k.

    Cells left over when K does not divide their number are hidden in every copy. Raises as :func:`mask_grid_size`.
    """
    height, width = mask_grid_size(image_size, cell, copies)
    cells = height * width
    group_size = cells // copies
    draw_device = generator.device if generator is not None else device
    order = torch.rand(cells, device=draw_device, generator=generator).argsort().to(device)
    kept = order[: group_size * copies].view(copies, group_size)
    masks = torch.ones(copies, cells, device=device)
    return masks.scatter_(1, kept, 0.0).view(copies, height, width)


def check_masks(masks: Tensor) -> None:
    """Raise ``ValueError`` unless ``masks`` is (K >= 2, h, w)."""
    if masks.dim() != 3 or masks.shape[0] < 2:
        raise ValueError(f'masks must be (K, h, w) with K >= 2 copies, got shape {tuple(masks.shape)}')


def resize_masks(masks: Tensor, size: Tuple[int, int]) -> Tensor:
    """Masks (K, h, w) on a stage's token grid (K, *size), by nearest interpolation."""
    check_masks(masks)
    return F.interpolate(masks[:, None].float(), size=size, mode='nearest')[:, 0]


def group_index(masks: Tensor) -> Tensor:
    """(h, w) int64: the copy that keeps each cell, or -1 for a cell hidden in every copy.

    Tokens attend to each other where their index is equal and not negative, which is ``sum_k keep_k keep_k^T``.
    """
    kept = masks < 0.5
    return torch.where(kept.any(dim=0), kept.int().argmax(dim=0), torch.full_like(masks[0], -1, dtype=torch.long))

"""Alignment of a past frame's BEV features with the key frame by the motion of the ego vehicle.

Shape legend: B samples, C channels, Z x Y x X cells. Metres.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...method.camera import full_precision, inverse
from ...method.grid import BEVGrid
from ...method.target import at_least_float32


def ego_motion(key_pose: Tensor, past_pose: Tensor, bev_aug: Tensor) -> Tensor:
    """(B, 3, 3): (x, y, 1) of the augmented key ego frame to that of the past one; height and tilt are left out.

    Args:
        key_pose: (B, 4, 4), the first camera at the key frame to the key ego.
        past_pose: (B, 4, 4), the same camera at the past frame to the key ego.
        bev_aug: (B, 4, 4).
    """
    bev_aug = bev_aug.to(key_pose.dtype)
    with full_precision(key_pose):
        motion = (bev_aug @ key_pose) @ inverse(bev_aug @ past_pose)
    rows = torch.cat([motion[:, :2], motion[:, 3:]], dim=1)
    return torch.cat([rows[:, :, :2], rows[:, :, 3:]], dim=2)


def shift_feature(features: Tensor, motion: Tensor, grid: BEVGrid) -> Tensor:
    """Sample past BEV features where the key frame's cells were.

    Args:
        features: (B, C, Y, X) or (B, C, Z, Y, X).
        motion: (B, 3, 3) of :func:`ego_motion`.
        grid: the cells; features in its order ``'yx'``.

    Returns:
        As ``features``, at least float32; zero where the past map does not reach.

    Raises:
        ValueError: features that do not fit the grid.
    """
    if features.dim() not in (4, 5) or tuple(features.shape[-2:]) != (grid.num_y, grid.num_x):
        raise ValueError(f'BEV features of {tuple(features.shape)} do not lie on a grid of {grid.describe()}')
    features = at_least_float32(features)
    flat = features if features.dim() == 4 else features.flatten(1, 2)
    moved = F.grid_sample(flat, cell_positions(motion.to(flat.dtype), grid), align_corners=True)
    return moved.view(features.shape)


def cell_positions(motion: Tensor, grid: BEVGrid) -> Tensor:
    """(B, Y, X, 2): where each cell of the key frame lies in the past map, in the normalised coordinates of ``grid_sample``."""
    x = torch.arange(grid.num_x, dtype=motion.dtype, device=motion.device)
    y = torch.arange(grid.num_y, dtype=motion.dtype, device=motion.device)
    metres_x = (x * grid.x_bound[2] + grid.x_bound[0]).expand(grid.num_y, -1)
    metres_y = (y * grid.y_bound[2] + grid.y_bound[0])[:, None].expand(-1, grid.num_x)
    cells = torch.stack([metres_x, metres_y, torch.ones_like(metres_x)], dim=-1)
    with full_precision(motion):
        past = torch.einsum('bij,yxj->byxi', motion, cells)
    column = (past[..., 0] - grid.x_bound[0]) / grid.x_bound[2]
    row = (past[..., 1] - grid.y_bound[0]) / grid.y_bound[2]
    return torch.stack([column / (grid.num_x - 1) * 2 - 1, row / (grid.num_y - 1) * 2 - 1], dim=-1)

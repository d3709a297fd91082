"""What the cameras of a rig can see at all, by projection; what stands in between is not looked at.

Shape legend: B samples, N cameras, X x Y BEV cells (Y x X in a grid of that order). Metres.
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

from .camera import CameraRig, full_precision
from .grid import BEVGrid


def view_matrices(rig: CameraRig, image_size: Tuple[int, int]) -> Tensor:
    """(B, N, 3, 4): the augmented BEV frame to (s z, t z, z), for depth z and place (s, t) in the augmented image.

    The image of ``image_size`` (H, W) spans (0, 0) to (1, 1): a point is in view where 0 <= s z <= z and 0 <= t z <= z.
    """
    height, width = image_size
    with full_precision(rig.cam2bev):
        before = rig.bev2img
        after = rig.img_aug[..., :2, :2] @ before[..., :2, :] + rig.img_aug[..., :2, 3:] * before[..., 2:3, :]
    return torch.cat([after[..., :1, :] / width, after[..., 1:, :] / height, before[..., 2:3, :]], dim=-2)


def seen_cells(rig: CameraRig, grid: BEVGrid, image_size: Tuple[int, int]) -> Tensor:
    """The BEV cells that some camera sees, on the rig's device, without reading a value back.

    A cell is seen if the vertical through its centre enters a camera's image at some height within ``grid.z_bound``: exactly, no
    heights are sampled. Image and BEV augmentation count.

    Args:
        rig: calibration of the B samples.
        grid: the cells, in the augmented BEV frame.
        image_size: (H, W) of the augmented images.

    Returns:
        (B, *grid.shape) bool.
    """
    s, t, z = view_matrices(rig, image_size).unbind(dim=-2)
    sides = torch.stack([s, z - s, t, z - t], dim=2)  # (B, N, 4, 4): in view where all four sides are >= 0
    x, y = (
        torch.arange(count, device=s.device, dtype=s.dtype) * bound[2] + (bound[0] + bound[2] / 2)
        for count, bound in ((grid.num_x, grid.x_bound), (grid.num_y, grid.y_bound))
    )
    along_x, along_y, rise, offset = (part[..., None, None] for part in sides.unbind(dim=-1))
    # (B, N, 4, X, Y): a side at height 0; it changes by `rise` a metre
    level = along_x * x[:, None] + along_y * y + offset
    crossing = -level / rise
    infinity = torch.full_like(level, float('inf'))
    lowest = torch.where(rise > 0, crossing, -infinity).amax(dim=2).clamp(min=grid.z_bound[0])
    highest = torch.where(rise < 0, crossing, infinity).amin(dim=2).clamp(max=grid.z_bound[1])
    outside = ((rise == 0) & (level < 0)).any(dim=2)
    seen = ((lowest <= highest) & ~outside).any(dim=1)
    return seen if grid.axis_order == 'xy' else seen.transpose(1, 2)

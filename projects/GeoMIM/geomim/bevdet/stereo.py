"""Cost volume of two views of one camera: how well a pixel at each depth matches what the same camera saw a frame earlier.

Shape legend: B samples, N cameras, M = B * N images, C channels, D depth bins, h x w cells of the stereo features (stride 4).
Metres, pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..camera import CameraRig, full_precision, inverse
from ..lift_splat import pixel_rays
from ..target import at_least_float32

STEREO_STRIDE = 4  # pixels a cell of the features compared
_IN_FRONT = 1e-3  # metres; a point nearer to the other camera's image plane counts as not seen
_NOT_SEEN = -2.0  # outside the image in the normalised coordinates of grid_sample
_CHANNEL_GROUP = 4  # the published network compares this many channels at a time
_MOST_SAMPLES = 2**26  # numbers of a chunk of warped features: 256 MB in float32


@dataclass(frozen=True)
class StereoPair:
    """Features of a frame and of the frame before.

    Args:
        current: (M, C, h, w).
        older: (M, C, h, w).
        current2older: (B, N, 4, 4), each camera to itself a frame earlier.
    """

    current: Tensor
    older: Tensor
    current2older: Tensor


def sampling_grid(pixels: Tensor, depths: Tensor, rig: CameraRig, current2older: Tensor) -> Tensor:
    """Where pixels at each depth appear in the older view.

    Args:
        pixels: (h, w, 2), of the augmented images.
        depths: (D,), metres.
        rig: the current frame's; its intrinsics and augmentation stand for the older frame's too, as in the published network.
        current2older: (B, N, 4, 4).

    Returns:
        (M, D * h, w, 2) in the normalised coordinates of ``grid_sample`` with ``align_corners``.
    """
    intrinsics, img_aug = rig.intrinsics.to(pixels.dtype), rig.img_aug.to(pixels.dtype)
    with full_precision(pixels):
        warp = intrinsics @ current2older[..., :3, :3] @ inverse(intrinsics)
        shift = torch.einsum('bnij,bnj->bni', intrinsics, current2older[..., :3, 3])
        rays = torch.einsum('bnij,bnhwj->bnhwi', warp, pixel_rays(pixels, rig))
    points = rays[:, :, None] * depths[:, None, None, None] + shift[:, :, None, None, None]
    seen = points[..., 2:] >= _IN_FRONT
    uv = points[..., :2] / torch.where(seen, points[..., 2:], torch.ones_like(points[..., 2:]))
    with full_precision(pixels):
        uv = torch.einsum('bnij,bndhwj->bndhwi', img_aug[..., :2, :2], uv)
    uv = uv + img_aug[:, :, None, None, None, :2, 3]
    height, width = pixels.shape[:2]
    last = (width * STEREO_STRIDE - 1, height * STEREO_STRIDE - 1)
    grid = torch.stack([uv[..., axis] / last[axis] * 2 - 1 for axis in (0, 1)], dim=-1)
    grid = torch.where(seen, grid, torch.full_like(grid, _NOT_SEEN))
    return grid.flatten(0, 1).flatten(1, 2)


def matching_cost(pair: StereoPair, grid: Tensor, bias: float) -> Tensor:
    """Sum over the channels of |current - older, warped|.

    Args:
        pair: the features.
        grid: (M, d * h, w, 2) of :func:`sampling_grid`, for some d of the depths.
        bias: added where the older view shows nothing.

    Returns:
        (M, d, h, w). Like the published network it leaves out channels that make no whole group of four, and takes the first channel of
        the last group for the sign that nothing is seen: exactly zero.
    """
    images, channels, height, width = pair.current.shape
    used = channels - channels % _CHANNEL_GROUP
    warped = F.grid_sample(pair.older[:, :used], grid.to(pair.older.dtype), padding_mode='zeros', align_corners=True)
    warped = warped.view(images, used, -1, height, width)
    unseen = warped[:, used - _CHANNEL_GROUP] == 0
    cost = (warped - pair.current[:, :used, None]).abs().sum(dim=1)
    return cost + bias * unseen if bias else cost


@torch.no_grad()
def cost_volume(pair: StereoPair, pixels: Tensor, depths: Tensor, rig: CameraRig, bias: float) -> Tensor:
    """(M, D, h, w), at least float32: softmax over the depths of minus the matching cost; no gradient, as in the published network.

    Raises:
        ValueError: features that do not fit the pixels or each other.
    """
    images, channels, height, width = pair.current.shape
    if pair.older.shape != pair.current.shape or (height, width) != tuple(pixels.shape[:2]):
        raise ValueError(
            f'stereo features of {tuple(pair.current.shape)} and {tuple(pair.older.shape)}: both must have '
            f'{tuple(pixels.shape[:2])} cells and the same channels'
        )
    if channels < _CHANNEL_GROUP:
        raise ValueError(f'stereo features need at least {_CHANNEL_GROUP} channels, got {channels}')
    pair = StereoPair(at_least_float32(pair.current), at_least_float32(pair.older), pair.current2older)
    # All depths at once would need gigabytes: C numbers for each of M * D * h * w points.
    chunk = max(1, _MOST_SAMPLES // (images * channels * height * width))
    costs = [
        matching_cost(pair, sampling_grid(pixels, some, rig, pair.current2older), bias) for some in depths.split(chunk)
    ]
    return torch.cat(costs, dim=1).neg().softmax(dim=1)

"""Cost volume of two views of one camera: how well a pixel at each depth matches what the same camera saw a frame earlier.

Shape legend: B samples, N cameras, M = B * N images, C channels, D depth bins, h x w cells of the stereo features (stride 4).
Metres, pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...method.camera import CameraRig, full_precision, inverse
from ...method.lift_splat import pixel_rays
from ...method.target import at_least_float32

STEREO_STRIDE = 4  # pixels a cell of the features compared
_IN_FRONT = 1e-3  # metres; a point nearer to the other camera's image plane counts as not seen
_NOT_SEEN = -2.0  # outside the image in the normalised coordinates of grid_sample
_CHANNEL_GROUP = 4  # the published network compares this many channels at a time
_MOST_SAMPLES = 2**26  # numbers of a chunk of warped features: 256 MB in float32
_CACHED_SAMPLES = 2**19  # the same on a CPU, whose caches a chunk should not leave: 2 MB


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
        # A pixel's ray at depth 1 and the shift of the camera, both in the older camera's homogeneous pixels: (B, N, h, w, 3), (B, N, 3)
        warp = intrinsics @ current2older[..., :3, :3] @ inverse(intrinsics)
        shift = torch.einsum('bnij,bnj->bni', intrinsics, current2older[..., :3, 3])
        rays = torch.einsum('bnij,bnhwj->bnhwi', warp, pixel_rays(pixels, rig))
        # The linear part of the augmentation moves in front of the division by z: a product a pixel, not one a pixel and depth.
        turned = torch.einsum('bnij,bnhwj->bnhwi', img_aug[..., :2, :2], rays[..., :2])
        moved = torch.einsum('bnij,bnj->bni', img_aug[..., :2, :2], shift[..., :2])
    # Along the rays, (B, N, D, h, w): the depth in the older camera, and whether it is in front of it
    metres = depths[:, None, None]
    z = rays[:, :, None, ..., 2] * metres + shift[:, :, None, None, None, 2]
    seen = z >= _IN_FRONT
    z = torch.where(seen, z, torch.ones_like(z))
    # Column and row there, over the depth, augmented, and scaled so that -1 and 1 are the first and the last pixel
    axes = []
    for axis, cells in enumerate((pixels.shape[1], pixels.shape[0])):
        place = (turned[:, :, None, ..., axis] * metres + moved[:, :, None, None, None, axis]) / z
        place = (place + img_aug[:, :, None, None, None, axis, 3]) / (cells * STEREO_STRIDE - 1) * 2 - 1
        axes.append(torch.where(seen, place, torch.full_like(place, _NOT_SEEN)))
    return torch.stack(axes, dim=-1).flatten(0, 1).flatten(1, 2)


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
    # The older features where the current pixels appear: (M, used, d, h, w), zero where they are not seen
    warped = F.grid_sample(pair.older[:, :used], grid.to(pair.older.dtype), padding_mode='zeros', align_corners=True)
    warped = warped.view(images, used, -1, height, width)
    unseen = warped[:, used - _CHANNEL_GROUP] == 0
    cost = (warped - pair.current[:, :used, None]).abs().sum(dim=1)
    return cost + bias * unseen if bias else cost


def matching_cost_by_pixel(pair: StereoPair, grid: Tensor, bias: float) -> Tensor:
    """As :func:`matching_cost`, to rounding, for a CPU: channels lie side by side, so that a sample is four rows and not 4 C numbers
    far apart, and the samples of few pixels at a time stay in the cache."""
    images, channels, height, width = pair.current.shape
    used = channels - channels % _CHANNEL_GROUP
    depths = grid.shape[1] // height
    part = max(1, _CACHED_SAMPLES // (depths * used))
    costs = []
    for current, older, places in zip(pair.current[:, :used], pair.older[:, :used], grid.to(pair.older.dtype)):
        # Pixel by pixel: four rows of the older table and their weights for each depth, (h * w, d, 4)
        places = places.view(depths, height * width, 2).transpose(0, 1).contiguous()
        rows, weights = _bilinear_bags(places, height, width)
        table, pixels = older.flatten(1).t().contiguous(), current.flatten(1).t().contiguous()
        # Some pixels at a time: older features (pixels, d, used), compared with the pixel's own (pixels, used)
        for pixel, row, weight in zip(pixels.split(part), rows.split(part), weights.split(part)):
            warped = F.embedding_bag(row.flatten(0, 1), table, mode='sum', per_sample_weights=weight.flatten(0, 1))
            warped = warped.view(-1, depths, used)
            unseen = warped[..., used - _CHANNEL_GROUP] == 0
            cost = warped.sub_(pixel[:, None]).abs_().sum(dim=-1)
            costs.append(cost + bias * unseen if bias else cost)
    return torch.cat(costs).view(images, height, width, depths).permute(0, 3, 1, 2)


def _bilinear_bags(places: Tensor, height: int, width: int) -> Tuple[Tensor, Tensor]:
    """Normalised coordinates (..., 2) -> rows of a table of height * width cells and their weights, (..., 4); 0 outside."""
    # Cells with fractions; the cell at their upper left, and how far towards its neighbours
    column, row = (places[..., 0] + 1) * ((width - 1) / 2), (places[..., 1] + 1) * ((height - 1) / 2)
    left, top = column.floor(), row.floor()
    right_part, lower_part = column - left, row - top
    # The four cells around, upper left, upper right, lower left, lower right: (..., 4)
    columns, rows = torch.stack([left, left + 1] * 2, dim=-1), torch.stack([top, top, top + 1, top + 1], dim=-1)
    across = torch.stack([1 - right_part, right_part] * 2, dim=-1)
    down = torch.stack([1 - lower_part] * 2 + [lower_part] * 2, dim=-1)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    cells = torch.where(inside, rows * width + columns, torch.zeros_like(rows)).long()
    return cells, torch.where(inside, across * down, torch.zeros_like(across))


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
    grids = (sampling_grid(pixels, some, rig, pair.current2older) for some in depths.split(chunk))
    if pair.current.device.type == 'cpu':
        cost = matching_cost_by_pixel(pair, torch.cat(list(grids), dim=1), bias)
    else:
        cost = torch.cat([matching_cost(pair, grid, bias) for grid in grids], dim=1)
    return cost.neg().softmax(dim=1)

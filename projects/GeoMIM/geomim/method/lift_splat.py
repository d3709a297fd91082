"""Lift, splat: semantic and geometry maps of the cameras into one BEV map (LSS; METHOD 2.5).

Shape legend: B samples, N cameras, K copies, h x w feature cells, D depth bins, C context channels, X x Y BEV cells. Metres, pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Tuple

import torch
from torch import Tensor, nn

from .camera import CameraRig, full_precision, inverse
from .depth import DepthBins
from .grid import BEVGrid
from .pooling import PoolPlan, bev_pool
from .target import at_least_float32


@dataclass(frozen=True)
class ViewTransformConfig:
    """Sizes of the view transformation; the defaults are the paper's.

    Args:
        image_size: (H, W) of the augmented images, pixels.
        grid: BEV raster into which the features are summed, before downsampling.
        depth_bins: bins of the depth distribution.
        channels: context channels C.
        stride: pixels a feature cell.
        downsample: 1, or 2 for the strided convolutions that follow.
    """

    image_size: Tuple[int, int] = (256, 704)
    grid: BEVGrid = field(default_factory=lambda: BEVGrid((-54.0, 54.0, 0.3), (-54.0, 54.0, 0.3)))
    depth_bins: DepthBins = field(default_factory=DepthBins)
    channels: int = 80
    stride: int = 16
    downsample: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, 'image_size', tuple(self.image_size))
        if self.downsample not in (1, 2):
            raise ValueError(f'downsample must be 1 or 2, got {self.downsample}')
        self.grid.downsampled(self.downsample)
        if any(side % self.stride for side in self.image_size):
            raise ValueError(f'image size {self.image_size} (height, width) is no multiple of the stride {self.stride}')

    @property
    def feature_size(self) -> Tuple[int, int]:
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride

    @property
    def output_grid(self) -> BEVGrid:
        return self.grid.downsampled(self.downsample)


class BEVFeatures(NamedTuple):
    """bev: (B, C, *grid.shape); depth: (B * N, D, h, w) probabilities, float32."""

    bev: Tensor
    depth: Tensor


def feature_pixels(image_size: Tuple[int, int], feature_size: Tuple[int, int]) -> Tensor:
    """(h, w, 2): image position (u, v) of every feature cell, pixels; the outermost cells stand on the outermost pixels."""
    (height, width), (rows, cols) = image_size, feature_size
    v = torch.linspace(0, height - 1, rows)[:, None].expand(rows, cols)
    u = torch.linspace(0, width - 1, cols)[None].expand(rows, cols)
    return torch.stack([u, v], dim=-1)


def pixel_rays(pixels: Tensor, rig: CameraRig) -> Tensor:
    """Pixels (h, w, 2) of the augmented images -> (B, N, h, w, 3): (u, v, 1) before the augmentation."""
    img_aug = rig.img_aug.to(pixels.dtype)
    moved = pixels - img_aug[:, :, None, None, :2, 3]
    with full_precision(pixels):
        original = torch.einsum('bnij,bnhwj->bnhwi', inverse(img_aug[..., :2, :2]), moved)
    return torch.cat([original, torch.ones_like(original[..., :1])], dim=-1)


def frustum_points(pixels: Tensor, depths: Tensor, rig: CameraRig) -> Tensor:
    """LiDAR coordinates, after BEV augmentation, of pixels (h, w, 2) at depths (D,) -> (B, N, h, w, D, 3), metres."""
    dtype = pixels.dtype
    cam2bev, bev_aug = rig.cam2bev.to(dtype), rig.bev_aug.to(dtype)
    with full_precision(pixels):
        # directions (u, v, 1) of a pixel, one metre deep: camera, then the grid's frame, then its augmentation
        rotation = cam2bev[..., :3, :3] @ inverse(rig.intrinsics.to(dtype))
        rays = torch.einsum('bnij,bnhwj->bnhwi', rotation, pixel_rays(pixels, rig))
        rays = torch.einsum('bij,bnhwj->bnhwi', bev_aug[:, :3, :3], rays)
        # where the cameras stand (B, N, 3), moved alike
        origin = torch.einsum('bij,bnj->bni', bev_aug[:, :3, :3], cam2bev[..., :3, 3]) + bev_aug[:, None, :3, 3]
    # the frustum is straight: D depths along each ray
    return origin[:, :, None, None, None] + rays[..., None, :] * depths[:, None]


def cell_index(points: Tensor, grid: BEVGrid, lower: Tensor, step: Tensor) -> Tensor:
    """The cell of each lifted point among those of the batch's maps.

    Args:
        points: (B, N, h, w, D, 3), metres.
        grid: the cells, of one or more layers in z.
        lower, step: (3,) of its bounds, metres.

    Returns:
        (B * N * h * w, D) int64: counted by sample, z, then the two axes of the grid's order; -1 off the grid. Coordinates are truncated
        towards zero, not floored, as in the reference.
    """
    # .long() truncates: points up to one step below the lower bound count to the first cell, as in the reference
    x, y, z = ((points - lower) / step).long().unbind(dim=-1)
    inside = (x >= 0) & (x < grid.num_x) & (y >= 0) & (y < grid.num_y) & (z >= 0) & (z < grid.num_z)
    first, second = (x, y) if grid.axis_order == 'xy' else (y, x)
    # one row-major number over (B, Z, first, second)
    sample = torch.arange(points.shape[0], device=points.device).view(-1, 1, 1, 1, 1)
    cell = ((sample * grid.num_z + z) * grid.shape[0] + first) * grid.shape[1] + second
    return torch.where(inside, cell, -torch.ones_like(cell)).flatten(0, 3)


class ViewTransform(nn.Module):
    """Depth distribution and context from the two branches, summed into BEV and downsampled.

    Args:
        in_channels: channels of each branch.
        config: the sizes.
    """

    pixels: Tensor
    depths: Tensor
    lower: Tensor
    step: Tensor

    def __init__(self, in_channels: int, config: ViewTransformConfig) -> None:
        super().__init__()
        self.config = config
        dim, channels = in_channels, config.channels
        self.depth_net = nn.Sequential(
            *_conv_norm_relu(2 * dim, dim, bias=True),
            *_conv_norm_relu(dim, dim, bias=True),
            nn.Conv2d(dim, config.depth_bins.count + channels, 1),
        )
        self.downsample: nn.Module = nn.Identity()
        if config.downsample == 2:
            self.downsample = nn.Sequential(
                *_conv_norm_relu(channels, channels),
                *_conv_norm_relu(channels, channels, stride=2),
                *_conv_norm_relu(channels, channels),
            )
        bounds = torch.tensor([config.grid.x_bound, config.grid.y_bound, config.grid.z_bound])
        self.register_buffer('pixels', feature_pixels(config.image_size, config.feature_size), persistent=False)
        self.register_buffer('depths', config.depth_bins.values(), persistent=False)
        self.register_buffer('lower', bounds[:, 0], persistent=False)
        self.register_buffer('step', bounds[:, 2], persistent=False)

    def frustum_points(self, rig: CameraRig) -> Tensor:
        """(B, N, h, w, D, 3): LiDAR coordinates, after BEV augmentation, of every feature cell at every depth, metres."""
        return frustum_points(self.pixels, self.depths, rig)

    def cell_index(self, rig: CameraRig) -> Tensor:
        """(B * N * h * w, D) int64, see :func:`cell_index`."""
        return cell_index(self.frustum_points(rig), self.config.grid, self.lower, self.step)

    def plan(self, rig: CameraRig) -> PoolPlan:
        """The pooling plan of a rig; copies of the same images share it."""
        if self.config.grid.num_z != 1:
            raise ValueError(
                f'z_bound {self.config.grid.z_bound} has {self.config.grid.num_z} cells; this view transformation sums one'
            )
        return PoolPlan.build(self.cell_index(rig), rig.batch_size * self.config.grid.num_x * self.config.grid.num_y)

    def lift(self, semantic: Tensor, geometry: Tensor) -> Tuple[Tensor, Tensor]:
        """Maps (B * N, in_channels, h, w) -> depth (B * N, D, h, w) float32 and context (B * N, C, h, w)."""
        if tuple(semantic.shape[-2:]) != self.config.feature_size:
            raise ValueError(
                f'view transformation: feature maps of {tuple(semantic.shape[-2:])} cells, expected {self.config.feature_size} '
                f'for images of {self.config.image_size} pixels at stride {self.config.stride}'
            )
        lifted = self.depth_net(torch.cat([geometry, semantic], dim=1))
        logits, context = lifted.split([self.config.depth_bins.count, self.config.channels], dim=1)
        return at_least_float32(logits).softmax(dim=1), context

    def splat(self, depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
        """-> (B, C, *grid.shape), float32."""
        rows = depth.permute(0, 2, 3, 1).flatten(0, 2)
        pooled = bev_pool(at_least_float32(rows), at_least_float32(context.permute(0, 2, 3, 1).flatten(0, 2)), plan)
        return pooled.view(-1, *self.config.grid.shape, context.shape[1]).permute(0, 3, 1, 2)

    def forward(self, semantic: Tensor, geometry: Tensor, plan: PoolPlan) -> BEVFeatures:
        """Maps (B * N, in_channels, h, w) of one copy -> BEV features on ``config.output_grid`` and depth distributions."""
        depth, context = self.lift(semantic, geometry)
        return BEVFeatures(self.downsample(self.splat(depth, context, plan)), depth)


def _conv_norm_relu(in_channels: int, out_channels: int, stride: int = 1, bias: bool = False) -> Tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=bias)
    return conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)

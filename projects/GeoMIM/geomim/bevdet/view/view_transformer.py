"""View transformers of the BEVDet family: lift image features by a depth distribution and sum them into BEV cells (LSS).

Names of parameters and of configuration entries are BEVDet's. Shape legend: B samples, N cameras, M = B * N images, C channels, h x w
feature cells, D depth bins, Z x Y x X BEV cells. Metres, pixels.
"""

from __future__ import annotations

from typing import Any, Mapping, Optional, Sequence

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...method.camera import CameraRig
from ...method.depth import check_weight, depth_labels, depth_loss
from ...method.grid import BEVGrid
from ...method.lift_splat import BEVFeatures, cell_index, feature_pixels, frustum_points
from ...method.pooling import PoolPlan, bev_pool
from ...method.target import at_least_float32
from .depth_bins import make_depth_bins
from .depth_net import COST_VOLUME_STRIDE, DepthAndContext, DepthNet, camera_numbers
from .plan_cache import PlanCache
from .stereo import STEREO_STRIDE, StereoPair, cost_volume


def make_grid(grid_config: Mapping[str, Sequence[float]]) -> BEVGrid:
    """The cells of BEVDet's ``grid_config``; maps are (B, C, Y, X)."""
    missing = [axis for axis in ('x', 'y', 'z', 'depth') if axis not in grid_config]
    if missing:
        raise ValueError(f'grid_config needs x, y, z and depth, each (lower, upper, step) in metres; {missing} missing')
    bounds = [tuple(float(value) for value in grid_config[axis]) for axis in 'xyz']
    return BEVGrid(*bounds, axis_order='yx')  # type: ignore[arg-type]


@MODELS.register_module()
class LSSViewTransformer(BaseModule):
    """Lift, splat with a 1 x 1 convolution as depth network.

    Args:
        grid_config: ``x``, ``y``, ``z``, ``depth``, each (lower, upper, step), metres.
        input_size: (H, W) of the augmented images, pixels.
        downsample: pixels a feature cell.
        in_channels: of the image features.
        out_channels: C.
        accelerate: in evaluation, keep the pooling plans of the latest geometries and take one of them when the very same geometry comes
            again, as it does on a fixed rig. Results are equal; comparing costs one transfer of the small matrices to the host a call.
        sid: spacing-increasing depth bins.
        collapse_z: put the Z layers side by side as channels (layer-major).

    Raises:
        ValueError: bounds that do not make whole cells, or an image size that is no multiple of ``downsample``.
    """

    pixels: Tensor
    depths: Tensor
    lower: Tensor
    step: Tensor

    def __init__(
        self,
        grid_config: Mapping[str, Sequence[float]],
        input_size: Sequence[int],
        downsample: int = 16,
        in_channels: int = 512,
        out_channels: int = 64,
        accelerate: bool = False,
        sid: bool = False,
        collapse_z: bool = True,
    ) -> None:
        super().__init__()
        if len(input_size) != 2 or any(side % downsample for side in input_size):
            raise ValueError(
                f'input_size {tuple(input_size)} (height, width) is no multiple of downsample {downsample}'
            )
        self.input_size = (int(input_size[0]), int(input_size[1]))
        self.feature_size = (self.input_size[0] // downsample, self.input_size[1] // downsample)
        self.downsample, self.in_channels, self.out_channels = downsample, in_channels, out_channels
        self.collapse_z = collapse_z
        self.grid = make_grid(grid_config)
        self.depth_bins = make_depth_bins(grid_config['depth'], sid)
        self.plans = PlanCache() if accelerate else None
        self.depth_net: nn.Module = nn.Conv2d(in_channels, self.depth_bins.count + out_channels, 1)
        bounds = torch.tensor([self.grid.x_bound, self.grid.y_bound, self.grid.z_bound])
        self.register_buffer('pixels', feature_pixels(self.input_size, self.feature_size), persistent=False)
        self.register_buffer('depths', self.depth_bins.values(), persistent=False)
        self.register_buffer('lower', bounds[:, 0], persistent=False)
        self.register_buffer('step', bounds[:, 2], persistent=False)

    def forward(self, features: Tensor, rig: CameraRig, pair: Optional[StereoPair] = None) -> BEVFeatures:
        """Image features of a frame to BEV.

        Args:
            features: (B, N, in_channels, h, w).
            rig: of that frame, as ``SurroundFrames.rig`` makes it.
            pair: stereo features, for the transformers that use them.

        Returns:
            ``bev`` (B, Z * C, Y, X), or (B, C, Z, Y, X) without ``collapse_z``; ``depth`` (M, D, h, w) probabilities, float32.

        Raises:
            ValueError: features that do not fit the sizes or the rig.
        """
        expected = (rig.batch_size, rig.num_cams, self.in_channels, *self.feature_size)
        if tuple(features.shape) != expected:
            raise ValueError(
                f'view transformer: features of {tuple(features.shape)}, expected (B, N, C, h, w) = {expected} for images of '
                f'{self.input_size} pixels at {self.downsample} pixels a cell'
            )
        # Lift: a distribution over the depths and a context for each feature cell, (M, D, h, w) and (M, C, h, w)
        lifted = self.lift(features.flatten(0, 1), rig, pair)
        depth = at_least_float32(lifted.logits).softmax(dim=1)
        # Splat: context times weight, summed into the BEV cell that each of the M * D * h * w points falls into
        return BEVFeatures(self.splat(depth, lifted.context, self.plan(rig)), depth)

    def lift(self, features: Tensor, rig: CameraRig, pair: Optional[StereoPair]) -> DepthAndContext:
        """Features (M, in_channels, h, w) -> depth logits (M, D, h, w) and context (M, C, h, w)."""
        return DepthAndContext(*self.depth_net(features).split([self.depth_bins.count, self.out_channels], dim=1))

    def cell_index(self, rig: CameraRig) -> Tensor:
        """(M * h * w, D) int64: cell among the B * Z * Y * X, see :func:`geomim.method.lift_splat.cell_index`."""
        return cell_index(frustum_points(self.pixels, self.depths, rig), self.grid, self.lower, self.step)

    def plan(self, rig: CameraRig) -> PoolPlan:
        """The pooling plan of a rig, from the cache if there is one."""
        if self.plans is None or self.training:
            return self._build_plan(rig)
        return self.plans.get(rig, self._build_plan)

    def _build_plan(self, rig: CameraRig) -> PoolPlan:
        cells = rig.batch_size * self.grid.num_z * self.grid.num_y * self.grid.num_x
        return PoolPlan.build(self.cell_index(rig), cells)

    def splat(self, depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
        """Depth (M, D, h, w) and context (M, C, h, w) -> BEV features, float32."""
        grid = self.grid
        # A row for each feature cell: context (M * h * w, C), weights (M * h * w, D)
        rows = at_least_float32(context.permute(0, 2, 3, 1).flatten(0, 2))
        weights = depth.permute(0, 2, 3, 1).flatten(0, 2)
        pooled = bev_pool(weights, rows, plan)  # (B * Z * Y * X, C)
        cells = pooled.view(-1, grid.num_z, grid.num_y, grid.num_x, self.out_channels)
        if self.collapse_z:
            return cells.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return cells.permute(0, 4, 1, 2, 3).contiguous()


@MODELS.register_module()
class LSSViewTransformerBEVDepth(LSSViewTransformer):
    """Lift, splat with BEVDepth's camera-aware depth network, which learns from depth labels.

    Args:
        loss_depth_weight: of :meth:`depth_loss`.
        depthnet_cfg: options of :class:`DepthNet`.
        **options: as :class:`LSSViewTransformer`.

    Raises:
        ValueError: a ``loss_depth_weight`` that is not finite or below 0.
    """

    def __init__(
        self,
        loss_depth_weight: float = 3.0,
        depthnet_cfg: Optional[Mapping[str, Any]] = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_weight(loss_depth_weight, 'loss_depth_weight')
        self.loss_depth_weight = loss_depth_weight
        channels, bins = self.in_channels, self.depth_bins.count
        self.depth_net = DepthNet(channels, channels, self.out_channels, bins, **(depthnet_cfg or {}))

    def lift(self, features: Tensor, rig: CameraRig, pair: Optional[StereoPair]) -> DepthAndContext:
        return self.depth_net(features, camera_numbers(rig))

    def depth_loss(self, depth_map: Tensor, depth: Tensor) -> Tensor:
        """Weighted binary cross entropy against the nearest measured depth of each feature cell.

        Args:
            depth_map: (B, N, H, W), metres, 0 = none.
            depth: (M, D, h, w) of :meth:`forward`.

        Raises:
            ValueError: a depth map that does not fit the images.
        """
        cams = depth.shape[0] // max(1, depth_map.shape[0])
        if tuple(depth_map.shape[1:]) != (cams, *self.input_size) or depth_map.shape[0] * cams != depth.shape[0]:
            raise ValueError(
                f'depth map of {tuple(depth_map.shape)}, expected (B, N, H, W) with B * N = {depth.shape[0]} images of {self.input_size}'
            )
        labels = depth_labels(depth_map.float(), self.depth_bins, self.downsample).flatten(0, 1)
        return self.loss_depth_weight * depth_loss(at_least_float32(depth), labels)


@MODELS.register_module()
class LSSViewTransformerBEVStereo(LSSViewTransformerBEVDepth):
    """BEVDepth's view transformer whose depth network also sees a cost volume of two frames.

    Args:
        **options: as :class:`LSSViewTransformerBEVDepth`; ``depthnet_cfg`` needs ``stereo=True``.

    Raises:
        ValueError: a depth network without stereo, or another stride than the two strided convolutions behind the cost volume lead to.
    """

    cost_pixels: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self.depth_net.stereo:
            raise ValueError('LSSViewTransformerBEVStereo needs depthnet_cfg=dict(stereo=True, ...)')
        if self.downsample != STEREO_STRIDE * COST_VOLUME_STRIDE:
            raise ValueError(
                f'a cost volume works with downsample={STEREO_STRIDE * COST_VOLUME_STRIDE}, not {self.downsample}'
            )
        cells = (self.input_size[0] // STEREO_STRIDE, self.input_size[1] // STEREO_STRIDE)
        self.register_buffer('cost_pixels', feature_pixels(self.input_size, cells), persistent=False)

    def lift(self, features: Tensor, rig: CameraRig, pair: Optional[StereoPair]) -> DepthAndContext:
        cost = None
        if pair is not None:
            cost = cost_volume(pair, self.cost_pixels, self.depths, rig, self.depth_net.bias).to(features.dtype)
        return self.depth_net(features, camera_numbers(rig), cost)

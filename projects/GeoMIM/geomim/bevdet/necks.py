"""Necks of the BEVDet family. Names of parameters and of configuration entries are BEVDet's.

Shape legend: B samples or images, C channels, h x w cells.
"""

from __future__ import annotations

from typing import List, Optional, Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from .backbones import conv_norm_3d


def _conv_norm_relu(in_channels: int, channels: int) -> List[nn.Module]:
    convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def _upsample(scale_factor: float) -> nn.Upsample:
    return nn.Upsample(scale_factor=scale_factor, mode='bilinear', align_corners=True)


@MODELS.register_module()
class FPN_LSS(BaseModule):
    """Joins a fine and a coarse map: upsampled, side by side, two convolutions, and upsampled again.

    Args:
        in_channels: of both maps together.
        out_channels: of the output.
        scale_factor: from the coarse to the fine map.
        input_feature_index: of the fine and the coarse map among the inputs.
        extra_upsample: of the output over the fine map, ``None`` for an output on the fine map's cells.

    Raises:
        ValueError: ``in_channels`` is no number; in the forward, maps that are absent or do not fit each other.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scale_factor: float = 4,
        input_feature_index: Sequence[int] = (0, 2),
        extra_upsample: Optional[float] = 2,
    ) -> None:
        super().__init__()
        if not isinstance(in_channels, int):
            raise ValueError(
                f'FPN_LSS: in_channels must be one number, the sum of those of both maps, got {in_channels!r}'
            )
        self.fine, self.coarse = input_feature_index
        self.up = _upsample(scale_factor)
        inner = out_channels if extra_upsample is None else out_channels * 2
        self.conv = nn.Sequential(*_conv_norm_relu(in_channels, inner), *_conv_norm_relu(inner, inner))
        self.up2: Optional[nn.Module] = None
        if extra_upsample is not None:
            layers = _conv_norm_relu(inner, out_channels)
            self.up2 = nn.Sequential(_upsample(extra_upsample), *layers, nn.Conv2d(out_channels, out_channels, 1))

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) -> (B, out_channels, h, w)."""
        if max(self.fine, self.coarse) >= len(feats):
            raise ValueError(
                f'FPN_LSS: {len(feats)} maps for input_feature_index {(self.fine, self.coarse)}; the backbone before it must '
                'put out as many (out_indices, backbone_output_ids)'
            )
        fine, coarse = feats[self.fine], self.up(feats[self.coarse])
        if fine.shape[-2:] != coarse.shape[-2:]:
            raise ValueError(
                f'FPN_LSS: map {self.coarse}, upsampled, has {tuple(coarse.shape[-2:])} cells, map {self.fine} has '
                f'{tuple(fine.shape[-2:])}; sizes must be multiples of the coarsest stride, and scale_factor must fit'
            )
        x = self.conv(torch.cat([fine, coarse], dim=1))
        return x if self.up2 is None else self.up2(x)


@MODELS.register_module()
class CustomFPN(BaseModule):
    """Feature pyramid network of which one level is put out.

    Args:
        in_channels: of the inputs, the finest first.
        out_channels: of the output.
        num_outs: accepted for BEVDet's configurations; one output is returned whatever it is.
        start_level: the first of the inputs used.
        out_ids: levels with an output convolution; the first is returned.

    Raises:
        ValueError: levels that are no inputs.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int = 1,
        start_level: int = 0,
        out_ids: Sequence[int] = (0,),
    ) -> None:
        super().__init__(init_cfg=dict(type='Xavier', layer='Conv2d', distribution='uniform'))
        levels = range(start_level, len(in_channels))
        if not levels or not out_ids or any(i not in levels for i in out_ids):
            raise ValueError(
                f'CustomFPN: levels {list(levels)} and out_ids {list(out_ids)} do not fit {len(in_channels)} inputs; out_ids needs '
                'at least one of the levels'
            )
        self.num_inputs, self.start_level = len(in_channels), start_level
        self.output = out_ids[0] - start_level
        self.lateral_convs = nn.ModuleList(
            ConvModule(in_channels[level], out_channels, 1, act_cfg=None) for level in levels
        )
        self.fpn_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, padding=1, act_cfg=None) for _ in set(out_ids)
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i), the finest first -> (B, out_channels, h, w) of the first of ``out_ids``."""
        if len(inputs) != self.num_inputs:
            raise ValueError(f'CustomFPN: {len(inputs)} maps, expected {self.num_inputs}, as many as in_channels')
        laterals = [conv(inputs[self.start_level + i]) for i, conv in enumerate(self.lateral_convs)]
        joined = laterals[-1]
        for lateral in reversed(laterals[self.output : -1]):
            joined = lateral + F.interpolate(joined, size=lateral.shape[2:], mode='nearest')
        return self.fpn_convs[0](joined)


@MODELS.register_module()
class LSSFPN3D(BaseModule):
    """Joins three volumes of strides 1, 2 and 4: upsampled, side by side, one 1 x 1 x 1 convolution.

    Args:
        in_channels: of the three together.
        out_channels: of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up1, self.up2 = (
            nn.Upsample(scale_factor=factor, mode='trilinear', align_corners=True) for factor in (2, 4)
        )
        self.conv = conv_norm_3d(in_channels, out_channels, 1, dict(type='ReLU', inplace=True), kernel_size=1)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Volumes (B, C_i, Z / 2^i, Y / 2^i, X / 2^i) -> (B, out_channels, Z, Y, X)."""
        fine, middle, coarse = feats
        return self.conv(torch.cat([fine, self.up1(middle), self.up2(coarse)], dim=1))

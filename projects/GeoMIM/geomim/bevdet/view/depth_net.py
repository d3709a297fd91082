"""BEVDepth's depth network: camera-aware gates, a small convolutional stack, and the cost volume of stereo as a further input.

Parameter names are those of BEVDet's ``DepthNet``, so that its checkpoints load as they are. Shape legend: M images (B * N), B samples,
N cameras, h x w feature cells, D depth bins, C context channels.
"""

from __future__ import annotations

from typing import Any, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from mmcv.ops import DeformConv2dPack
from mmdet.models.backbones.resnet import BasicBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...method.camera import CAMERA_VECTOR_SIZE, CameraRig, full_precision

CAMERA_NUMBERS = CAMERA_VECTOR_SIZE + 5  # those of the pretraining gate and five of the BEV augmentation
_ASPP_DILATIONS = (1, 6, 12, 18)
COST_VOLUME_STRIDE = 4  # of the cost volume over that of the features


class DepthAndContext(NamedTuple):
    """logits: (M, D, h, w) before the softmax; context: (M, C, h, w)."""

    logits: Tensor
    context: Tensor


def camera_numbers(rig: CameraRig) -> Tensor:
    """(B, N, 27): fx, fy, cx, cy; six of the image augmentation; b00, b01, b10, b11, b22 of the BEV augmentation; camera to key ego."""
    vector, bev_aug = rig.camera_vector(), rig.bev_aug
    five = [bev_aug[:, 0, 0], bev_aug[:, 0, 1], bev_aug[:, 1, 0], bev_aug[:, 1, 1], bev_aug[:, 2, 2]]
    augmentation = torch.stack(five, dim=-1)[:, None].expand(-1, rig.num_cams, -1)
    return torch.cat([vector[..., :10], augmentation, vector[..., 10:]], dim=-1)


class CameraMlp(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, out_features)
        self.fc2 = nn.Linear(out_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class CameraGate(nn.Module):
    """Scales the channels of a map (M, C, h, w) by a sigmoid of a vector (M, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, channels, 1)
        self.conv_expand = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        gate = self.conv_expand(F.relu(self.conv_reduce(vector[..., None, None])))
        return x * gate.sigmoid()


class DilatedConv(nn.Module):
    """Dilated convolution that keeps the size, batch norm, ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.atrous_conv = nn.Conv2d(in_channels, channels, kernel_size, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.atrous_conv(x)))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: four dilations and the global mean side by side, joined by a 1 x 1 convolution."""

    def __init__(self, channels: int, mid_channels: int) -> None:
        super().__init__()
        for number, dilation in enumerate(_ASPP_DILATIONS, start=1):
            kernel_size = 1 if dilation == 1 else 3
            self.add_module(f'aspp{number}', DilatedConv(channels, mid_channels, kernel_size, dilation))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Conv2d(channels, mid_channels, 1, bias=False),
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(),
        )
        self.conv1 = nn.Conv2d(mid_channels * (len(_ASPP_DILATIONS) + 1), channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.5)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        branches = [getattr(self, f'aspp{number}')(x) for number in range(1, len(_ASPP_DILATIONS) + 1)]
        branches.append(self.global_avg_pool(x).expand(-1, -1, *x.shape[-2:]))
        return self.dropout(F.relu(self.bn1(self.conv1(torch.cat(branches, dim=1)))))


class DeformableConv(DeformConv2dPack):
    """Deformable convolution of any number of images, in the weights' precision whatever the autocast.

    mmcv's own wants a multiple of ``im2col_step`` once there are more than that, has no bfloat16, and would round its offsets, cells.
    """

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):
            parts = x.to(self.weight.dtype).split(self.im2col_step)
            return torch.cat([super(DeformableConv, self).forward(part) for part in parts])


class DepthNet(nn.Module):
    """Features and camera numbers to depth logits and context.

    Args:
        in_channels, mid_channels, context_channels, depth_channels: of the features, inside, and of the two outputs (C and D).
        use_dcn: a deformable convolution before the last layer.
        use_aspp: atrous spatial pyramid pooling before that.
        with_cp: recompute the depth stack in the backward.
        stereo: take a cost volume too.
        bias: added to the cost of a depth at which the other view shows nothing; used by the cost volume.
        aspp_mid_channels: channels inside ASPP, -1 for ``mid_channels``.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        context_channels: int,
        depth_channels: int,
        use_dcn: bool = True,
        use_aspp: bool = True,
        with_cp: bool = False,
        stereo: bool = False,
        bias: float = 0.0,
        aspp_mid_channels: int = -1,
    ) -> None:
        super().__init__()
        self.stereo, self.bias, self.with_cp = stereo, bias, with_cp
        self.reduce_conv = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, 3, padding=1), nn.BatchNorm2d(mid_channels), nn.ReLU(inplace=True)
        )
        self.bn = nn.BatchNorm1d(CAMERA_NUMBERS)
        for branch in ('depth', 'context'):
            self.add_module(f'{branch}_mlp', CameraMlp(CAMERA_NUMBERS, mid_channels))
            self.add_module(f'{branch}_se', CameraGate(mid_channels))
        self.context_conv = nn.Conv2d(mid_channels, context_channels, 1)
        if stereo:
            self.cost_volumn_net = _strided_norms(depth_channels)
        aspp_channels = (aspp_mid_channels if aspp_mid_channels >= 0 else mid_channels) if use_aspp else 0
        extra = depth_channels if stereo else 0
        layers = _depth_layers(mid_channels, extra, aspp_channels, use_dcn)
        self.depth_conv = nn.Sequential(*layers, nn.Conv2d(mid_channels, depth_channels, 1))

    def forward(self, features: Tensor, cameras: Tensor, cost: Optional[Tensor] = None) -> DepthAndContext:
        """Features (M, in_channels, h, w), cameras (B, N, 27), for stereo a cost volume (M, D, 4 h, 4 w)."""
        vectors = self.bn(cameras.flatten(0, -2).to(self.bn.weight.dtype))  # pixels want more than half precision
        x = self.reduce_conv(features)
        context = self.context_conv(self.context_se(x, self.context_mlp(vectors)))
        depth = self.depth_se(x, self.depth_mlp(vectors))
        if self.stereo:
            depth = torch.cat([depth, self._reduced_cost(cost, depth)], dim=1)
        if self.with_cp and torch.is_grad_enabled():
            return DepthAndContext(checkpoint(self.depth_conv, depth, use_reentrant=False), context)
        return DepthAndContext(self.depth_conv(depth), context)

    def _reduced_cost(self, cost: Optional[Tensor], like: Tensor) -> Tensor:
        """The cost volume on the features' cells; without one its network still runs, over zeros."""
        if cost is None:
            channels = self.cost_volumn_net[0].in_channels
            size = [COST_VOLUME_STRIDE * side for side in like.shape[-2:]]
            cost = like.new_zeros(like.shape[0], channels, *size)
        return self.cost_volumn_net(cost)


def _strided_norms(channels: int) -> nn.Sequential:
    """Two strided convolutions, each with a norm: from the cost volume's cells to the features'."""
    layers: List[nn.Module] = []
    for _ in range(2):
        layers += [nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels)]
    return nn.Sequential(*layers)


def _depth_layers(channels: int, extra: int, aspp_channels: int, use_dcn: bool) -> List[nn.Module]:
    """Three residual blocks, the first of which takes ``extra`` channels more, then ASPP and deformable convolution as wanted."""
    options: Any = {'downsample': nn.Conv2d(channels + extra, channels, 1)} if extra else {}
    layers: List[nn.Module] = [BasicBlock(channels + extra, channels, **options)]
    layers += [BasicBlock(channels, channels) for _ in range(2)]
    if aspp_channels:
        layers.append(ASPP(channels, aspp_channels))
    if use_dcn:
        layers.append(DeformableConv(channels, channels, 3, padding=1, groups=4, im2col_step=128))
    return layers

"""Backbones of the BEVDet family: residual encoders of BEV maps, in two and three dimensions, and mmdet's Swin for images.

Names of parameters and of configuration entries are BEVDet's. Shape legend: B samples or images, C channels, Z x Y x X cells, h x w tokens.
"""

from __future__ import annotations

from typing import Any, List, Optional, Sequence, Tuple, Union

from mmcv.cnn import ConvModule
from mmdet.models.backbones.resnet import BasicBlock, ResNet
from mmdet.models.backbones.swin import SwinTransformer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..method.swin import SwinEncoder
from .shifted_swin import ShiftedSwin


class StackedStages(BaseModule):
    """Residual stages one after the other, each of which starts with a strided block.

    Args:
        numC_input: channels of the input.
        num_layer: blocks a stage.
        num_channels: of the stages; by default doubling from ``2 * numC_input``.
        stride: of the stages' first blocks.
        backbone_output_ids: stages whose outputs are returned; by default all.
        with_cp: recompute stages in the backward.

    Raises:
        ValueError: lists of different lengths, or an output that is no stage.
    """

    def __init__(
        self,
        numC_input: int,
        num_layer: Sequence[int] = (2, 2, 2),
        num_channels: Optional[Sequence[int]] = None,
        stride: Sequence[int] = (2, 2, 2),
        backbone_output_ids: Optional[Sequence[int]] = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        stages = len(num_layer)
        channels = list(num_channels or [numC_input * 2 ** (stage + 1) for stage in range(stages)])
        if not stages == len(stride) == len(channels):
            raise ValueError(
                f'num_layer, num_channels and stride need one entry a stage each, got {stages}, {len(channels)} and {len(stride)}'
            )
        self.output_ids = tuple(range(stages) if backbone_output_ids is None else backbone_output_ids)
        if any(not 0 <= index < stages for index in self.output_ids):
            raise ValueError(f'backbone_output_ids {self.output_ids} must lie in 0..{stages - 1}')
        self.with_cp = with_cp
        layers: List[nn.Module] = []
        for count, before, after, step in zip(num_layer, [numC_input, *channels], channels, stride):
            blocks = [self.make_block(before, after, step, True)]
            blocks += [self.make_block(after, after, 1, False) for _ in range(count - 1)]
            layers.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*layers)

    @staticmethod
    def make_block(before: int, after: int, stride: int, first: bool) -> nn.Module:
        """A block of ``before`` to ``after`` channels; ``first`` of its stage or not."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> List[Tensor]:
        """(B, C, [Z,] Y, X) -> maps of ``backbone_output_ids``, the finest first."""
        outputs = []
        for index, layer in enumerate(self.layers):
            x = checkpoint(layer, x, use_reentrant=False) if self.with_cp and x.requires_grad else layer(x)
            if index in self.output_ids:
                outputs.append(x)
        return outputs


@MODELS.register_module()
class CustomResNet(StackedStages):
    """Residual encoder of BEV maps (B, C, Y, X); arguments as :class:`StackedStages`."""

    @staticmethod
    def make_block(before: int, after: int, stride: int, first: bool) -> nn.Module:
        downsample = nn.Conv2d(before, after, 3, stride, 1) if first else None
        return BasicBlock(before, after, stride=stride, downsample=downsample)


@MODELS.register_module()
class CustomResNet3D(StackedStages):
    """Residual encoder of volumes (B, C, Z, Y, X); arguments as :class:`StackedStages`."""

    @staticmethod
    def make_block(before: int, after: int, stride: int, first: bool) -> nn.Module:
        return BasicBlock3D(before, after, stride, first)


class BasicBlock3D(nn.Module):
    """Two 3 x 3 x 3 convolutions with norms and a residual; the first of a stage has a convolution in its residual too."""

    def __init__(self, before: int, after: int, stride: int, first: bool) -> None:
        super().__init__()
        self.conv1 = conv_norm_3d(before, after, stride, dict(type='ReLU', inplace=True))
        self.conv2 = conv_norm_3d(after, after, 1, None)
        self.downsample = conv_norm_3d(before, after, stride, None) if first else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + residual)


def conv_norm_3d(before: int, after: int, stride: int, act_cfg: Optional[dict], kernel_size: int = 3) -> ConvModule:
    """3-D convolution without bias, batch norm, activation."""
    return ConvModule(
        before,
        after,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
        conv_cfg=dict(type='Conv3d'),
        norm_cfg=dict(type='BN3d'),
        act_cfg=act_cfg,
    )


@MODELS.register_module()
class StereoShiftedSwin(ShiftedSwin):
    """Shifted-window Swin that puts BEVStereo's feature, the stride-4 map before any norm, in front of its outputs.

    Args:
        window_size: tokens along a window's side, one number or one a stage.
        **options: as :class:`ShiftedSwin`.
    """

    def __init__(self, window_size: Union[int, Sequence[int]] = 12, **options: Any) -> None:
        if isinstance(window_size, int):
            window_size = [window_size] * len(options.get('depths', (2, 2, 18, 2)))
        super().__init__(window_size=window_size, **options)

    def forward(self, images: Tensor) -> List[Tensor]:
        """(B, 3, H, W) -> maps (B, C, h, w), finest first."""
        outputs = []
        tokens, size = _embed(self, images)
        for index, stage in enumerate(self.stages):
            tokens, size, output, shape = stage(tokens, size)
            if index == 0:
                outputs.append(_as_map(output, shape))
            if index in self.out_indices:
                outputs.append(_as_map(getattr(self, f'norm{index}')(output), shape))
        return outputs


def _embed(swin: SwinTransformer, images: Tensor) -> Tuple[Tensor, Tuple[int, int]]:
    """(B, 3, H, W) -> tokens (B, h * w, C) and (h, w)."""
    tokens, size = swin.patch_embed(images)
    if swin.use_abs_pos_embed:
        tokens = tokens + swin.absolute_pos_embed
    return swin.drop_after_pos(tokens), size


def _as_map(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, h * w, C) -> (B, C, h, w)."""
    return tokens.unflatten(1, tuple(shape)).permute(0, 3, 1, 2).contiguous()


def first_stage(backbone: nn.Module, images: Tensor) -> Tensor:
    """The stride-4 feature that BEVStereo compares, without the stages behind it: images (B, 3, H, W) -> (B, C, H / 4, W / 4).

    Raises:
        ValueError: a backbone of another kind than ResNet, GeoMIMSwin and StereoShiftedSwin.
    """
    if isinstance(backbone, SwinEncoder):
        tokens = backbone.stages[0](backbone.embed(images), None, backbone.activation_checkpointing)
        return tokens.permute(0, 3, 1, 2).contiguous()
    if isinstance(backbone, SwinTransformer):
        _, _, output, shape = backbone.stages[0](*_embed(backbone, images))
        return _as_map(output, shape)
    if isinstance(backbone, ResNet):
        x = backbone.stem(images) if backbone.deep_stem else backbone.relu(backbone.norm1(backbone.conv1(images)))
        return getattr(backbone, backbone.res_layers[0])(backbone.maxpool(x))
    raise _no_stereo_feature(backbone)


def check_stereo_backbone(backbone: nn.Module) -> None:
    """Raise ``ValueError`` unless the backbone's first output is the stereo feature."""
    if isinstance(backbone, ResNet):
        if backbone.out_indices[0] != 0:
            raise ValueError(
                f'a ResNet needs stage 0 in front of its out_indices for stereo, got {tuple(backbone.out_indices)}'
            )
    elif not (getattr(backbone, 'return_stereo_feat', False) or isinstance(backbone, StereoShiftedSwin)):
        raise _no_stereo_feature(backbone)


def _no_stereo_feature(backbone: nn.Module) -> ValueError:
    return ValueError(
        f'{type(backbone).__name__} gives no stereo feature: take ResNet with stage 0 in its out_indices, GeoMIMSwin with '
        'return_stereo_feat=True, or StereoShiftedSwin'
    )

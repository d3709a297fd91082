"""Swin encoder with plain windows and, in pretraining, group attention (MixMAE scheme; paper section 3.1, METHOD 2.2).

All K copies pass through the encoder at once, over the unmixed image: inside a window a token attends to tokens of its own copy only.
Parameter names are those of mmdetection's and BEVDet's Swin, so that checkpoints load there as they are.

Shape legend: B images, H x W pixels, h x w tokens of a stage, C channels, K copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple, Type

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import LAYER_NORM_EPS, DropPath, attention, run_checkpointed
from .masked_encoder import EncoderSpec, MaskedEncoder
from .position_embedding import sine_cosine_embedding
from .windows import WindowPlan, relative_position_index

PATCH_SIZE = 4  # pixels


@dataclass(frozen=True)
class SwinConfig(EncoderSpec):
    """Sizes of a Swin encoder; the defaults are Swin-B with the windows of the paper.

    Args:
        embed_dims: channels of stage 1; doubled by every further stage.
        depths: blocks a stage.
        num_heads: attention heads a stage.
        window_size: tokens along a window's side, a stage each.
        mlp_ratio: hidden over outer channels of the MLPs.
        out_indices: stages (from 0) whose normalised maps are returned.
        pretrain_img_size: pixels along the images for which the position embedding was made.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.
    """

    embed_dims: int = 128
    depths: Tuple[int, ...] = (2, 2, 18, 2)
    num_heads: Tuple[int, ...] = (4, 8, 16, 32)
    window_size: Tuple[int, ...] = (16, 16, 16, 8)
    mlp_ratio: float = 4.0
    out_indices: Tuple[int, ...] = (2, 3)
    pretrain_img_size: int = 224
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ('depths', 'num_heads', 'window_size', 'out_indices'):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        lengths = {name: len(getattr(self, name)) for name in ('depths', 'num_heads', 'window_size')}
        if len(set(lengths.values())) != 1:
            raise ValueError(f'depths, num_heads and window_size need one entry a stage each, got {lengths} entries')
        for stage, heads in enumerate(self.num_heads):
            if self.stage_dims[stage] % heads:
                raise ValueError(f'stage {stage}: {self.stage_dims[stage]} channels cannot be split into {heads} heads')
        if any(not 0 <= index < len(self.depths) for index in self.out_indices):
            raise ValueError(f'out_indices {self.out_indices} must lie in 0..{len(self.depths) - 1}')
        if self.pretrain_img_size < PATCH_SIZE:
            raise ValueError(f'pretrain_img_size must be at least {PATCH_SIZE} pixels, got {self.pretrain_img_size}')

    @property
    def stage_dims(self) -> Tuple[int, ...]:
        return tuple(self.embed_dims * 2**stage for stage in range(len(self.depths)))

    def build(self, activation_checkpointing: bool = False) -> MaskedEncoder:
        """A :class:`SwinEncoder`."""
        return SwinEncoder(self, activation_checkpointing)

    def check(self) -> None:
        """Raise ``ValueError`` unless the last two stages are among the outputs."""
        stages = len(self.depths)
        if self.out_indices[-2:] != (stages - 2, stages - 1):
            raise ValueError(
                f'pretraining fuses the last two stages: out_indices must end with {(stages - 2, stages - 1)}, '
                f'got {self.out_indices}'
            )

    @classmethod
    def tiny(cls, **changes: object) -> SwinConfig:
        """Swin-T."""
        return cls(**{'embed_dims': 96, 'depths': (2, 2, 6, 2), 'num_heads': (3, 6, 12, 24), **changes})  # type: ignore[arg-type]

    @classmethod
    def base(cls, **changes: object) -> SwinConfig:
        """Swin-B."""
        return cls(**changes)  # type: ignore[arg-type]

    @classmethod
    def large(cls, **changes: object) -> SwinConfig:
        """Swin-L."""
        return cls(**{'embed_dims': 192, 'num_heads': (6, 12, 24, 48), **changes})  # type: ignore[arg-type]


class WindowProjections(nn.Module):
    """Parameters of window attention: joint projection, relative position bias, output projection."""

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer('relative_position_index', relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def position_bias(self) -> Tensor:
        """(heads, L, L)."""
        length = self.relative_position_index.shape[0]
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return bias.view(length, length, self.num_heads).permute(2, 0, 1)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        # Other implementations store the index; here it is a constant of the window size.
        state_dict.pop(prefix + 'relative_position_index', None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class WindowAttention(nn.Module):
    """Attention inside the windows of a plan, over (B, h, w, C)."""

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.w_msa = WindowProjections(dim, num_heads, window)

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        layer = self.w_msa
        if plan.allowed is None:  # padding takes part, as zeros before the projection
            qkv = layer.qkv(plan.pad(x))
        else:  # nobody attends to padding: project real tokens only
            qkv = plan.pad(layer.qkv(x))
        query, key, value = plan.split_heads(qkv, layer.num_heads)
        bias = plan.masked_bias(layer.position_bias().to(qkv.dtype))
        # Windows stand on the head axis, for the bias differs by window but not by image.
        shape = query.shape
        flat = (shape[0], shape[1] * shape[2], shape[3], shape[4])
        if plan.allowed is None:
            flat = (shape[0] * shape[1], *shape[2:])
        else:
            bias = bias.flatten(0, 1)[None]
        attended = attention(query.reshape(flat), key.reshape(flat), value.reshape(flat), bias)
        return layer.proj(plan.merge_heads(attended.reshape(shape)))


class FeedForward(nn.Module):
    """Linear, GELU, linear; the nesting gives mmcv's parameter names."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(dim, hidden), nn.GELU()), nn.Linear(hidden, dim)])

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers
        return second(first(x))


class SwinBlock(nn.Module):
    """Pre-norm block over (B, h, w, C): window attention and MLP, each with a residual."""

    def __init__(
        self, dim: int, num_heads: int, window: int, mlp_ratio: float = 4.0, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = WindowAttention(dim, num_heads, window)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.ffn = FeedForward(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), plan))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class PatchEmbed(nn.Module):
    """(B, 3, H, W) -> (B, H / 4, W / 4, C); sizes that are no multiple of 4 are zero-padded on the right and the bottom."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, dim, PATCH_SIZE, stride=PATCH_SIZE)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f'images must be (B, 3, H, W), got {tuple(images.shape)}')
        bottom, right = -images.shape[-2] % PATCH_SIZE, -images.shape[-1] % PATCH_SIZE
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom))
        return self.norm(self.projection(images).permute(0, 2, 3, 1))


def with_position(tokens: Tensor, position: Tensor) -> Tensor:
    """Tokens (B, h, w, C) plus a position embedding (1, C, h', w'), brought to their grid with bicubic interpolation."""
    resized = F.interpolate(position, size=tokens.shape[1:3], mode='bicubic', align_corners=False)
    return tokens + resized.permute(0, 2, 3, 1)


class PatchMerging(nn.Module):
    """(B, h, w, C) -> (B, h / 2, w / 2, 2C): 2 x 2 neighbours side by side, channel by channel (the order of ``nn.Unfold``)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=LAYER_NORM_EPS)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2 or x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        batch, height, width, dim = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 5, 2, 4)
        return self.reduction(self.norm(x.reshape(batch, height // 2, width // 2, 4 * dim)))


class SwinStage(nn.Module):
    """Blocks of one resolution, and the merging that leads to the next."""

    def __init__(self, config: SwinConfig, index: int, drop_path_rates: Sequence[float]) -> None:
        super().__init__()
        dim, heads, window = config.stage_dims[index], config.num_heads[index], config.window_size[index]
        self.window = window
        self.blocks = nn.ModuleList(SwinBlock(dim, heads, window, config.mlp_ratio, rate) for rate in drop_path_rates)
        self.downsample = PatchMerging(dim) if index < len(config.depths) - 1 else None

    def forward(self, x: Tensor, masks: Optional[Tensor], checkpointed: bool) -> Tensor:
        plan = WindowPlan.build((x.shape[1], x.shape[2]), self.window, masks)
        for block in self.blocks:
            x = run_checkpointed(checkpointed, block, x, plan)
        return x


class SwinEncoder(MaskedEncoder):
    """Swin with plain windows; with masks, group attention.

    Args:
        config: the sizes.
        activation_checkpointing: recompute each block in the backward instead of keeping its activations.
    """

    name = 'swin'
    # for hosts that call these parts themselves
    patch_embed_type: Type[PatchEmbed] = PatchEmbed
    stage_type: Type[SwinStage] = SwinStage

    def __init__(self, config: SwinConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.strides = tuple(PATCH_SIZE * 2**index for index in config.out_indices)
        self.channels = tuple(config.stage_dims[index] for index in config.out_indices)
        self.num_heads, self.mlp_ratio = config.num_heads[-2:][0], config.mlp_ratio
        self.activation_checkpointing = activation_checkpointing
        self.patch_embed = self.patch_embed_type(config.embed_dims)
        side = config.pretrain_img_size // PATCH_SIZE
        self.absolute_pos_embed = nn.Parameter(sine_cosine_embedding(config.embed_dims, side))
        blocks = sum(config.depths)
        rates = [config.drop_path_rate * block / max(1, blocks - 1) for block in range(blocks)]
        self.stages = nn.ModuleList()
        for index, depth in enumerate(config.depths):
            self.stages.append(self.stage_type(config, index, rates[:depth]))
            rates = rates[depth:]
        for index in config.out_indices:
            self.add_module(f'norm{index}', nn.LayerNorm(config.stage_dims[index], eps=LAYER_NORM_EPS))
        self.apply(init_linear)

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> tokens (B, H / 4, W / 4, C) with their position embedding."""
        return with_position(self.patch_embed(images), self.absolute_pos_embed)

    def stage_outputs(self, images: Tensor, masks: Optional[Tensor] = None) -> List[Tensor]:
        """Every stage's output (B, h, w, C), not yet normalised. ``masks``: (K, h', w') cells, 1 = hidden."""
        x = self.embed(images)
        outputs = []
        for stage in self.stages:
            x = stage(x, masks, self.activation_checkpointing)
            outputs.append(x)
            if isinstance(stage.downsample, PatchMerging):
                x = stage.downsample(x)
        return outputs

    def forward(self, images: Tensor, masks: Optional[Tensor] = None) -> Tuple[Tensor, ...]:
        """Images (B, 3, H, W) -> normalised maps (B, C, h, w) of ``config.out_indices``."""
        outputs = self.stage_outputs(images, masks)
        return tuple(
            getattr(self, f'norm{index}')(outputs[index]).permute(0, 3, 1, 2) for index in self.config.out_indices
        )


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for linear layers, as MAE and MixMAE start from scratch.

    Truncated normal weights (0.02), as Swin has them, are far too small for narrow layers: those learn to see much later.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

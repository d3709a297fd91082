"""From encoder stages to semantic and geometry maps: fusion, filling in, trunk and the camera-aware geometry branch.

(paper section 3.2; METHOD 2.2 end, 2.3 and 2.4)

Shape legend: B samples, N cameras, K copies, h x w tokens at stride 16, C channels of the encoder, D channels of the decoder.
Stacked copies are copy-major: index = k * (B * N) + b * N + n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import LAYER_NORM_EPS, Block, Mlp, run_checkpointed
from .camera import CAMERA_VECTOR_SIZE, CameraRig
from .cross_view import CrossViewBlock
from .masked_encoder import FUSED_STRIDES, MaskedEncoder
from .masking import resize_masks
from .position_embedding import sine_cosine_embedding
from .swin import SwinBlock, init_linear
from .windows import WindowPlan


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder; the defaults are the paper's.

    Args:
        dim: channels.
        num_heads: attention heads of every block.
        depth: blocks of the trunk (semantic branch).
        mlp_ratio: hidden over outer channels of the MLPs.
        cross_view_after: trunk blocks (from 1) that a cross-view attention follows.
        geometry_from: trunk block (from 1) after which the geometry branch leaves.
        geometry_depth: blocks of the geometry branch; half of ``depth`` if None.
        geometry_cross_view_after: blocks of the geometry branch (from 1) that a cross-view attention follows.
        pos_embed_size: cells along the stored position embedding (7 for 224-pixel images at stride 32).
        fusion_window: window of the block that smooths the fused encoder map, tokens.
    """

    dim: int = 512
    num_heads: int = 16
    depth: int = 8
    mlp_ratio: float = 4.0
    cross_view_after: Tuple[int, ...] = (2, 6)
    geometry_from: int = 4
    geometry_depth: Optional[int] = None
    geometry_cross_view_after: Tuple[int, ...] = (2,)
    pos_embed_size: int = 7
    fusion_window: int = 7

    def __post_init__(self) -> None:
        object.__setattr__(self, 'cross_view_after', tuple(self.cross_view_after))
        object.__setattr__(self, 'geometry_cross_view_after', tuple(self.geometry_cross_view_after))
        if self.geometry_depth is None:
            object.__setattr__(self, 'geometry_depth', self.depth // 2)
        if not 1 <= self.geometry_from <= self.depth:
            raise ValueError(f'geometry_from must lie in 1..{self.depth} (the trunk), got {self.geometry_from}')
        for name, limit in (('cross_view_after', self.depth), ('geometry_cross_view_after', self.geometry_depth)):
            if any(not 1 <= block <= int(limit or 0) for block in getattr(self, name)):
                raise ValueError(f'{name} {getattr(self, name)} must lie in 1..{limit} (blocks of that branch)')


class StageFusion(nn.Module):
    """The encoder's maps of stride 16 and, where it has one, 32 into one of stride 16 and the decoder's width (METHOD 2.2).

    Args:
        encoder: whose maps are fused.
        config: the decoder's sizes.
    """

    def __init__(self, encoder: MaskedEncoder, config: DecoderConfig) -> None:
        super().__init__()
        # Swin's outputs may be more than are fused
        self.indices = tuple(encoder.strides.index(stride) for stride in FUSED_STRIDES if stride in encoder.strides)
        fine, *coarse = (encoder.channels[index] for index in self.indices)
        self.window = config.fusion_window
        if coarse:
            self.reduce = nn.Linear(coarse[0], fine)
        self.smooth = SwinBlock(fine, encoder.num_heads, config.fusion_window, encoder.mlp_ratio)
        self.norm = nn.LayerNorm(fine, eps=LAYER_NORM_EPS)
        self.embed = nn.Linear(fine, config.dim)
        self.apply(init_linear)

    def forward(self, maps: Sequence[Tensor], masks: Optional[Tensor]) -> Tensor:
        """The encoder's maps (B, C, h, w), one per stride -> (B, h, w, D) of stride 16."""
        fine, *coarse = (maps[index].permute(0, 2, 3, 1) for index in self.indices)
        size = (fine.shape[1], fine.shape[2])
        for map_ in coarse:
            raised = F.interpolate(self.reduce(map_).permute(0, 3, 1, 2), size=size, mode='nearest')
            fine = fine + raised.permute(0, 2, 3, 1)
        fused = self.smooth(fine, WindowPlan.build(size, self.window, masks))
        return self.embed(self.norm(fused))


class CameraGate(nn.Module):
    """Scales the channels of a camera's tokens by a gate computed from its 22 calibration numbers (METHOD 2.4)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(CAMERA_VECTOR_SIZE)
        self.mlp = Mlp(CAMERA_VECTOR_SIZE, dim, dim)
        self.reduce = nn.Linear(dim, dim)
        self.expand = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, camera_vectors: Tensor) -> Tensor:
        """tokens (M, L, D), camera_vectors (M, 22) -> (M, L, D)."""
        hidden = F.relu(self.reduce(self.mlp(self.norm(camera_vectors))))
        return tokens * torch.sigmoid(self.expand(hidden))[:, None]


class Decoder(nn.Module):
    """Fills hidden positions with the mask token and decodes every copy into a semantic and a geometry map.

    Args:
        config: the sizes.
        activation_checkpointing: recompute each block in the backward instead of keeping its activations.
    """

    pos_embed: Tensor

    def __init__(self, config: DecoderConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        dim, heads, ratio, side = config.dim, config.num_heads, config.mlp_ratio, config.pos_embed_size
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer('pos_embed', sine_cosine_embedding(dim, side))
        self.trunk = nn.ModuleList(Block(dim, heads, ratio) for _ in range(config.depth))
        self.trunk_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.geometry = nn.ModuleList(Block(dim, heads, ratio) for _ in range(int(config.geometry_depth or 0)))
        self.geometry_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.gate = CameraGate(dim)
        self.cross_view = nn.ModuleList(CrossViewBlock(dim, heads) for _ in config.cross_view_after)
        self.geometry_cross_view = nn.ModuleList(CrossViewBlock(dim, heads) for _ in config.geometry_cross_view_after)
        self.apply(init_linear)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for block in [*self.cross_view, *self.geometry_cross_view]:
            block.reset_to_identity()

    def fill_in(self, tokens: Tensor, masks: Tensor) -> Tensor:
        """tokens (B * N, h, w, D), masks (K, h', w') -> (K * B * N, h * w, D): hidden positions become the mask token (METHOD 2.3)."""
        size = (tokens.shape[1], tokens.shape[2])
        hidden = resize_masks(masks, size)[:, None, :, :, None] > 0.5
        filled = torch.where(hidden, self.mask_token.to(tokens.dtype), tokens)
        position = F.interpolate(self.pos_embed, size=size, mode='bicubic', align_corners=False)
        filled = filled + position.permute(0, 2, 3, 1)
        return filled.reshape(-1, size[0] * size[1], filled.shape[-1])

    def forward(self, tokens: Tensor, rig: CameraRig, masks: Tensor) -> Tuple[Tensor, Tensor]:
        """tokens (B * N, h, w, D), masks (K, h', w') -> semantic and geometry maps (K * B * N, D, h, w)."""
        size = (tokens.shape[1], tokens.shape[2])
        vectors = rig.camera_vector().flatten(0, 1).repeat(masks.shape[0], 1)
        x = self.fill_in(tokens, masks)
        start = self.config.geometry_from
        trunk = self._run(x, self.trunk, self.cross_view, self.config.cross_view_after, rig.num_cams, size, 0, start)
        geometry = self.gate(trunk, vectors)
        semantic = self._run(
            trunk, self.trunk, self.cross_view, self.config.cross_view_after, rig.num_cams, size, start, None
        )
        after = self.config.geometry_cross_view_after
        geometry = self._run(geometry, self.geometry, self.geometry_cross_view, after, rig.num_cams, size, 0, None)
        return _to_map(self.trunk_norm(semantic), size), _to_map(self.geometry_norm(geometry), size)

    def _run(
        self,
        x: Tensor,
        blocks: nn.ModuleList,
        cross_blocks: nn.ModuleList,
        cross_after: Tuple[int, ...],
        num_cams: int,
        size: Tuple[int, int],
        first: int,
        last: Optional[int],
    ) -> Tensor:
        """Blocks [first, last) of a branch, with the cross-view blocks that follow them."""
        for number, block in enumerate(blocks[first:last], start=first + 1):
            x = run_checkpointed(self.activation_checkpointing, block, x)
            if number in cross_after:
                cross = cross_blocks[cross_after.index(number)]
                x = run_checkpointed(self.activation_checkpointing, cross, x, num_cams, size)
        return x


def _to_map(tokens: Tensor, size: Tuple[int, int]) -> Tensor:
    """(M, h * w, D) -> (M, D, h, w)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *size)

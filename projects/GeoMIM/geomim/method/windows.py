"""Plain (never shifted) attention windows and the group rule inside them.

Shape legend: B images, H x W tokens, G windows of an image, L = window * window tokens of a window, h heads, d channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .masking import group_index, resize_masks


def relative_position_index(window: int) -> Tensor:
    """(L, L) int64 rows of the Swin bias table: entry (i, j) addresses the offset from token j to token i."""
    axis = torch.arange(window)
    rows, cols = axis.repeat_interleave(window), axis.repeat(window)
    d_row = rows[:, None] - rows[None, :] + window - 1
    d_col = cols[:, None] - cols[None, :] + window - 1
    return d_row * (2 * window - 1) + d_col


@dataclass(frozen=True)
class WindowPlan:
    """How one stage's token grid is cut into windows; built once a stage and shared by its blocks.

    Args:
        size: (H, W) tokens.
        window: tokens along a window's side.
        allowed: (G, 1, L, L) bool, True where attention is allowed; None without masks.
    """

    size: Tuple[int, int]
    window: int
    allowed: Optional[Tensor] = None

    @classmethod
    def build(cls, size: Tuple[int, int], window: int, masks: Optional[Tensor] = None) -> WindowPlan:
        """Plan for ``size`` tokens; ``masks`` (K, h, w) add the group rule: a token attends to its own group only, and padding
        belongs to none."""
        if window < 1:
            raise ValueError(f'window size must be at least 1 token, got {window}')
        plan = cls(size, window)
        if masks is None:
            return plan
        groups = group_index(resize_masks(masks, size))
        groups = F.pad(groups, (0, plan.padding[1], 0, plan.padding[0]), value=-1)
        rows, cols = plan.num_windows
        groups = groups.view(rows, window, cols, window).transpose(1, 2).reshape(rows * cols, window * window)
        same = (groups[:, :, None] == groups[:, None, :]) & (groups >= 0)[:, :, None]
        return cls(size, window, same[:, None])

    @property
    def padding(self) -> Tuple[int, int]:
        """Tokens added at the bottom and on the right."""
        return -self.size[0] % self.window, -self.size[1] % self.window

    @property
    def num_windows(self) -> Tuple[int, int]:
        return -(-self.size[0] // self.window), -(-self.size[1] // self.window)

    def pad(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> zero-padded to whole windows."""
        bottom, right = self.padding
        return F.pad(tokens, (0, 0, 0, right, 0, bottom)) if bottom or right else tokens

    def split_heads(self, qkv: Tensor, num_heads: int) -> Tensor:
        """Padded (B, H', W', 3 * h * d) -> (3, B, G, h, L, d)."""
        batch = qkv.shape[0]
        rows, cols = self.num_windows
        parts = qkv.view(batch, rows, self.window, cols, self.window, 3, num_heads, -1)
        parts = parts.permute(5, 0, 1, 3, 6, 2, 4, 7)
        return parts.reshape(3, batch, rows * cols, num_heads, self.window**2, parts.shape[-1])

    def merge_heads(self, attended: Tensor) -> Tensor:
        """(B, G, h, L, d) -> (B, H, W, h * d) without the padding."""
        batch, _, num_heads, _, channels = attended.shape
        rows, cols = self.num_windows
        parts = attended.view(batch, rows, cols, num_heads, self.window, self.window, channels)
        parts = parts.permute(0, 1, 4, 2, 5, 3, 6)
        parts = parts.reshape(batch, rows * self.window, cols * self.window, num_heads * channels)
        return parts[:, : self.size[0], : self.size[1]]

    def masked_bias(self, bias: Tensor) -> Tensor:
        """Position bias (h, L, L) -> additive (G or 1, h, L, L): very negative where attention is not allowed.

        Finite on purpose: a row with nothing to attend to (padding, cells hidden in every copy) turns into a uniform one, not NaN.
        """
        if self.allowed is None:
            return bias[None]
        return torch.where(self.allowed, bias, bias.new_full((), torch.finfo(bias.dtype).min / 2))

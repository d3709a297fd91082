"""Cross-view attention (CVA): tokens of one image row attend to the same row in all cameras of a rig (paper section 3.2).

Shape legend: S stacked samples (K copies x B), N cameras, h x w tokens of an image, C channels.
"""

from __future__ import annotations

from typing import Tuple

from torch import Tensor, nn

from .attention import Block


class CrossViewBlock(Block):
    """A transformer block whose attention runs over the N * w tokens of an image row; starts as the identity (METHOD 2.4)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__(dim, num_heads, mlp_ratio)
        self.reset_to_identity()

    def reset_to_identity(self) -> None:
        """Zero both output projections, so that a new block passes its input on."""
        for layer in (self.attn.proj, self.mlp.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, num_cams: int, size: Tuple[int, int]) -> Tensor:  # type: ignore[override]
        """Args: tokens (S * N, h * w, C); num_cams N; size (h, w). Returns the same shape."""
        images, length, dim = tokens.shape
        height, width = size
        if images % num_cams:
            raise ValueError(f'cross-view attention: {images} images are no multiple of {num_cams} cameras')
        if length != height * width:
            raise ValueError(f'cross-view attention: {length} tokens do not form {height} x {width}')
        samples = images // num_cams
        rows = tokens.view(samples, num_cams, height, width, dim).transpose(1, 2)
        rows = super().forward(rows.reshape(samples * height, num_cams * width, dim))
        rows = rows.view(samples, height, num_cams, width, dim).transpose(1, 2)
        return rows.reshape(images, length, dim)

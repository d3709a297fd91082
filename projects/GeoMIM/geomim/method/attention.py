"""Attention and transformer parts that the encoder and the decoder share.

Shape legend: B sequences, L tokens, C channels, h heads, d channels of a head.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

LAYER_NORM_EPS = 1e-5  # the reference's; timm's newer blocks use 1e-6, which shows in the third decimal
_FUSED: Any = getattr(F, 'scaled_dot_product_attention', None)
_STOPS_EARLY = hasattr(torch.utils.checkpoint, 'set_checkpoint_early_stop')


def plain_attention(query: Tensor, key: Tensor, value: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for (..., L, d) tensors: what the fused function computes, for torch < 2.0 and for tests."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1) @ value


class _BiasedAttentionOnCPU(torch.autograd.Function):
    """The fused function, with a bias that learns, on a CPU.

    There the fused kernel has no gradient for its bias and torch falls back to keeping every score of the forward. Here the forward is
    the fused kernel and the backward computes the scores anew. (On a GPU the fused kernels know the gradient.)
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        attended = _FUSED(query.detach(), key.detach(), value.detach(), attn_mask=bias.detach())
        ctx.save_for_backward(query, key, value, bias, attended)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        query, key, value, bias, attended = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        weights = (query * scale @ key.transpose(-2, -1)).add_(bias).softmax(dim=-1)
        grad_value = weights.transpose(-2, -1) @ grad
        shared = (grad * attended).sum(dim=-1, keepdim=True)
        grad_scores = (grad @ value.transpose(-2, -1)).sub_(shared).mul_(weights)
        del weights
        grad_query = (grad_scores @ key).mul_(scale)
        grad_key = (grad_scores.transpose(-2, -1) @ query).mul_(scale)
        return grad_query, grad_key, grad_value, grad_scores.sum_to_size(bias.shape)


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Fused attention of (B, h, L, d) tensors with an additive ``bias`` that broadcasts to (B, h, L, L)."""
    if _FUSED is None:
        return plain_attention(query, key, value, bias)
    if bias is not None and bias.requires_grad and query.device.type == 'cpu' and torch.is_grad_enabled():
        return _BiasedAttentionOnCPU.apply(query, key, value, bias)
    return _FUSED(query, key, value, attn_mask=bias)


def run_checkpointed(enabled: bool, function: Callable[..., Tensor], *args: Any) -> Tensor:
    """``function(*args)``, its activations recomputed in the backward if ``enabled`` and a gradient is wanted."""
    if not (enabled and torch.is_grad_enabled()):
        return function(*args)
    if _FUSED is None:  # torch < 2.0 knows the re-entrant kind only in full
        return checkpoint(function, *args)
    return checkpoint(function, *args, use_reentrant=False)


def without_keeping(first: nn.Module, then: nn.Module, x: Tensor) -> Tensor:
    """``then(first(x))``, where the result of a cheap ``first`` (norm, activation) is not kept for the backward but computed again.

    Only on a CPU, where writing large tensors to fresh memory costs more than computing them; ``then`` is not run twice, for torch's
    checkpointing stops as soon as it has what the backward needs (torch >= 2.1).
    """
    if _STOPS_EARLY and x.device.type == 'cpu' and torch.is_grad_enabled():
        return checkpoint(lambda value: then(first(value)), x, use_reentrant=False, preserve_rng_state=False)
    return then(first(x))


class DropPath(nn.Module):
    """Drops the residual branch of a sample with probability ``rate`` while training (stochastic depth)."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f'drop path rate must be in [0, 1), got {rate}')
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.dim() - 1)
        return x * x.new_empty(shape).bernoulli_(keep).div_(keep)


class SelfAttention(nn.Module):
    """Multi-head self-attention over (B, L, C), normalised by the given norm, with a joint projection to query, key and value."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'{dim} channels cannot be split into {num_heads} attention heads')
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        batch, length, dim = x.shape
        qkv = without_keeping(norm, self.qkv, x).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return self.proj(attention(query, key, value).transpose(1, 2).reshape(batch, length, dim))


class Mlp(nn.Module):
    """Linear, GELU, linear over the last axis."""

    def __init__(self, in_features: int, hidden_features: int, out_features: Optional[int] = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_features, out_features or in_features)

    def forward(self, x: Tensor) -> Tensor:
        return without_keeping(self.act, self.fc2, self.fc1(x))


class Block(nn.Module):
    """Pre-norm transformer block over (B, L, C): attention and MLP, each with a residual (METHOD 2.4)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x, self.norm1)
        hidden = without_keeping(self.norm2, self.mlp.fc1, x)
        return x + without_keeping(self.mlp.act, self.mlp.fc2, hidden)

"""Attention and transformer parts that the encoder and the decoder share.

Shape legend: B sequences, L tokens, C channels, h heads, d channels of a head.
"""

from __future__ import annotations

import contextlib
from functools import lru_cache, partial
from typing import Any, Callable, ContextManager, FrozenSet, Optional, Tuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as checkpointing
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

LAYER_NORM_EPS = 1e-5  # the reference's; timm's newer blocks use 1e-6, which shows in the third decimal
_FUSED: Any = getattr(F, 'scaled_dot_product_attention', None)


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


def _keep_products(_: Any, operation: Any, *__: Any, **___: Any) -> Any:
    """Results of matrix products and of attention are kept for the backward; norms, activations and copies are computed again."""
    kept = operation.overloadpacket in _products()
    return checkpointing.CheckpointPolicy.MUST_SAVE if kept else checkpointing.CheckpointPolicy.PREFER_RECOMPUTE


@lru_cache(maxsize=None)
def _products() -> FrozenSet[Any]:
    names = ('mm', 'addmm', 'bmm', 'baddbmm', 'linear', '_scaled_dot_product_flash_attention_for_cpu')
    return frozenset(getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name))


def _without_cast_cache() -> ContextManager[Any]:
    """Autocast as it is on the CPU, but for its cache: recomputation refuses a cast that the forward took from there."""
    if not torch.is_autocast_enabled('cpu'):
        return contextlib.nullcontext()
    return torch.autocast('cpu', torch.get_autocast_dtype('cpu'), cache_enabled=False)


def run_checkpointed(enabled: bool, block: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """``block(x, *args)``, its activations recomputed in the backward if ``enabled`` and a gradient is wanted.

    Otherwise, on a CPU, only what is cheap to compute is recomputed (torch >= 2.4): writing large tensors to fresh memory costs more there.
    """
    if not torch.is_grad_enabled():
        return block(x, *args)
    if enabled and _FUSED is None:  # torch < 2.0 knows the re-entrant kind only in full
        return checkpoint(block, x, *args)
    if enabled:
        return checkpoint(block, x, *args, use_reentrant=False)
    if x.device.type == 'cpu' and hasattr(checkpointing, 'create_selective_checkpoint_contexts'):
        contexts = partial(checkpointing.create_selective_checkpoint_contexts, _keep_products)
        with _without_cast_cache():
            return checkpoint(block, x, *args, use_reentrant=False, context_fn=contexts)
    return block(x, *args)


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
    """Multi-head self-attention over (B, L, C), with a joint projection to query, key and value."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'{dim} channels cannot be split into {num_heads} attention heads')
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, dim // self.num_heads)
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
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block over (B, L, C): attention and MLP, each with a residual (METHOD 2.4)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

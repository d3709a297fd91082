"""Fused attention and recomputation against the plain formula."""

from __future__ import annotations

from functools import partial
from typing import List, Tuple

import pytest
import torch
from torch import Tensor, nn

from geomim.method.attention import (
    LAYER_NORM_EPS,
    Block,
    DropPath,
    SelfAttention,
    attention,
    plain_attention,
    run_checkpointed,
)

from ..helpers import assert_close_with_gradients


def looped_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """(L, d) tensors, one query at a time."""
    rows = []
    for i in range(len(query)):
        scores = torch.stack([query[i] @ key[j] / len(query[i]) ** 0.5 + bias[i, j] for j in range(len(key))])
        weights = scores.exp() / scores.exp().sum()
        rows.append(sum(weights[j] * value[j] for j in range(len(key))))
    return torch.stack(rows)


@pytest.mark.parametrize('bias_shape', [(2, 3, 5, 5), (1, 3, 5, 5), (1, 1, 5, 5)])
def test_attention_and_its_gradients_equal_a_loop(bias_shape: Tuple[int, ...]) -> None:
    tensors = [torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    bias = torch.randn(bias_shape, dtype=torch.float64, requires_grad=True)
    inputs = [*tensors, bias]
    full = bias.expand(2, 3, 5, 5)
    expected = torch.stack(
        [torch.stack([looped_attention(*(t[b, h] for t in tensors), full[b, h]) for h in range(3)]) for b in range(2)]
    )
    for function in (attention, plain_attention):
        assert_close_with_gradients(function(*inputs), expected, inputs)


def test_attention_without_bias_and_with_a_frozen_bias() -> None:
    query, key, value = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    frozen = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    for bias in (None, frozen):
        ours, plain = (function(query, key, value, bias) for function in (attention, plain_attention))
        assert_close_with_gradients(ours, plain, (query, key, value))


def test_attention_with_a_learned_bias_and_frozen_projections() -> None:
    query, key, value = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(1, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    ours, plain = (function(query, key, value, bias) for function in (attention, plain_attention))
    assert_close_with_gradients(ours, plain, [bias])


def block_twin(block: Block, x: Tensor, heads: int) -> Tensor:
    """A pre-norm block with explicit heads, from its parameters alone."""

    def norm(layer: nn.Module, value: Tensor) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    dim = x.shape[-1]
    query, key, value = (norm(block.norm1, x) @ block.attn.qkv.weight.t() + block.attn.qkv.bias).split(dim, dim=-1)
    size = dim // heads
    parts = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(-2, -1) / size**0.5
        parts.append(scores.softmax(-1) @ value[..., part])
    x = x + torch.cat(parts, -1) @ block.attn.proj.weight.t() + block.attn.proj.bias
    hidden = norm(block.norm2, x) @ block.mlp.fc1.weight.t() + block.mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return x + hidden @ block.mlp.fc2.weight.t() + block.mlp.fc2.bias


def test_block_equals_its_formula_with_gradients() -> None:
    block = Block(12, 3).double()
    for value in block.parameters():
        nn.init.normal_(value, std=0.4)
    x = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    assert_close_with_gradients(block(x), block_twin(block, x, 3), [x, *block.parameters()])


def test_layer_norms_use_the_published_epsilon() -> None:
    assert LAYER_NORM_EPS == 1e-5
    norms = [module for module in Block(8, 2).modules() if isinstance(module, nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [1e-5, 1e-5]


def test_channels_that_do_not_split_into_heads_are_refused() -> None:
    with pytest.raises(ValueError, match='10 channels cannot be split into 4'):
        SelfAttention(10, 4)


def test_checkpointing_recomputes_and_gives_equal_gradients() -> None:
    calls = []
    layer = nn.Linear(4, 4)

    def function(x: Tensor, factor: float) -> Tensor:
        calls.append(factor)
        return layer(x).tanh() * factor

    x = torch.randn(3, 4, requires_grad=True)
    plain = torch.autograd.grad(function(x, 2.0).sum(), x)
    assert len(calls) == 1
    run_checkpointed(True, function, x, 2.0).sum().backward()
    assert len(calls) == 3
    torch.testing.assert_close(x.grad, plain[0])
    with torch.no_grad():
        run_checkpointed(True, function, x, 2.0)
    assert len(calls) == 4


@pytest.mark.skipif(
    not hasattr(torch.utils.checkpoint, 'create_selective_checkpoint_contexts'), reason='torch keeps all or nothing'
)
def test_on_a_cpu_cheap_operations_are_computed_again_and_products_are_not() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    block, x = Block(8, 2), torch.randn(2, 5, 8)
    norms, flops, gradients = [], [], []
    block.norm2.register_forward_hook(lambda *args: norms.append(args[-1]))
    for run in (block, partial(run_checkpointed, False, block)):
        block.zero_grad()
        with FlopCounterMode(display=False) as counter:
            run(x).square().sum().backward()
        flops.append(counter.get_total_flops())
        gradients.append([parameter.grad.clone() for parameter in block.parameters()])
    assert len(norms) == 1 + 2, 'the second time in the forward and in the backward'
    assert flops[0] == flops[1] > 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients))


@pytest.mark.skipif(
    not hasattr(torch.nn.functional, 'scaled_dot_product_attention'), reason='bfloat16 on a CPU lacks operations'
)
@pytest.mark.parametrize('recompute', [False, True])
def test_under_autocast_weights_may_be_used_twice(recompute: bool) -> None:
    """As a backbone's are, on the images of two moments."""
    block, past, tokens = Block(8, 2), torch.randn(2, 4, 8), torch.randn(2, 4, 8)

    def gradients(autocast: bool) -> List[Tensor]:
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            maps = [run_checkpointed(recompute, block, x) for x in (past, tokens)]
            loss = (maps[0] + maps[1]).float().square().mean()
        return list(torch.autograd.grad(loss, list(block.parameters())))

    for rough, exact in zip(gradients(True), gradients(False)):
        torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.02 * float(exact.abs().max()))


def test_drop_path_keeps_the_mean_drops_whole_samples_and_rests_in_evaluation() -> None:
    layer, x = DropPath(0.25), torch.ones(4000, 2, 3)
    dropped = layer.train()(x)
    per_sample = dropped.flatten(1)
    assert torch.equal(per_sample, per_sample[:, :1].expand(-1, 6))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 4 / 3]))
    assert abs(float(dropped.mean()) - 1) < 0.06
    assert torch.equal(layer.eval()(x), x)
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f'got {rate}'):
            DropPath(rate)

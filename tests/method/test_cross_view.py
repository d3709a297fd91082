"""Attention along image rows across cameras: a loop twin, the identity at the start, and no order among cameras."""

from __future__ import annotations

from typing import Callable

import pytest
import torch
from torch import Tensor, nn

from geomim.method.attention import Block
from geomim.method.cross_view import CrossViewBlock

Randomise = Callable[[nn.Module], None]
SAMPLES, CAMS, HEIGHT, WIDTH, DIM = 2, 3, 2, 4, 8


@pytest.fixture
def block(randomise_parameters: Randomise) -> CrossViewBlock:
    layer = CrossViewBlock(DIM, 2).double()
    randomise_parameters(layer)
    return layer


def looped(block: CrossViewBlock, tokens: Tensor, cams: int, height: int, width: int) -> Tensor:
    """Collect each row's tokens from all cameras of a sample one by one, and run a plain block over them."""
    plain = Block(tokens.shape[-1], block.attn.num_heads).double()
    plain.load_state_dict(block.state_dict())
    output = torch.empty_like(tokens)
    for sample in range(tokens.shape[0] // cams):
        for row in range(height):
            places = [(sample * cams + n, row * width + col) for n in range(cams) for col in range(width)]
            sequence = torch.stack([tokens[image, place] for image, place in places])
            for (image, place), value in zip(places, plain(sequence[None])[0]):
                output[image, place] = value
    return output


def test_it_equals_a_loop_over_rows(block: CrossViewBlock) -> None:
    tokens = torch.randn(SAMPLES * CAMS, HEIGHT * WIDTH, DIM, dtype=torch.float64)
    with torch.no_grad():
        expected = looped(block, tokens, CAMS, HEIGHT, WIDTH)
        torch.testing.assert_close(block(tokens, CAMS, (HEIGHT, WIDTH)), expected)
    assert not torch.allclose(expected, tokens)


@pytest.mark.parametrize('cams', [1, 5, 6])
def test_a_new_block_is_the_identity(cams: int) -> None:
    block = CrossViewBlock(DIM, 2)
    tokens = torch.randn(2 * cams, HEIGHT * WIDTH, DIM)
    assert torch.equal(block(tokens, cams, (HEIGHT, WIDTH)), tokens)


def test_a_new_block_still_learns() -> None:
    block = CrossViewBlock(DIM, 2)
    tokens = torch.randn(CAMS, HEIGHT * WIDTH, DIM)
    block(tokens, CAMS, (HEIGHT, WIDTH)).square().sum().backward()
    assert float(block.attn.proj.weight.grad.abs().max()) > 0
    assert float(block.mlp.fc2.weight.grad.abs().max()) > 0


def test_permuting_cameras_permutes_the_result(block: CrossViewBlock) -> None:
    tokens = torch.randn(SAMPLES, CAMS, HEIGHT * WIDTH, DIM, dtype=torch.float64)
    order = [2, 0, 1]
    straight = block(tokens.flatten(0, 1), CAMS, (HEIGHT, WIDTH)).view_as(tokens)
    permuted = block(tokens[:, order].flatten(0, 1), CAMS, (HEIGHT, WIDTH)).view_as(tokens)
    torch.testing.assert_close(permuted, straight[:, order])


def test_information_crosses_cameras_but_neither_rows_nor_samples(block: CrossViewBlock) -> None:
    tokens = torch.randn(SAMPLES * CAMS, HEIGHT, WIDTH, DIM, dtype=torch.float64)
    disturbed = tokens.clone()
    disturbed[CAMS + 1, 0, 2, 0] += 1  # sample 1, camera 1, row 0; one channel, for a norm removes a common shift

    def run(x: Tensor) -> Tensor:
        return block(x.flatten(1, 2), CAMS, (HEIGHT, WIDTH)).view_as(x)

    changed = (run(tokens) != run(disturbed)).any(-1).view(SAMPLES, CAMS, HEIGHT, WIDTH)
    assert not bool(changed[0].any())
    assert not bool(changed[1, :, 1].any())
    assert bool(changed[1, :, 0].all())


def test_sizes_that_do_not_fit_are_named(block: CrossViewBlock) -> None:
    tokens = torch.randn(6, 8, DIM, dtype=torch.float64)
    with pytest.raises(ValueError, match='6 images are no multiple of 4 cameras'):
        block(tokens, 4, (2, 4))
    with pytest.raises(ValueError, match='8 tokens do not form 3 x 4'):
        block(tokens, 3, (3, 4))

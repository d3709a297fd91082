"""The starting position embedding: against a plain loop, and what it is for."""

from __future__ import annotations

import math

import pytest
import torch

from geomim import DecoderConfig
from geomim.method.decoder import Decoder
from geomim.method.position_embedding import sine_cosine_embedding


@pytest.mark.parametrize('dim, side', [(16, 7), (64, 5), (10, 3)])
def test_it_equals_a_plain_loop(dim: int, side: int) -> None:
    embedding = sine_cosine_embedding(dim, side)
    quarter = dim // 4
    expected = torch.zeros(1, dim, side, side)
    for row in range(side):
        for column in range(side):
            for number in range(quarter):
                wave = 10000 ** (-number / quarter)
                values = [math.sin(row * wave), math.cos(row * wave), math.sin(column * wave), math.cos(column * wave)]
                for part, value in enumerate(values):
                    expected[0, part * quarter + number, row, column] = value
    torch.testing.assert_close(embedding, expected)


def test_an_untrained_student_tells_its_hidden_positions_apart() -> None:
    decoder = Decoder(DecoderConfig(dim=16, num_heads=2, depth=4, cross_view_after=(2,)))
    masks = torch.stack([torch.ones(2, 3), torch.zeros(2, 3)])
    filled = decoder.fill_in(torch.zeros(2, 4, 6, 16), masks)[0]
    distances = torch.cdist(filled, filled) + 10 * torch.eye(len(filled))
    assert distances.min() > 0.05

"""Resizing of relative position bias tables: what a cubic spline through known positions must do."""

from __future__ import annotations

from typing import List

import pytest
import torch
from torch import Tensor

from geomim.checkpoints.position_bias import resize_position_bias, window_of_table


def positions(old_window: int, new_window: int) -> List[float]:
    """Where METHOD 6 puts the old offsets: a geometric progression from 1 whose sum is the new half width."""
    terms, half = old_window - 1, new_window - 1
    low, high = 1.01, 1.5
    ratio = high
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if sum(ratio**power for power in range(terms)) > half:
            high = ratio
        else:
            low = ratio
    outward = [sum(ratio**power for power in range(count + 1)) for count in range(terms)]
    return [-value for value in reversed(outward)] + [0.0] + outward


def cubic(row: Tensor, col: Tensor) -> Tensor:
    return (0.3 + 0.2 * row - 0.05 * row**2 + 0.01 * row**3) * (1 - 0.1 * col + 0.02 * col**2 - 0.004 * col**3)


@pytest.mark.parametrize('old, new', [(7, 8), (7, 16), (14, 16), (8, 12), (3, 4), (16, 12), (8, 7), (12, 3)])
def test_polynomials_of_third_degree_are_reproduced(old: int, new: int) -> None:
    knots = torch.tensor(positions(old, new), dtype=torch.float64)
    table = cubic(knots[:, None], knots[None]).reshape(-1, 1)
    axis = torch.arange(-(new - 1), new, dtype=torch.float64)
    inside = axis.clamp(float(knots[0]), float(knots[-1]))
    expected = cubic(inside[:, None], inside[None]).reshape(-1, 1)
    torch.testing.assert_close(resize_position_bias(table, new), expected, rtol=1e-6, atol=1e-6)


def test_the_same_window_is_unchanged_and_not_shared() -> None:
    table = torch.randn(169, 3)
    resized = resize_position_bias(table, 7)
    assert torch.equal(resized, table)
    resized.zero_()
    assert float(table.abs().max()) > 0


@pytest.mark.parametrize('new', [8, 5])
def test_symmetries_survive(new: int) -> None:
    table = torch.randn(13, 13, 2, dtype=torch.float64)
    side = 2 * new - 1

    def resize(grid: Tensor) -> Tensor:
        return resize_position_bias(grid.reshape(-1, 2), new).view(side, side, 2)

    torch.testing.assert_close(resize(table.transpose(0, 1)), resize(table).transpose(0, 1))
    torch.testing.assert_close(resize(table.flip(0)), resize(table).flip(0))
    torch.testing.assert_close(resize(table.flip(1)), resize(table).flip(1))


def test_heads_are_resized_on_their_own_and_the_type_is_kept() -> None:
    table = torch.randn(169, 4)
    resized = resize_position_bias(table, 8)
    assert resized.shape == (225, 4)
    assert resized.dtype == torch.float32
    for head in range(4):
        torch.testing.assert_close(resize_position_bias(table[:, head : head + 1], 8)[:, 0], resized[:, head])
    assert resize_position_bias(table.half(), 8).dtype == torch.float16
    assert resize_position_bias(torch.nn.Parameter(table), 8).requires_grad is False


def test_the_centre_keeps_its_value() -> None:
    table = torch.randn(13, 13, dtype=torch.float64)
    for new in (5, 8, 16):
        resized = resize_position_bias(table.reshape(-1, 1), new).view(2 * new - 1, 2 * new - 1)
        torch.testing.assert_close(resized[new - 1, new - 1], table[6, 6])


@pytest.mark.parametrize('window', [1, 2, 7, 16])
def test_window_of_a_table(window: int) -> None:
    assert window_of_table((2 * window - 1) ** 2) == window


@pytest.mark.parametrize('rows', [0, 2, 4, 100, 168, 170])
def test_tables_of_no_window_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=f'got {rows}'):
        window_of_table(rows)


def test_too_few_positions_are_refused() -> None:
    with pytest.raises(ValueError, match='window of 2 tokens has 3 positions an axis; resizing needs at least 4'):
        resize_position_bias(torch.zeros(9, 1), 7)

"""The BEV raster: cell counts, axis orders, and refusals that say what would fit."""

from __future__ import annotations

import math

import pytest

from geomim import BEVGrid
from geomim.method.grid import count_cells


@pytest.mark.parametrize(
    'bound, cells',
    [((-54.0, 54.0, 0.3), 360), ((-51.2, 51.2, 0.8), 128), ((1.0, 60.0, 0.5), 118), ((-10, 10, 20), 1), ((0, 7, 7), 1)],
)
def test_cells_are_counted_through_rounding(bound: tuple, cells: int) -> None:
    assert count_cells(bound) == cells


def test_a_step_that_does_not_divide_gets_a_suggestion_that_does() -> None:
    with pytest.raises(ValueError, match='x_bound') as error:
        count_cells((-10.0, 10.0, 0.3), 'x_bound')
    suggested = float(str(error.value).split(');')[1].split(' m')[0])
    # printed with six digits
    assert abs(20 / suggested - round(20 / suggested)) < 1e-3


@pytest.mark.parametrize(
    'bound',
    [(1.0, 1.0, 0.5), (2.0, 1.0, 0.5), (0.0, 1.0, 0.0), (0.0, 1.0, -1.0), (0.0, math.inf, 1.0), (0.0, math.nan, 1.0)],
)
def test_bounds_without_extent_are_refused(bound: tuple) -> None:
    with pytest.raises(ValueError, match='y_bound needs finite upper > lower and step > 0'):
        count_cells(bound, 'y_bound')


def test_a_bound_needs_three_numbers() -> None:
    with pytest.raises(ValueError, match=r'x_bound must be \(lower, upper, step\)'):
        BEVGrid((0.0, 1.0), (0.0, 1.0, 1.0))  # type: ignore[arg-type]


def test_shape_follows_the_axis_order() -> None:
    grid = BEVGrid((-12.0, 12.0, 1.5), (-9.0, 9.0, 1.5))
    assert (grid.num_x, grid.num_y, grid.num_z) == (16, 12, 1)
    assert grid.shape == (16, 12)
    turned = BEVGrid(grid.x_bound, grid.y_bound, axis_order='yx')
    assert turned.shape == (12, 16)
    assert 'B, C, X, Y' in grid.describe()
    assert '16 x 12' in grid.describe()
    assert 'B, C, Y, X' in turned.describe()
    assert '12 x 16' in turned.describe()


def test_an_unknown_axis_order_is_named() -> None:
    with pytest.raises(ValueError, match="got 'zx'"):
        BEVGrid((0, 1, 1), (0, 1, 1), axis_order='zx')


def test_downsampling_keeps_the_extent() -> None:
    grid = BEVGrid((-54.0, 54.0, 0.3), (-54.0, 54.0, 0.3), axis_order='yx')
    coarse = grid.downsampled(2)
    assert coarse.shape == (180, 180)
    assert coarse.x_bound[:2] == grid.x_bound[:2]
    assert coarse.axis_order == 'yx'
    assert grid.downsampled(1) == grid
    for factor in (0, 7, 16):
        with pytest.raises(ValueError, match=f'cannot be downsampled by {factor}'):
            grid.downsampled(factor)


def test_same_cells_ignores_height_and_order_only() -> None:
    grid = BEVGrid((-54.0, 54.0, 0.6), (-54.0, 54.0, 0.6))
    assert grid.covers_same_cells(BEVGrid((-54.0, 54.0, 0.6), (-54.0, 54.0, 0.6), (-5.0, 3.0, 8.0), 'yx'))
    assert grid.covers_same_cells(BEVGrid((-54.0, 54.0, 0.3), (-54.0, 54.0, 0.3)).downsampled(2))
    assert not grid.covers_same_cells(BEVGrid((-54.0, 54.0, 0.3), (-54.0, 54.0, 0.6)))
    assert not grid.covers_same_cells(BEVGrid((-51.0, 51.0, 0.6), (-54.0, 54.0, 0.6)))

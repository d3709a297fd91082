"""Relative position bias tables for another window size (METHOD 6).

Offsets of the old window are placed in a geometric progression that spans the new one (dense near zero, wide apart at the border), and a
cubic spline through them gives the values at the new integer offsets. The scheme is BEiT's; here with torch alone, in float64.
"""

from __future__ import annotations

from typing import Dict, Mapping, Sequence, Tuple

import torch
from torch import Tensor

from ..method.windows import relative_position_index

_MIN_POSITIONS = 4  # a cubic spline without end conditions needs four points
_RATIO_BOUNDS = (1.01, 1.5)
_RATIO_TOLERANCE = 1e-6


def window_of_table(rows: int) -> int:
    """Window side W of a bias table with (2 W - 1)^2 rows; ``ValueError`` for any other number."""
    side = round(rows**0.5)
    if side * side != rows or side % 2 == 0:
        raise ValueError(f'a relative position bias table has (2 W - 1)^2 rows for a window of W tokens, got {rows}')
    return (side + 1) // 2


def _progression_ratio(terms: int, total: float) -> float:
    """Ratio q with 1 + q + ... + q^(terms - 1) = total, by bisection in the reference's bounds."""
    low, high = _RATIO_BOUNDS
    ratio = high
    while high - low > _RATIO_TOLERANCE:
        ratio = (low + high) / 2
        if (1 - ratio**terms) / (1 - ratio) > total:
            high = ratio
        else:
            low = ratio
    return ratio


def _old_positions(old_side: int, new_side: int) -> Tensor:
    """(old_side,) positions of the old offsets on the axis of the new ones."""
    half = old_side // 2
    ratio = _progression_ratio(half, new_side // 2)
    steps = torch.tensor([ratio**power for power in range(half)], dtype=torch.float64)
    outward = steps.cumsum(0)
    return torch.cat([-outward.flip(0), outward.new_zeros(1), outward])


def _spline_matrix(knots: Tensor, targets: Tensor) -> Tensor:
    """(len(targets), len(knots)) matrix of the cubic not-a-knot interpolating spline; targets beyond the knots take the border value."""
    count = len(knots)
    gaps = knots[1:] - knots[:-1]
    # Unknowns are the second derivatives at the knots: A m = R y.
    system = torch.zeros(count, count, dtype=torch.float64)
    right = torch.zeros(count, count, dtype=torch.float64)
    for row in range(1, count - 1):
        left_gap, right_gap = gaps[row - 1], gaps[row]
        system[row, row - 1 : row + 2] = torch.stack([left_gap / 6, (left_gap + right_gap) / 3, right_gap / 6])
        right[row, row - 1 : row + 2] = torch.stack([1 / left_gap, -1 / left_gap - 1 / right_gap, 1 / right_gap])
    for row, first in (
        (0, 0),
        (count - 1, count - 3),
    ):  # equal third derivative on both sides of the outermost inner knots
        a, b = gaps[first], gaps[first + 1]
        system[row, first : first + 3] = torch.stack([1 / a, -1 / a - 1 / b, 1 / b])
    curvature = torch.linalg.solve(system, right)
    at = targets.clamp(float(knots[0]), float(knots[-1]))
    cell = torch.searchsorted(knots, at, right=True).clamp(1, count - 1) - 1
    gap = gaps[cell]
    near_right = ((at - knots[cell]) / gap)[:, None]
    near_left = 1 - near_right
    identity = torch.eye(count, dtype=torch.float64)
    scale = (gap**2 / 6)[:, None]
    return (
        near_left * identity[cell]
        + near_right * identity[cell + 1]
        + scale * ((near_left**3 - near_left) * curvature[cell] + (near_right**3 - near_right) * curvature[cell + 1])
    )


def resize_position_bias(table: Tensor, window: int) -> Tensor:
    """Bias table ((2 V - 1)^2, heads) of window V -> ((2 W - 1)^2, heads) of ``window`` W.

    Raises:
        ValueError: a table that belongs to no window, or with fewer than 4 positions an axis (window V < 3).
    """
    old_side, new_side = 2 * window_of_table(table.shape[0]) - 1, 2 * window - 1
    if old_side == new_side:
        return table.clone()
    if old_side < _MIN_POSITIONS:
        raise ValueError(
            f'the bias table of a window of {window_of_table(table.shape[0])} tokens has {old_side} positions an axis; resizing needs '
            f'at least {_MIN_POSITIONS} (a window of 3 or more)'
        )
    knots = _old_positions(old_side, new_side)
    half = new_side // 2
    targets = torch.arange(-half, half + 1, dtype=torch.float64)
    matrix = _spline_matrix(knots, targets)
    grid = table.detach().double().cpu().t().reshape(-1, old_side, old_side)
    resized = matrix @ grid @ matrix.t()
    return resized.reshape(-1, new_side**2).t().to(table.dtype).contiguous()


def fit_tables(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Tuple[Dict[str, Tensor], Tuple[str, ...]]:
    """The same weights with bias tables resized to those of ``own`` that have as many heads; and the names of the resized."""
    fitted = dict(state)
    for name, value in state.items():
        table = own.get(name) if name.endswith('relative_position_bias_table') and value.dim() == 2 else None
        if table is not None and value.shape[1] == table.shape[1] and len(value) != len(table):
            fitted[name] = resize_position_bias(value, window_of_table(len(table)))
    return fitted, tuple(sorted(name for name in state if fitted[name] is not state[name]))


def resize_windows(state: Dict[str, Tensor], windows: Sequence[int], prefix: str) -> Tuple[Dict[str, Tensor], int]:
    """The same weights with the bias tables of the Swin under ``prefix`` resized, a window per stage; and how many changed.

    Window indices that the state holds beside its tables follow them.

    Raises:
        ValueError: fewer windows than stages.
    """
    resized, changed = dict(state), 0
    for name, value in state.items():
        if not name.startswith(f'{prefix}stages.') or not name.endswith('relative_position_bias_table'):
            continue
        stage = int(name[len(prefix) :].split('.')[1])
        if stage >= len(windows):
            raise ValueError(f'{len(windows)} windows are given, but {name} belongs to stage {stage}')
        if window_of_table(value.shape[0]) != windows[stage]:
            resized[name] = resize_position_bias(value, windows[stage])
            changed += 1
            index = name.replace('relative_position_bias_table', 'relative_position_index')
            if index in state:
                resized[index] = relative_position_index(windows[stage])
    return resized, changed

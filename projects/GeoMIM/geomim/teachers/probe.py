"""Finding out by experiment which cell of a map a place lights up: no other way tells maps (X, Y) from (Y, X).

Shape legend: B samples, M points, F point features, C channels.
"""

from __future__ import annotations

from typing import Callable, List, Sequence, Tuple

import torch
from torch import Tensor

from ..method.grid import BEVGrid

MapFunction = Callable[[List[Tensor]], Tensor]
_PLACE = (0.8, 0.3)  # of the extent along x and y: far from the diagonals, on which the orders agree
_MARGIN = 0.12


def object_points(x: float, y: float, z: float, num_features: int, size: float = 1.0) -> Tensor:
    """(M, F) points of one object: a regular block of ``size`` metres around (x, y, z); further features are 0.5."""
    steps = torch.linspace(-size / 2, size / 2, 9)
    block = torch.stack(torch.meshgrid(steps, steps, steps, indexing='ij'), dim=-1).view(-1, 3)
    points = torch.full((len(block), num_features), 0.5)
    points[:, :3] = block + torch.tensor([x, y, z])
    return points


def lit_cell(compute: MapFunction, background: Tensor, points: Tensor) -> Tuple[int, int]:
    """(row, column) of the cell that changes most when ``points`` (M, F) join ``background`` (M', F)."""
    without, with_object = compute([background]), compute([torch.cat([background, points])])
    change = (with_object - without).abs().sum(dim=(0, 1))
    peak = int(change.argmax())
    return peak // change.shape[1], peak % change.shape[1]


def measure_grid(compute: MapFunction, point_range: Sequence[float], num_features: int) -> Tuple[BEVGrid, int]:
    """Cells, axis order and channels of the maps that ``compute`` gives, from what two places in its range do to them.

    Args:
        compute: B clouds -> (B, C, rows, columns).
        point_range: (x, y, z lower, x, y, z upper), metres.
        num_features: F.

    Raises:
        ValueError: maps that do not follow the object in either order.
    """
    lower, upper = torch.tensor(point_range[:3]), torch.tensor(point_range[3:])
    extent = upper - lower
    size = float(min(extent[:2].min() / 40, extent[2] / 4))
    centre, place = (lower + extent * torch.tensor(share) for share in ((0.5, 0.5, 0.5), (*_PLACE, 0.5)))
    background, seen_object = (
        object_points(float(x), float(y), float(z), num_features, size) for x, y, z in (centre, place)
    )
    row, column = lit_cell(compute, background, seen_object)
    channels, rows, columns = compute([background]).shape[1:]
    seen = ((row + 0.5) / rows, (column + 0.5) / columns)
    for order, wanted in (('xy', _PLACE), ('yx', _PLACE[::-1])):
        if all(abs(a - b) < _MARGIN for a, b in zip(seen, wanted)):
            num_x, num_y = (rows, columns) if order == 'xy' else (columns, rows)
            counts = torch.tensor([num_x, num_y])
            bounds = torch.stack([lower[:2], upper[:2], extent[:2] / counts], dim=1).tolist()
            return BEVGrid(tuple(bounds[0]), tuple(bounds[1]), axis_order=order), channels
    raise ValueError(
        f"the axis order of the teacher's map cannot be measured: an object at {_PLACE} of the extent along (x, y) "
        f'changed the map of {rows} x {columns} most at {tuple(round(value, 2) for value in seen)} of it; give `grid` '
        'and `channels`'
    )

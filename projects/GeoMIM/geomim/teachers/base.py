"""What every teacher is: a source of BEV targets, without gradient, with a record of where its cells lie (METHOD 3).

Shape legend: B samples, M points, C channels; a map is (B, C, X, Y) or (B, C, Y, X), as its grid's axis order says.
Lengths are metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..method.grid import BEVGrid

GridLike = Union[BEVGrid, Dict[str, Any]]
# for what a compiled step leaves as it is: sparse, of other sizes every time, or with values read by the host (torch >= 2.1)
not_compiled: Callable[[Any], Any] = getattr(getattr(torch, 'compiler', None), 'disable', lambda function: function)
Points = Sequence[Tensor]


@dataclass(frozen=True)
class TeacherRecord:
    """What a teacher's maps are.

    Args:
        tap: where in the detector they come from.
        grid: extent, size and axis order of their cells; its height is not used.
        channels: C.
    """

    tap: str
    grid: BEVGrid
    channels: int

    def describe(self) -> str:
        return f'tap {self.tap!r}: {self.channels} channels on {self.grid.describe()}'

    def check_student(self, grid: BEVGrid, channels: int) -> None:
        """Raise ``ValueError`` unless a student's predictions lie on the teacher's cells.

        Args:
            grid: of the student's predictions, that is after the view transformation's downsampling.
            channels: of the student's predictions.
        """
        own = self.grid
        if own.covers_same_cells(grid) and own.axis_order == grid.axis_order and self.channels == channels:
            return
        bounds = ', '.join(
            f'{name}=({lower:g}, {upper:g}, {step / 2:g})'
            for name, (lower, upper, step) in (('x_bound', own.x_bound), ('y_bound', own.y_bound))
        )
        raise ValueError(
            f'student and teacher do not share a BEV grid. Teacher: {self.describe()}. Student: {channels} channels on '
            f'{grid.describe()}. A student that fits has a view transformation with {bounds} and downsample=2 '
            f'(or steps of {own.x_bound[2]:g} and {own.y_bound[2]:g} m and downsample=1), '
            f'axis_order={own.axis_order!r}, and {self.channels} target channels'
        )


def expected_cell(record: TeacherRecord, x: float, y: float) -> Tuple[int, int]:
    """(row, column) in a teacher's map of a position in the (augmented) LiDAR frame, metres.

    Raises:
        ValueError: a position outside the grid.
    """
    cells = []
    for name, value, (lower, upper, step) in (('x', x, record.grid.x_bound), ('y', y, record.grid.y_bound)):
        if not lower <= value < upper:
            raise ValueError(f"{name} = {value} m is outside the teacher's grid, [{lower:g}, {upper:g}) m")
        cells.append(math.floor((value - lower) / step))
    return (cells[0], cells[1]) if record.grid.axis_order == 'xy' else (cells[1], cells[0])


def as_grid(grid: GridLike) -> BEVGrid:
    """A grid from a config's dict, or as it is."""
    return grid if isinstance(grid, BEVGrid) else BEVGrid(**grid)


class BEVTeacher(nn.Module):
    """What teachers have in common: a record, no gradient, evaluation mode, a checked map, nothing in checkpoints."""

    record: TeacherRecord

    def train(self, mode: bool = True) -> BEVTeacher:
        """Stays in evaluation mode, whatever its parent does."""
        return super().train(False)

    @not_compiled
    @torch.no_grad()
    def forward(self, points: Points) -> Tensor:
        """The target's source.

        Args:
            points: B clouds (M_b, F), metres, augmented LiDAR frame; not changed.

        Returns:
            (B, C, *record.grid.shape), float32, contiguous.

        Raises:
            ValueError: unusable clouds, or a map that does not match the record.
        """
        bev = self.compute(points)
        expected = (len(points), self.record.channels, *self.record.grid.shape)
        if tuple(bev.shape) != expected:
            raise ValueError(
                f'the teacher computed a map of shape {tuple(bev.shape)}, its record promises {expected} '
                f"({self.record.describe()}): correct the teacher's grid or channels, or choose another tap"
            )
        return bev

    def compute(self, points: Points) -> Tensor:
        """B clouds -> a map that :meth:`forward` checks against the record."""
        raise NotImplementedError


def record_for_range(
    tap: str, grid: GridLike, channels: int, point_range: Optional[Sequence[float]] = None
) -> TeacherRecord:
    """The record of a detector whose voxels span ``point_range`` (x, y, z lower, x, y, z upper; metres; None if unknown).

    Raises:
        ValueError: a grid of another extent.
    """
    grid = as_grid(grid)
    if point_range is not None:
        given = (*grid.x_bound[:2], *grid.y_bound[:2])
        actual = (point_range[0], point_range[3], point_range[1], point_range[4])
        if any(abs(a - b) > 1e-3 for a, b in zip(given, actual)):
            raise ValueError(
                f"the teacher's grid spans x [{given[0]:g}, {given[1]:g}], y [{given[2]:g}, {given[3]:g}] m, but "
                f"its detector's voxels span x [{actual[0]:g}, {actual[1]:g}], y [{actual[2]:g}, {actual[3]:g}] "
                'm: they must be the same'
            )
    return TeacherRecord(tap, grid, int(channels))

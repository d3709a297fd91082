"""The bird's-eye-view (BEV) raster that a student and its teacher must share.

Lengths are metres, in the LiDAR frame unless a host says otherwise. A BEV map is (B, C, X, Y) in axis order ``'xy'`` (BEVFusion) or
(B, C, Y, X) in ``'yx'`` (mmdet3d's own encoders). Two maps of different order train without an error and learn a mirror image, therefore
the order is part of the record.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Tuple

AXIS_ORDERS = ('xy', 'yx')
_CELL_TOLERANCE = 1e-4


def count_cells(bound: Tuple[float, float, float], name: str = 'bound') -> int:
    """Number of cells of ``(lower, upper, step)`` in metres; raises ``ValueError`` unless the step divides the range."""
    if len(bound) != 3:
        raise ValueError(f'{name} must be (lower, upper, step) in metres, got {tuple(bound)}')
    lower, upper, step = (float(value) for value in bound)
    if not (step > 0 and upper > lower and math.isfinite(upper - lower)):
        raise ValueError(f'{name} needs finite upper > lower and step > 0, got {(lower, upper, step)}')
    cells = (upper - lower) / step
    if abs(cells - round(cells)) > _CELL_TOLERANCE * max(1.0, cells):
        raise ValueError(
            f'{name} {(lower, upper, step)}: a step of {step} m does not divide the range of {upper - lower} m '
            f'({cells:.4f} cells); {(upper - lower) / round(max(1.0, cells)):.6g} m would'
        )
    return round(cells)


@dataclass(frozen=True)
class BEVGrid:
    """Extent, cell size and axis order of a BEV raster.

    Args:
        x_bound: (lower, upper, step) along x, metres.
        y_bound: (lower, upper, step) along y, metres.
        z_bound: (lower, upper, step) along z, metres; one cell for the lift-splat of the paper.
        axis_order: ``'xy'`` for maps (B, C, X, Y), ``'yx'`` for maps (B, C, Y, X).

    Raises:
        ValueError: a bound whose step does not divide its range, or an unknown axis order.
    """

    x_bound: Tuple[float, float, float]
    y_bound: Tuple[float, float, float]
    z_bound: Tuple[float, float, float] = (-10.0, 10.0, 20.0)
    axis_order: str = 'xy'

    def __post_init__(self) -> None:
        if self.axis_order not in AXIS_ORDERS:
            raise ValueError(f"axis_order must be 'xy' (B, C, X, Y) or 'yx' (B, C, Y, X), got {self.axis_order!r}")
        for name in ('x_bound', 'y_bound', 'z_bound'):
            bound = tuple(float(value) for value in getattr(self, name))
            count_cells(bound, name)  # type: ignore[arg-type]
            object.__setattr__(self, name, bound)

    @property
    def num_x(self) -> int:
        return count_cells(self.x_bound, 'x_bound')

    @property
    def num_y(self) -> int:
        return count_cells(self.y_bound, 'y_bound')

    @property
    def num_z(self) -> int:
        return count_cells(self.z_bound, 'z_bound')

    @property
    def shape(self) -> Tuple[int, int]:
        """Spatial size of a map on this grid, in its own axis order."""
        return (self.num_x, self.num_y) if self.axis_order == 'xy' else (self.num_y, self.num_x)

    def downsampled(self, factor: int) -> BEVGrid:
        """The grid with cells ``factor`` times as long in x and y."""
        if factor < 1 or self.num_x % factor or self.num_y % factor:
            raise ValueError(f'a grid of {self.num_x} x {self.num_y} cells cannot be downsampled by {factor}')
        x_lower, x_upper, x_step = self.x_bound
        y_lower, y_upper, y_step = self.y_bound
        return replace(self, x_bound=(x_lower, x_upper, x_step * factor), y_bound=(y_lower, y_upper, y_step * factor))

    def describe(self) -> str:
        """One line for error messages and logs."""
        x, y = self.x_bound, self.y_bound
        letters = 'B, C, X, Y' if self.axis_order == 'xy' else 'B, C, Y, X'
        return (
            f'x [{x[0]:g}, {x[1]:g}] m in {x[2]:g} m cells, y [{y[0]:g}, {y[1]:g}] m in {y[2]:g} m cells, '
            f'maps ({letters}) of {self.shape[0]} x {self.shape[1]}'
        )

    def covers_same_cells(self, other: BEVGrid) -> bool:
        """Whether x and y extents and cell sizes agree (height and axis order may differ)."""
        pairs = zip(self.x_bound + self.y_bound, other.x_bound + other.y_bound)
        return all(abs(a - b) <= _CELL_TOLERANCE for a, b in pairs)

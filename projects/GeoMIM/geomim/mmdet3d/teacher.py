"""The LiDAR teacher: points in, a BEV map out, and a record of where its cells lie (METHOD 3).

Shape legend: B samples, M points, C channels; a map is (B, C, X, Y) or (B, C, Y, X), as its grid's axis order says.
Lengths are metres.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional, Sequence, Tuple, Union

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..grid import BEVGrid
from .lidar_detector import DetectorSource, TappedDetector
from .teacher_checkpoint import TeacherLoadReport, load_teacher_weights
from .teacher_probe import measure_grid

GridLike = Union[BEVGrid, Dict[str, Any]]
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


@MODELS.register_module()
class LidarTeacher(BEVTeacher):
    """A LiDAR detector of mmdet3d whose features at a named submodule are what a student learns.

    The detector is no child in PyTorch's sense: a parent's ``state_dict``, ``parameters`` and initialisation do not
    see it, strict loading of the parent's checkpoints works without it; yet it moves with its parent between devices.
    It stays float32.

    Args:
        detector: a model's config dict, a config file, or an installed one's name (``'mmdet3d::centerpoint/...py'``).
        tap: the submodule whose output is the map: 'pts_middle_encoder', 'pts_backbone', 'pts_neck', ...
        checkpoint: weights of mmdet3d's CenterPoint or BEVFusion, or of MIT's BEVFusion; None (random) is warned of.
        grid: cells of the map; measured with a few points if None.
        channels: C; measured if None.
        index: which map, if the tap gives several.
        checkpoint_layout: 'auto', 'mmdet3d' or 'mit'.
        seed: of random weights, so that a resumed run meets the same teacher.

    Raises:
        ValueError: a detector, tap, grid or checkpoint that does not exist or does not fit.
    """

    _tapped: TappedDetector

    def __init__(
        self,
        *,
        detector: DetectorSource,
        tap: str,
        checkpoint: Optional[str] = None,
        grid: Optional[GridLike] = None,
        channels: Optional[int] = None,
        index: Optional[int] = None,
        checkpoint_layout: str = 'auto',
        seed: int = 0,
    ) -> None:
        super().__init__()
        # Past nn.Module's own registration: see the docstring.
        object.__setattr__(self, '_tapped', TappedDetector(detector, tap, index, seed))
        self.load_report: Optional[TeacherLoadReport] = None
        if checkpoint is None:
            name = detector if isinstance(detector, str) else type(self.detector).__name__
            print_log(
                f'The LiDAR teacher ({name}) has no checkpoint: its weights are random. That is enough to try the '
                'code, but there is little to learn from it; set `checkpoint` to a trained detector.',
                logger='current',
                level=logging.WARNING,
            )
        else:
            self.load_report = load_teacher_weights(self.detector, checkpoint, checkpoint_layout)
            print_log(self.load_report.describe(), logger='current')
        self.record = self._make_record(tap, grid, channels)
        self.train()

    @property
    def detector(self) -> nn.Module:
        """The detector, cut off behind the tap. Calling it raises: call the teacher."""
        return self._tapped.detector

    def compute(self, points: Points) -> Tensor:
        return self._tapped(points)

    def _make_record(self, tap: str, grid: Optional[GridLike], channels: Optional[int]) -> TeacherRecord:
        point_range = self._tapped.point_range
        if grid is None or channels is None:
            if point_range is None:
                raise ValueError('this detector voxelises by itself, its range is unknown: give `grid` and `channels`')
            measured, measured_channels = measure_grid(self._tapped, point_range, self._tapped.num_features or 4)
            grid = measured if grid is None else grid
            channels = measured_channels if channels is None else channels
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LidarTeacher:
        """Moves the hidden detector along; a change of its precision is not followed."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        self._tapped._apply(keep_precision)
        return super()._apply(fn, recurse)


@MODELS.register_module()
class GivenBEVTeacher(BEVTeacher):
    """A teacher without a network: a BEV map that is given, for tests and for maps that were computed before.

    Args:
        bev: (C, *grid.shape) for every sample, (B, C, *grid.shape), or a function of the clouds that gives either.
        grid: cells of the map.
        channels: C; may be left out for a tensor.

    Raises:
        ValueError: a map without three or four axes; no ``channels`` with a function.
    """

    bev: Optional[Tensor]

    def __init__(
        self, *, bev: Union[Tensor, Callable[[Points], Tensor]], grid: GridLike, channels: Optional[int] = None
    ) -> None:
        super().__init__()
        tensor = bev if isinstance(bev, Tensor) else None
        if tensor is not None and tensor.dim() not in (3, 4):
            raise ValueError(
                f'a given BEV map must be (C, rows, columns) or (B, C, ...), got shape {tuple(tensor.shape)}'
            )
        if tensor is None and channels is None:
            raise ValueError('a BEV map given as a function needs `channels`')
        self.register_buffer('bev', None if tensor is None else tensor.detach().float(), persistent=False)
        self._function = None if tensor is not None else bev
        self.record = TeacherRecord('given', as_grid(grid), int(channels if channels is not None else tensor.shape[-3]))
        self.train()

    def compute(self, points: Points) -> Tensor:
        bev = self.bev if self._function is None else self._function(points)
        if bev.dim() == 3:
            bev = bev[None].expand(len(points), -1, -1, -1)
        return bev.detach().float().clone(memory_format=torch.contiguous_format)

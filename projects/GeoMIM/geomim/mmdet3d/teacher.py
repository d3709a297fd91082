"""The LiDAR teacher: points in, a BEV map out, and a record of where its cells lie (METHOD 3).

Shape legend: B samples, M points, C channels; a map is (B, C, X, Y) or (B, C, Y, X), as its grid's axis order says.
Lengths are metres.
"""

from __future__ import annotations

import logging
from typing import Callable, Optional, Union

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..teacher import BEVTeacher, GridLike, Points, TeacherRecord, as_grid, expected_cell, record_for_range
from .lidar_detector import DetectorSource, TappedDetector
from .teacher_checkpoint import TeacherLoadReport, load_teacher_weights
from .teacher_probe import measure_grid

__all__ = ['BEVTeacher', 'GivenBEVTeacher', 'LidarTeacher', 'TeacherRecord', 'expected_cell']


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
        return record_for_range(tap, grid, channels, point_range)

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

"""The LiDAR teacher: points in, a BEV map out, and a record of where its cells lie (METHOD 3).

Shape legend: B samples, M points, C channels; a map is (B, C, X, Y) or (B, C, Y, X), as its grid's axis order says.
Lengths are metres.
"""

from __future__ import annotations

from typing import Callable, Optional, Union

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor

from ..teachers.base import BEVTeacher, GridLike, Points, TeacherRecord, as_grid, expected_cell
from ..teachers.tapped import TappedTeacher
from .lidar_detector import HostDetector

__all__ = ['BEVTeacher', 'GeoMIMLidarTeacher', 'GivenBEVTeacher', 'LidarTeacher', 'TeacherRecord', 'expected_cell']


@MODELS.register_module(name=['GeoMIMLidarTeacher', 'LidarTeacher'])
class GeoMIMLidarTeacher(TappedTeacher):
    """A LiDAR detector of mmdet3d whose features at a named submodule are what a student learns.

    Arguments are those of :class:`geomim.teachers.tapped.TappedTeacher`; ``detector`` may also be an installed config's name
    (``'mmdet3d::centerpoint/...py'``).
    """

    host = HostDetector

    def log(self, message: str, level: int) -> None:
        print_log(message, logger='current', level=level)


LidarTeacher = GeoMIMLidarTeacher  # its former name


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

"""The LiDAR teacher, built from a fork's own detector (METHOD 3).

Shape legend: B samples, M points, F point features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from mmcv import Config, ConfigDict
from mmdet3d.models.builder import build_model
from torch import Tensor, nn

from ..teachers.tapped import TappedDetector, TappedTeacher
from .host import DETECTORS, run_logger


class ForkDetector(TappedDetector):
    """A detector of mmdet3d before 1.1 up to a tap."""

    def read(self, source: str) -> Mapping[str, Any]:
        if not Path(source).is_file():
            raise ValueError(f'teacher detector {source!r}: no such config file')
        return Config.fromfile(source)

    def build(self, config: Dict[str, Any]) -> nn.Module:
        return build_model(ConfigDict(config))

    @property
    def point_range(self) -> Optional[Tuple[float, ...]]:
        layer = getattr(self.detector, 'pts_voxel_layer', None) or getattr(self.detector, 'voxel_layer', None)
        span = getattr(layer, 'point_cloud_range', None)
        return None if span is None else tuple(float(value) for value in span)

    def run(self, clouds: List[Tensor]) -> None:
        self._check_range(clouds)
        metas: List[Dict[str, Any]] = [{} for _ in clouds]
        if hasattr(self.detector, 'extract_pts_feat'):
            self.detector.extract_pts_feat(clouds, None, metas)
        else:
            self.detector.extract_feat(clouds, metas)

    def _check_range(self, clouds: List[Tensor]) -> None:
        """A cloud without a voxel would drop out of the batch."""
        span = self.point_range
        for sample, cloud in enumerate(clouds if span is not None else []):
            lower, upper = cloud.new_tensor(span[:3]), cloud.new_tensor(span[3:])
            if not bool(((cloud[:, :3] >= lower) & (cloud[:, :3] < upper)).all(dim=1).any()):
                self.refuse_unseen(sample, len(cloud))


@DETECTORS.register_module()
class GeoMIMLidarTeacher(TappedTeacher):
    """A LiDAR detector of the fork whose features at a named submodule are what a student learns.

    Arguments are those of :class:`geomim.teachers.tapped.TappedTeacher`.
    """

    host = ForkDetector

    def log(self, message: str, level: int) -> None:
        run_logger().log(level, message)

"""The LiDAR teacher, built from a fork's own detector (METHOD 3).

Shape legend: B samples, M points, F point features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from mmcv import Config, ConfigDict
from mmdet3d.models.builder import build_model
from torch import Tensor

from ..teachers.base import GridLike
from ..teachers.sparse_kernels import draw_weights
from ..teachers.tapped import TappedDetector, TappedTeacher, model_part, point_features
from .host import DETECTORS, run_logger

DetectorSource = Union[str, Path, Dict[str, Any]]


def detector_config(source: DetectorSource) -> ConfigDict:
    """The model part of a detector's configuration, as a copy: of a model's dict, a dict with ``model``, or a config file.

    Raises:
        ValueError: no such file, or no model in it.
    """
    if not isinstance(source, dict):
        if not Path(source).is_file():
            raise ValueError(f'teacher detector {str(source)!r}: no such config file')
        source = Config.fromfile(str(source))
    return ConfigDict(model_part(source))


class ForkDetector(TappedDetector):
    """A LiDAR detector of mmdet3d before 1.1 from its configuration, up to a tap.

    Args:
        source: see :func:`detector_config`.
        tap: name of the submodule whose output is wanted.
        index: which map, if that output is a sequence of several.
        seed: of the weights until a checkpoint replaces them; the global random state is left alone.

    Raises:
        ValueError: no such detector or tap; a detector that is none of mmdet3d's point cloud detectors.
    """

    def __init__(self, source: DetectorSource, tap: str, index: Optional[int] = None, seed: int = 0) -> None:
        config = detector_config(source)
        features = point_features(config)  # before the build, which may take entries out
        with torch.random.fork_rng(devices=[]):
            detector = build_model(config)
        draw_weights(detector, seed)
        super().__init__(detector, tap, index, features)

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

    Args:
        detector: a model's config dict or a config file of the fork.
        tap: the submodule whose output is the map: 'pts_middle_encoder', 'pts_backbone', 'pts_backbone.blocks.0', ...
        grid: cells of the map, entries of :class:`geomim.method.grid.BEVGrid`; measured with a few points if None.
        channels: C; measured if None.
        checkpoint: weights of mmdet3d's CenterPoint or BEVFusion, or of MIT's BEVFusion; None (random) is warned of.
        checkpoint_layout: 'auto', 'mmdet3d' or 'mit'.
        index: which map, if the tap gives several.
        seed: of random weights, so that a resumed run meets the same teacher.

    Raises:
        ValueError: a detector, tap, grid or checkpoint that does not exist or does not fit.
    """

    def __init__(
        self,
        detector: DetectorSource,
        tap: str,
        grid: Optional[GridLike] = None,
        channels: Optional[int] = None,
        checkpoint: Optional[str] = None,
        checkpoint_layout: str = 'auto',
        index: Optional[int] = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            ForkDetector(detector, tap, index, seed),
            checkpoint=checkpoint,
            checkpoint_layout=checkpoint_layout,
            grid=grid,
            channels=channels,
            log=_log,
        )


def _log(message: str, level: int) -> None:
    run_logger().log(level, message)

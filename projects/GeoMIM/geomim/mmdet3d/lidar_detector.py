"""A LiDAR detector of mmdet3d, cut off behind one of its submodules.

Shape legend: B samples, M points, F point features, C channels.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import mmdet3d.models  # noqa: F401  (fills the registry)
import torch
from mmdet3d.models.middle_encoders import SparseEncoder
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from torch import Tensor

from ..teachers.sparse_kernels import draw_weights
from ..teachers.tapped import TappedDetector, model_part, point_features
from .sparse import share_indices

DetectorSource = Union[str, Path, Dict[str, Any]]


def detector_config(source: DetectorSource) -> ConfigDict:
    """The model part of a detector's configuration, as a copy.

    Args:
        source: a model's dict, a dict with a ``model`` entry, a config file, or an installed one's ``mmdet3d::`` name.

    Raises:
        ValueError: a file or name that does not exist, or no model in it.
    """
    if isinstance(source, dict):
        config = source
    elif '::' in str(source):
        try:
            config = get_config(str(source))
        except (OSError, ValueError, ImportError, AssertionError) as error:
            raise ValueError(f'teacher detector {source!r}: no such config is installed ({error})') from error
    else:
        if not Path(source).is_file():
            raise ValueError(
                f'teacher detector {str(source)!r}: no such config file (nor a name of the form mmdet3d::...)'
            )
        config = Config.fromfile(str(source))
    return ConfigDict(model_part(config))


class HostDetector(TappedDetector):
    """A detector of mmdet3d 1.x from its configuration, up to a tap.

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
        with torch.random.fork_rng(devices=[]):
            # The scope makes the parts be found whatever host's runner is at work.
            detector = MODELS.build(ConfigDict(config, _scope_='mmdet3d'))
        draw_weights(detector, seed)
        super().__init__(detector, tap, index, point_features(config))
        for encoder in detector.modules():
            if isinstance(encoder, SparseEncoder):
                share_indices(encoder)
        self._wants_metas = len(inspect.signature(detector.extract_feat).parameters) > 1

    @property
    def point_range(self) -> Optional[Tuple[float, ...]]:
        layer = getattr(self.detector.data_preprocessor, 'voxel_layer', None)
        return None if layer is None else tuple(float(value) for value in layer.point_cloud_range)

    def run(self, clouds: List[Tensor]) -> None:
        samples = [Det3DDataSample() for _ in clouds]
        inputs: Dict[str, Any] = {'points': clouds}
        if getattr(self.detector.data_preprocessor, 'voxel', False):
            inputs['voxels'] = self._voxelize(clouds, samples)
        if self._wants_metas:
            self.detector.extract_feat(inputs, [sample.metainfo for sample in samples])
        else:
            self.detector.extract_feat(inputs)

    def _voxelize(self, clouds: List[Tensor], samples: List[Det3DDataSample]) -> Dict[str, Tensor]:
        """Voxels by the detector's preprocessor, sample by sample: one without any would drop out of the batch."""
        collected: List[Dict[str, Tensor]] = []
        for index, (cloud, sample) in enumerate(zip(clouds, samples)):
            voxels = self.detector.data_preprocessor.voxelize([cloud], [sample])
            if voxels['coors'].shape[0] == 0:
                self.refuse_unseen(index, cloud.shape[0])
            voxels['coors'][:, 0] = index
            collected.append(voxels)
        return {key: torch.cat([voxels[key] for voxels in collected]) for key in collected[0]}

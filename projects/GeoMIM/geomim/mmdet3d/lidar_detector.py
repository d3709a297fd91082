"""A LiDAR detector of mmdet3d, cut off behind one of its submodules.

Shape legend: B samples, M points, F point features, C channels.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import mmdet3d.models  # noqa: F401  (fills the registry)
import torch
from mmdet3d.models.middle_encoders import SparseEncoder
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from torch import Tensor, nn

from ..teachers.tapped import TappedDetector
from .sparse import share_indices


class HostDetector(TappedDetector):
    """A detector of mmdet3d 1.x up to a tap; a source may also be an installed config's name (``'mmdet3d::centerpoint/...py'``)."""

    def read(self, source: str) -> Mapping[str, Any]:
        if '::' in source:
            try:
                return get_config(source)
            except (OSError, ValueError, ImportError, AssertionError) as error:
                raise ValueError(f'teacher detector {source!r}: no such config is installed ({error})') from error
        if not Path(source).is_file():
            raise ValueError(f'teacher detector {source!r}: no such config file (nor a name of the form mmdet3d::...)')
        return Config.fromfile(source)

    def build(self, config: Dict[str, Any]) -> nn.Module:
        # The scope makes the parts be found whatever host's runner is at work.
        detector = MODELS.build(ConfigDict(config, _scope_='mmdet3d'))
        for encoder in detector.modules():
            if isinstance(encoder, SparseEncoder):
                share_indices(encoder)
        return detector

    @property
    def point_range(self) -> Optional[Tuple[float, ...]]:
        layer = getattr(self.detector.data_preprocessor, 'voxel_layer', None)
        return None if layer is None else tuple(float(value) for value in layer.point_cloud_range)

    def run(self, clouds: List[Tensor]) -> None:
        samples = [Det3DDataSample() for _ in clouds]
        inputs: Dict[str, Any] = {'points': clouds}
        if getattr(self.detector.data_preprocessor, 'voxel', False):
            inputs['voxels'] = self._voxelize(clouds, samples)
        if len(inspect.signature(self.detector.extract_feat).parameters) > 1:  # it wants meta information, too
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

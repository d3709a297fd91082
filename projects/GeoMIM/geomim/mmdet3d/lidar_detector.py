"""A LiDAR detector of mmdet3d, cut off behind one of its submodules.

Shape legend: B samples, M points, F point features, C channels.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Sequence, Tuple, Union

import mmdet3d.models  # noqa: F401  (fills the registry)
import torch
from mmdet3d.models.detectors import MVXTwoStageDetector
from mmdet3d.models.middle_encoders import SparseEncoder
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from torch import Tensor, nn

from .sparse import draw_weights, share_indices, single_threaded, sparse_convolutions

DetectorSource = Union[str, Path, Dict[str, Any]]
# The parts of mmdet3d's LiDAR detectors in the order in which points pass them
LIDAR_PATHS: Tuple[Tuple[str, ...], ...] = (
    ('pts_voxel_encoder', 'pts_middle_encoder', 'pts_backbone', 'pts_neck'),
    ('voxel_encoder', 'middle_encoder', 'backbone', 'neck'),
)
BEHIND_EVERY_TAP = (
    'pts_bbox_head', 'bbox_head', 'rpn_head', 'roi_head',
    'img_backbone', 'img_neck', 'img_rpn_head', 'img_roi_head', 'view_transform', 'fusion_layer',
)  # fmt: skip


class _TapReached(Exception):
    """Carries a tap's output out of the detector, so that nothing behind the tap is computed."""

    def __init__(self, output: Any) -> None:
        super().__init__('tap reached')
        self.output = output


def _leave_with_output(module: nn.Module, args: Tuple[Any, ...], output: Any) -> NoReturn:
    raise _TapReached(output)


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
    model = config.get('model', config)
    if not isinstance(model, dict) or 'type' not in model:
        raise ValueError(
            f'teacher detector: a model config with a `type` is needed, got the keys {sorted(config.keys())}'
        )
    return ConfigDict(copy.deepcopy(dict(model)))


def find_tap(detector: nn.Module, name: str) -> nn.Module:
    """The submodule called ``name``; raises ``ValueError`` that lists the names there are."""
    modules = dict(detector.named_modules())
    if name in modules and name:
        return modules[name]
    parts = [part for part, _ in detector.named_children() if part != 'data_preprocessor']
    close = [candidate for candidate in difflib.get_close_matches(name, modules, n=5) if candidate not in parts]
    hint = f'; close to it: {", ".join(close)}' if close else ''
    raise ValueError(
        f'teacher tap {name!r} is no submodule of {type(detector).__name__}, whose parts are {", ".join(parts)} (and '
        f'their own submodules, by dotted name){hint}'
    )


def cut_behind(detector: nn.Module, tap: str) -> None:
    """Replace the parts that come after ``tap`` with empty ones: they are neither computed nor need weights."""
    root = tap.split('.', 1)[0]
    path = next((path for path in LIDAR_PATHS if root in path), ())
    later = path[path.index(root) + 1 :] if path else ()
    for name in (*later, *BEHIND_EVERY_TAP):
        if name != root and isinstance(getattr(detector, name, None), nn.Module):
            setattr(detector, name, nn.Identity())
    if isinstance(detector, MVXTwoStageDetector) and not detector.with_pts_bbox:
        detector.pts_bbox_head = nn.Identity()  # without a head this class computes no LiDAR features


class TappedDetector(nn.Module):
    """Points in, the output of one submodule out.

    Args:
        source: see :func:`detector_config`.
        tap: name of the submodule whose output is wanted.
        index: which map, if that output is a sequence of several.
        seed: of the weights until a checkpoint replaces them; the global random state is left alone.

    Raises:
        ValueError: no such detector or tap; a detector that is none of mmdet3d's point cloud detectors.
    """

    def __init__(self, source: DetectorSource, tap: str, index: Optional[int] = None, seed: int = 0) -> None:
        super().__init__()
        config = detector_config(source)
        self.tap, self.index = tap, index
        with torch.random.fork_rng(devices=[]):
            # The scope makes the parts be found whatever host's runner is at work.
            self.detector = MODELS.build(ConfigDict(config, _scope_='mmdet3d'))
        draw_weights(self.detector, seed)
        module = find_tap(self.detector, tap)
        if not hasattr(self.detector, 'extract_feat'):
            raise ValueError(
                f'{type(self.detector).__name__} has no extract_feat: the teacher needs a detector of mmdet3d'
            )
        cut_behind(self.detector, tap)
        for encoder in self.detector.modules():
            if isinstance(encoder, SparseEncoder):
                share_indices(encoder)
        module.register_forward_hook(_leave_with_output)
        self.num_features = _point_features(config)
        self.has_sparse_convolutions = bool(sparse_convolutions(self.detector))
        self._wants_metas = len(inspect.signature(self.detector.extract_feat).parameters) > 1
        self.requires_grad_(False)
        self.eval()

    @property
    def point_range(self) -> Optional[Tuple[float, ...]]:
        """(x, y, z lower, x, y, z upper) of the voxel grid, metres; None for a detector that voxelises by itself."""
        layer = getattr(self.detector.data_preprocessor, 'voxel_layer', None)
        return None if layer is None else tuple(float(value) for value in layer.point_cloud_range)

    @torch.no_grad()
    def forward(self, points: Sequence[Tensor]) -> Tensor:
        """B clouds (M_b, >= F) -> the tap's map (B, C, ...), float32 whatever autocast says.

        Raises:
            ValueError: clouds that :meth:`check_points` refuses, or a tap that gives no map.
        """
        self.check_points(points)
        device = points[0].device
        racing = device.type == 'cpu' and self.has_sparse_convolutions
        with torch.autocast(device.type, enabled=False), single_threaded(racing):
            clouds = [cloud[:, : self.num_features].float().contiguous() for cloud in points]
            try:
                self._run(clouds)
            except _TapReached as reached:
                return self._select(reached.output)
        raise ValueError(f'teacher tap {self.tap!r} was not reached by the points in {type(self.detector).__name__}')

    def check_points(self, points: Sequence[Tensor]) -> None:
        """Raise ``ValueError`` for an empty batch or cloud, or too few features; looks at shapes only."""
        if len(points) == 0:
            raise ValueError('LiDAR teacher: no point clouds; at least one sample is needed')
        wanted = self.num_features or 3
        for sample, cloud in enumerate(points):
            if cloud.dim() != 2 or cloud.shape[1] < wanted:
                raise ValueError(
                    f'LiDAR teacher, sample {sample}: points must be (M, >= {wanted}) as the detector was built for, '
                    f'got shape {tuple(cloud.shape)}'
                )
            if cloud.shape[0] == 0:
                raise ValueError(f'LiDAR teacher, sample {sample}: the point cloud is empty')

    def _run(self, clouds: List[Tensor]) -> None:
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
                raise ValueError(
                    f'LiDAR teacher, sample {index}: none of its {cloud.shape[0]} points lies in the range '
                    f'{self.point_range} m (x, y, z lower, then upper)'
                )
            voxels['coors'][:, 0] = index
            collected.append(voxels)
        return {key: torch.cat([voxels[key] for voxels in collected]) for key in collected[0]}

    def _select(self, output: Any) -> Tensor:
        if isinstance(output, (list, tuple)):
            count = len(output)
            if self.index is None and count > 1:
                shapes = [tuple(item.shape) for item in output if isinstance(item, Tensor)]
                raise ValueError(f'teacher tap {self.tap!r} gives {count} maps {shapes}: choose one with `index`')
            index = self.index or 0
            if not -count <= index < count:
                raise ValueError(f'teacher tap {self.tap!r} gives {count} maps; there is none with index {index}')
            output = output[index]
        elif self.index is not None:
            raise ValueError(f'teacher tap {self.tap!r} gives a single output; leave out index={self.index}')
        if not isinstance(output, Tensor):
            raise ValueError(f'teacher tap {self.tap!r} gives a {type(output).__name__}; a dense BEV map is needed')
        return output.float().contiguous()


def _point_features(config: ConfigDict) -> Optional[int]:
    """F that the voxel encoder was configured for; None if it does not say."""
    encoder = config.get('pts_voxel_encoder') or config.get('voxel_encoder') or {}
    value = encoder.get('num_features', encoder.get('in_channels'))
    return None if value is None else int(value)

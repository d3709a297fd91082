"""The LiDAR teacher, built from a fork's own detector (METHOD 3).

Shape legend: B samples, M points, F point features, C channels.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Callable, Dict, List, NoReturn, Optional, Sequence, Tuple, Union

import torch
from mmcv import Config, ConfigDict
from mmdet3d.models.builder import build_model
from torch import Tensor, nn

from ..checkpoint_io import read_checkpoint, some, tensors_of
from ..grid import BEVGrid
from ..teacher import BEVTeacher, GridLike, Points, as_grid, record_for_range
from .host import DETECTORS, run_logger

_PARTS = (
    ('pts_voxel_encoder', 'pts_middle_encoder', 'pts_backbone', 'pts_neck'),
    ('voxel_encoder', 'middle_encoder', 'backbone', 'neck'),
)


class _TapReached(Exception):
    """Carries a tap's output out of the detector, so that nothing behind it is computed."""

    def __init__(self, output: Any) -> None:
        super().__init__('tap reached')
        self.output = output


def _leave(module: nn.Module, args: Tuple[Any, ...], output: Any) -> NoReturn:
    raise _TapReached(output)


def detector_config(source: Union[str, Dict[str, Any]]) -> ConfigDict:
    """The model part of a detector's configuration: a model's dict, a dict with ``model``, or a config file.

    Raises:
        ValueError: no such file, or no model in it.
    """
    if not isinstance(source, dict):
        if not Path(source).is_file():
            raise ValueError(f'teacher detector {str(source)!r}: no such config file')
        source = Config.fromfile(str(source))
    model = source.get('model', source)
    if 'type' not in model:
        raise ValueError(f'teacher detector: a model config with a `type` is needed, got the keys {sorted(source)}')
    return ConfigDict(copy.deepcopy(dict(model)))


@DETECTORS.register_module()
class GeoMIMLidarTeacher(BEVTeacher):
    """A LiDAR detector whose features at a named submodule are what a student learns.

    The detector is no child in PyTorch's sense: its weights are in no checkpoint of the student and in no optimizer; it moves
    with its parent between devices and stays float32.

    Args:
        detector: a model's config dict or a config file of the fork.
        tap: the submodule whose output is the map: 'pts_middle_encoder', 'pts_backbone', 'pts_backbone.blocks.0', ...
        grid: cells of the map, entries of :class:`geomim.grid.BEVGrid`; mmdet3d's own encoders give ``axis_order='yx'``.
        channels: C.
        checkpoint: its weights; None (random ones) is warned of.
        index: which map, if the tap gives several.
        seed: of random weights, so that a resumed run meets the same teacher.

    Raises:
        ValueError: a detector, tap, grid or checkpoint that does not exist or does not fit.
    """

    def __init__(
        self,
        detector: Union[str, Dict[str, Any]],
        tap: str,
        grid: GridLike,
        channels: int,
        checkpoint: Optional[str] = None,
        index: Optional[int] = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        config = detector_config(detector)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = build_model(config)
            built.init_weights()
        modules = dict(built.named_modules())
        if tap not in modules or not tap:
            parts = ', '.join(name for name, _ in built.named_children())
            raise ValueError(f'teacher tap {tap!r} is no submodule of {type(built).__name__}, whose parts are {parts}')
        modules[tap].register_forward_hook(_leave)
        built.requires_grad_(False)
        built.eval()
        object.__setattr__(self, 'detector', built)  # past nn.Module's registration: see the docstring
        self.index = index
        self.num_features = _point_features(config)
        self._load(tap, checkpoint)
        self.record = record_for_range(tap, as_grid(_plain(grid)), channels, self.point_range)
        self.train()

    @property
    def point_range(self) -> Optional[Tuple[float, ...]]:
        """(x, y, z lower, x, y, z upper) of the voxel grid, metres; None for a detector that has none."""
        layer = getattr(self.detector, 'pts_voxel_layer', None) or getattr(self.detector, 'voxel_layer', None)
        span = getattr(layer, 'point_cloud_range', None)
        return None if span is None else tuple(float(value) for value in span)

    def compute(self, points: Points) -> Tensor:
        self._check_points(points)
        clouds = [cloud[:, : self.num_features].float().contiguous() for cloud in points]
        with torch.cuda.amp.autocast(enabled=False):
            try:
                self._run(clouds)
            except _TapReached as reached:
                return self._select(reached.output)
        raise ValueError(f'teacher tap {self.record.tap!r} was not reached in {type(self.detector).__name__}')

    def _run(self, clouds: List[Tensor]) -> None:
        metas: List[Dict[str, Any]] = [{} for _ in clouds]
        if hasattr(self.detector, 'extract_pts_feat'):
            self.detector.extract_pts_feat(clouds, None, metas)
        else:
            self.detector.extract_feat(clouds, metas)

    def _check_points(self, points: Points) -> None:
        if len(points) == 0:
            raise ValueError('LiDAR teacher: no point clouds; at least one sample is needed')
        wanted, span = self.num_features or 3, self.point_range
        for sample, cloud in enumerate(points):
            where = f'LiDAR teacher, sample {sample}:'
            if cloud.dim() != 2 or cloud.shape[1] < wanted:
                raise ValueError(
                    f'{where} points must be (M, >= {wanted}) as the detector was built for, got shape {tuple(cloud.shape)}'
                )
            if cloud.shape[0] == 0:
                raise ValueError(f'{where} the point cloud is empty')
            if span is not None and cloud.device.type == 'cpu':
                lower, upper = cloud.new_tensor(span[:3]), cloud.new_tensor(span[3:])
                if not bool(((cloud[:, :3] >= lower) & (cloud[:, :3] < upper)).all(dim=1).any()):
                    raise ValueError(f'{where} none of its {len(cloud)} points lies in the range {span} m')

    def _select(self, output: Any) -> Tensor:
        if isinstance(output, (list, tuple)):
            if self.index is None and len(output) > 1:
                shapes = [tuple(item.shape) for item in output]
                raise ValueError(
                    f'teacher tap {self.record.tap!r} gives {len(output)} maps {shapes}: choose one with `index`'
                )
            output = output[self.index or 0]
        if not isinstance(output, Tensor) or output.dim() != 4:
            raise ValueError(f'teacher tap {self.record.tap!r} gives no dense BEV map (B, C, rows, columns)')
        return output.float().contiguous()

    def _load(self, tap: str, checkpoint: Optional[str]) -> None:
        if checkpoint is None:
            run_logger().warning(
                'The LiDAR teacher has no checkpoint: its weights are random. That is enough to try the code, but there is '
                'little to learn from it; set `checkpoint` to a trained detector.'
            )
            return
        given = tensors_of(read_checkpoint(checkpoint), str(checkpoint))
        own = self.detector.state_dict()
        needed = [name for name in own if _is_before(name, tap)]
        absent = tuple(name for name in needed if name not in given and not name.endswith('num_batches_tracked'))
        if absent:
            raise ValueError(
                f'{checkpoint}: {len(absent)} weights of the teacher up to {tap} are not in it: {some(absent)}'
            )
        other = tuple(name for name in needed if name in given and given[name].shape != own[name].shape)
        if other:
            raise ValueError(f'{checkpoint}: {len(other)} weights of the teacher have other shapes: {some(other)}')
        self.detector.load_state_dict({name: given[name] for name in needed if name in given}, strict=False)
        run_logger().info(
            f'LiDAR teacher from {checkpoint}: {len(needed)} tensors taken, {len(given) - len(needed)} ignored'
        )

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> GeoMIMLidarTeacher:
        """Moves the hidden detector along; a change of its precision is not followed."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        self.detector._apply(keep_precision)
        return super()._apply(fn)


def _is_before(name: str, tap: str) -> bool:
    """Whether a weight lies in the tap's part of the detector or in one before it."""
    root, part = tap.split('.', 1)[0], name.split('.', 1)[0]
    for path in _PARTS:
        if root in path:
            return part in path[: path.index(root) + 1]
    return True


def _plain(grid: GridLike) -> GridLike:
    return grid if isinstance(grid, BEVGrid) else {name: _tuple(value) for name, value in grid.items()}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _point_features(config: ConfigDict) -> Optional[int]:
    encoder = config.get('pts_voxel_encoder') or config.get('voxel_encoder') or {}
    value = encoder.get('num_features', encoder.get('in_channels'))
    return None if value is None else int(value)

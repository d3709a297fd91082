"""A LiDAR detector cut off behind one of its submodules, and the teacher that it makes (METHOD 3); a host's adapter runs the detector.

Shape legend: B samples, M points, F point features, C channels.
"""

from __future__ import annotations

import copy
import difflib
import logging
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Sequence, Tuple, Type, Union

import torch
from torch import Tensor, nn

from ..checkpoints.files import LoadReport
from .base import BEVTeacher, GridLike, Points, TeacherRecord, record_for_range
from .probe import measure_grid
from .sparse_kernels import draw_weights, single_threaded, sparse_convolutions
from .weights import load_teacher_weights

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
    path: Tuple[str, ...] = next((path for path in LIDAR_PATHS if root in path), ())
    later = path[path.index(root) + 1 :] if path else ()
    for name in (*later, *BEHIND_EVERY_TAP):
        if name != root and isinstance(getattr(detector, name, None), nn.Module):
            setattr(detector, name, nn.Identity())
    if not getattr(detector, 'with_pts_bbox', True):
        detector.pts_bbox_head = nn.Identity()  # without a head these classes compute no LiDAR features


def model_part(config: Mapping[str, Any]) -> Dict[str, Any]:
    """A copy of the model in a detector's configuration, which may be a model's dict or have one as its ``model``.

    Raises:
        ValueError: no model in it.
    """
    model = config.get('model', config)
    if not isinstance(model, dict) or 'type' not in model:
        raise ValueError(
            f'teacher detector: a model config with a `type` is needed, got the keys {sorted(config.keys())}'
        )
    return copy.deepcopy(dict(model))


def point_features(config: Mapping[str, Any]) -> Optional[int]:
    """F that the voxel encoder of a detector's configuration is for; None if it does not say."""
    encoder = config.get('pts_voxel_encoder') or config.get('voxel_encoder') or {}
    value = encoder.get('num_features', encoder.get('in_channels'))
    return None if value is None else int(value)


class TappedDetector(nn.Module):
    """Points in, the output of one submodule out; a subclass says how its host reads, builds and runs detectors.

    Args:
        source: a LiDAR detector of mmdet3d: a model's dict, a dict with ``model``, or a config file; built, frozen, and cut
            off behind the tap.
        tap: name of the submodule whose output is wanted.
        index: which map, if that output is a sequence of several.
        seed: of the weights until a checkpoint replaces them; the global random state is left alone.

    Raises:
        ValueError: no such detector or tap; a detector without ``extract_feat``.
    """

    def __init__(self, source: DetectorSource, tap: str, index: Optional[int] = None, seed: int = 0) -> None:
        super().__init__()
        config = model_part(source if isinstance(source, dict) else self.read(str(source)))
        self.num_features = point_features(config)  # before the build, which may take entries out
        with torch.random.fork_rng(devices=[]):
            detector = self.build(config)
        draw_weights(detector, seed)
        self.detector, self.tap, self.index = detector, tap, index
        module = find_tap(detector, tap)
        if not hasattr(detector, 'extract_feat'):
            raise ValueError(f'{type(detector).__name__} has no extract_feat: the teacher needs a detector of mmdet3d')
        cut_behind(detector, tap)
        module.register_forward_hook(_leave_with_output)
        self.has_sparse_convolutions = bool(sparse_convolutions(detector))
        self.requires_grad_(False)
        self.eval()

    def read(self, source: str) -> Mapping[str, Any]:
        """The configuration in a file, or under a name that the host knows."""
        raise NotImplementedError

    def build(self, config: Dict[str, Any]) -> nn.Module:
        """The detector of a model's configuration."""
        raise NotImplementedError

    @property
    def point_range(self) -> Optional[Tuple[float, ...]]:
        """(x, y, z lower, x, y, z upper) of the voxel grid, metres; None for a detector that has none."""
        raise NotImplementedError

    def run(self, clouds: List[Tensor]) -> None:
        """Let the detector extract the features of B clouds (M_b, F)."""
        raise NotImplementedError

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
                self.run(clouds)
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

    def refuse_unseen(self, sample: int, count: int) -> NoReturn:
        """Raise ``ValueError`` for a cloud of ``count`` points of which none became a voxel."""
        raise ValueError(
            f'LiDAR teacher, sample {sample}: none of its {count} points lies in the range {self.point_range} m '
            '(x, y, z lower, then upper)'
        )

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


class TappedTeacher(BEVTeacher):
    """A teacher that is the front part of a LiDAR detector.

    The detector is no child in PyTorch's sense: a parent's ``state_dict``, ``parameters`` and initialisation do not
    see it, strict loading of the parent's checkpoints works without it; yet it moves with its parent between devices.
    It stays float32.

    Args:
        detector: see :class:`TappedDetector`.
        tap: the submodule whose output is the map: 'pts_middle_encoder', 'pts_backbone', 'pts_backbone.blocks.0', ...
        grid: cells of the map, entries of :class:`geomim.method.grid.BEVGrid`; measured with a few points if None.
        channels: C; measured if None.
        checkpoint: weights of mmdet3d's CenterPoint or BEVFusion, or of MIT's BEVFusion; None (random) is warned of.
        checkpoint_layout: 'auto', 'mmdet3d' or 'mit'.
        index: which map, if the tap gives several.
        seed: of random weights, so that a resumed run meets the same teacher.

    Raises:
        ValueError: a detector, tap or checkpoint that does not exist or does not fit, a grid that is not the detector's or
            cannot be measured.
    """

    host: Type[TappedDetector]
    _tapped: TappedDetector

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
        super().__init__()
        tapped = self.host(detector, tap, index, seed)
        # Past nn.Module's own registration: see the docstring.
        object.__setattr__(self, '_tapped', tapped)
        self.load_report: Optional[LoadReport] = None
        if checkpoint is None:
            self.log(
                f'The LiDAR teacher ({type(self.detector).__name__}) has no checkpoint: its weights are random. That is '
                'enough to try the code, but there is little to learn from it; set `checkpoint` to a trained detector.',
                logging.WARNING,
            )
        else:
            self.load_report = load_teacher_weights(self.detector, checkpoint, checkpoint_layout)
            self.log(f'LiDAR teacher from {self.load_report.describe()}', logging.INFO)
        self.record = _record(tapped, grid, channels)
        self.train()

    def log(self, message: str, level: int) -> None:
        """Where the host logs; the level is one of ``logging``."""
        raise NotImplementedError

    @property
    def detector(self) -> nn.Module:
        """The detector, cut off behind the tap. Calling it raises: call the teacher."""
        return self._tapped.detector

    def compute(self, points: Points) -> Tensor:
        return self._tapped(points)

    def _apply(self, fn: Callable[[Tensor], Tensor], *rest: Any) -> TappedTeacher:
        """Moves the hidden detector along; a change of its precision is not followed."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        self._tapped._apply(keep_precision)
        return super()._apply(fn, *rest)


def _record(tapped: TappedDetector, grid: Optional[GridLike], channels: Optional[int]) -> TeacherRecord:
    point_range = tapped.point_range
    if grid is None or channels is None:
        if point_range is None:
            raise ValueError('this detector voxelises by itself, its range is unknown: give `grid` and `channels`')
        measured, measured_channels = measure_grid(tapped, point_range, tapped.num_features or 4)
        grid = measured if grid is None else grid
        channels = measured_channels if channels is None else channels
    return record_for_range(tapped.tap, grid, channels, point_range)

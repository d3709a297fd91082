"""Weights of LiDAR detectors for a teacher: renaming tables as data, a precise account, no code from a file.

Roles are the parts of a LiDAR detector in the order in which points pass them; a detector's own names carry the prefix
``pts_`` or none.
"""

from __future__ import annotations

import pickle
from typing import Dict, Mapping, Tuple

from torch import Tensor, nn

from ..atomic import PathLike
from ..checkpoints.files import LoadReport, Origin, other_shapes, some, weights_of
from ..checkpoints.reading import open_checkpoint
from .sparse_kernels import reorder_kernels

# Names in a file -> roles, by prefix; the first match counts. mmdet3d's checkpoints use the detector's own names.
ROLE_PREFIXES: Dict[str, Tuple[Tuple[str, str], ...]] = {
    'mmdet3d': (),
    # MIT's BEVFusion (lidar-only-det.pth) and the reference's pretraining checkpoints
    'mit': (
        ('encoders.lidar.backbone.', 'middle_encoder.'),
        ('decoder.backbone.', 'backbone.'),
        ('decoder.neck.', 'neck.'),
    ),
}
# The kernel order if no shape can tell it
_USUAL_ORDER = {'mmdet3d': 'spconv2', 'mit': 'spconv1'}
LAYOUTS = ('auto', *ROLE_PREFIXES)
_OPTIONAL = 'num_batches_tracked'


def detect_layout(names: Mapping[str, Tensor]) -> str:
    """'mit' if any name carries that layout's prefixes, else 'mmdet3d'."""
    prefix = ROLE_PREFIXES['mit'][0][0]
    return 'mit' if any(name.startswith(prefix) for name in names) else 'mmdet3d'


def rename(tensors: Mapping[str, Tensor], layout: str, prefix: str) -> Dict[str, Tensor]:
    """A file's tensors under the names of a detector whose parts carry ``prefix``; names outside the table stay."""
    renamed = {}
    for name, value in tensors.items():
        pair = next((pair for pair in ROLE_PREFIXES[layout] if name.startswith(pair[0])), None)
        renamed[name if pair is None else prefix + pair[1] + name[len(pair[0]) :]] = value
    return renamed


def load_teacher_weights(detector: nn.Module, path: PathLike, layout: str = 'auto') -> LoadReport:
    """Load every tensor of ``detector`` (already cut off behind its tap) from a checkpoint file.

    Args:
        detector: a LiDAR detector of mmdet3d, of any version.
        path: checkpoint of mmdet3d (CenterPoint, BEVFusion, ...) or of MIT's BEVFusion.
        layout: 'auto', 'mmdet3d' or 'mit'.

    Raises:
        ValueError: no such file, truncated, holding code; a needed tensor that is missing or of another shape; a
            tensor of a needed part that the detector has no place for (another architecture).
    """
    if layout not in LAYOUTS:
        raise ValueError(f'checkpoint layout must be one of {LAYOUTS}, got {layout!r}')
    source = str(path)
    tensors, origin = _read(path)
    layout = detect_layout(tensors) if layout == 'auto' else layout
    prefix = 'pts_' if hasattr(detector, 'pts_middle_encoder') else ''
    renamed = rename(tensors, layout, prefix)
    needed = detector.state_dict()
    _check_names(needed, renamed, source, layout)
    chosen = {name: renamed[name] for name in needed if name in renamed}
    chosen, order = reorder_kernels(chosen, detector, source, _USUAL_ORDER[layout])
    wrong = other_shapes(needed, chosen)
    if wrong:
        raise ValueError(f'{source} is of another architecture: {len(wrong)} tensors differ in shape: {some(wrong)}')
    # The detector's own dictionary brings the version metadata, without which mmdet3d would turn the kernels once more.
    for name, value in chosen.items():
        needed[name] = value
    detector.load_state_dict(needed, strict=True)
    ignored = tuple(sorted(name for name in renamed if name not in needed))
    return LoadReport(source, layout, tuple(chosen), unused=ignored, kernel_order=order, origin=origin)


def _read(path: PathLike) -> Tuple[Dict[str, Tensor], Origin]:
    try:
        return weights_of(open_checkpoint(path))
    except FileNotFoundError as error:
        raise ValueError(f'teacher checkpoint {path}: no such file') from error
    except ValueError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        raise ValueError(
            f'{error}. If it is a checkpoint that you trust, write its weights alone where it comes from, with '
            "tools/model_converters/publish_model.py of mmdet3d or torch.save({'state_dict': model.state_dict()}, "
            'path), and give that'
        ) from error


def _check_names(needed: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str, layout: str) -> None:
    missing = tuple(name for name in needed if name not in found and not name.endswith(_OPTIONAL))
    if missing:
        raise ValueError(
            f'{source} ({layout} names) lacks {len(missing)} of the {len(needed)} tensors that the teacher needs up '
            f'to its tap: {some(missing)}; its own names start with {some(tuple(sorted(found)), 4)}'
        )
    parts = tuple({name.split('.', 1)[0] + '.' for name in needed})
    strange = tuple(sorted(name for name in found if name.startswith(parts) and name not in needed))
    if strange:
        raise ValueError(
            f'{source} ({layout} names) is of another architecture: the teacher has no place for {len(strange)} '
            f'tensors of its own parts: {some(strange)}'
        )

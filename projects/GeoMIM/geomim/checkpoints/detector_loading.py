"""Weights of a whole detector from a file into a detector, all of them or none."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List

from torch import Tensor, nn

from .detector_layouts import convert_detector, describe_detector, is_detector
from .files import check_finite, other_shapes, some, weights_of
from .reading import open_checkpoint

_COUNTERS = 'num_batches_tracked'  # older checkpoints lack them; predictions do not use them


def load_detector(model: nn.Module, path: Path) -> str:
    """Give a detector the weights of a checkpoint of ``geomim.bevdet`` or of BEVDet and its GeoMIM fork.

    Nothing in the file is executed. Averaged weights are preferred, see :func:`geomim.checkpoints.files.weights_of`.

    Args:
        model: a detector; not changed if the weights do not fit.
        path: of the checkpoint.

    Returns:
        What the checkpoint holds and where its weights were found, in words.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no checkpoint, no whole detector, values that are not finite, or the weights of another architecture,
            with the names that are missing, unexpected, or of another shape.
    """
    state, origin = weights_of(open_checkpoint(path))
    if not is_detector(state):
        raise ValueError(
            f'{path} holds no whole detector, which has img_backbone.* and img_view_transformer.*; its names start with '
            f'{sorted(state)[:4]}. An encoder alone detects nothing: finetune a detector from it first'
        )
    description = describe_detector(state)
    state = convert_detector(state, 'mmdet3d')
    problems = differences(dict(model.state_dict()), state)
    if problems:
        raise ValueError(
            f'{path} ({description}) does not fit this {type(model).__name__}: {"; ".join(problems)}. '
            'Take the configuration that the checkpoint was trained with' + _advice(problems)
        )
    check_finite(state, path)
    model.load_state_dict(state, strict=False)
    return f'{description}, from {origin.describe()}'


def differences(own: Dict[str, Tensor], given: Dict[str, Tensor]) -> List[str]:
    """What keeps ``given`` from taking the place of ``own``, a sentence a kind; nothing if it fits."""
    missing = tuple(name for name in own if name not in given and not name.endswith(_COUNTERS))
    unexpected = tuple(name for name in given if name not in own)
    kinds = ((missing, 'missing'), (unexpected, 'unexpected'), (other_shapes(own, given), 'of another shape'))
    return [f'{len(names)} {kind}: {some(names, 4)}' for names, kind in kinds if names]


def _advice(problems: List[str]) -> str:
    tables_only = len(problems) == 1 and 'of another shape' in problems[0] and 'relative_position_bias' in problems[0]
    return '; windows of another size are adapted by `python -m geomim convert --window`' if tables_only else ''

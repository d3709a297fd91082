"""Whole detectors of the BEVDet family: the published checkpoints and those of ``geomim.bevdet``, in both directions.

Both have the same names for the same weights. They differ in constants: the published Swin stores its window indices,
ours derives them from the window size.

Layouts:
    bevdet     checkpoints of BEVDet and its GeoMIM fork
    mmdet3d    checkpoints of ``geomim.bevdet``
"""

from __future__ import annotations

from typing import Dict, Iterable, Optional, Tuple

from torch import Tensor

from ..method.windows import relative_position_index
from .position_bias import window_of_table

State = Dict[str, Tensor]
DETECTOR_LAYOUTS = ('bevdet', 'mmdet3d')

_TABLE, _INDEX = 'relative_position_bias_table', 'relative_position_index'
# Names that only one kind of detector has; the first match counts.
DETECTOR_MARKS: Tuple[Tuple[str, str], ...] = (
    ('BEVStereo4DOCC', 'final_conv.'),
    ('BEVStereo4D', 'img_view_transformer.depth_net.cost_volumn_net.'),
    ('BEVDepth4D', 'img_view_transformer.depth_net.depth_conv.'),
    ('BEVDet4D', 'pre_process_net.'),
    ('BEVDet', 'img_view_transformer.'),
)
BACKBONE_MARKS: Tuple[Tuple[str, str], ...] = (
    ('Swin of GeoMIM', 'img_backbone.absolute_pos_embed'),
    ('Swin with shifted windows', 'img_backbone.stages.'),
    ('ResNet', 'img_backbone.layer1.'),
    ('unknown backbone', 'img_backbone.'),
)


def is_detector(names: Iterable[str]) -> bool:
    """Whether the names are those of a whole detector: image backbone and view transformation."""
    names = tuple(names)
    return all(any(name.startswith(part) for name in names) for part in ('img_backbone.', 'img_view_transformer.'))


def detector_layout(names: Iterable[str]) -> Optional[str]:
    """The layout of a whole detector, None for other names; ``'bevdet'`` where both layouts are the same."""
    names = set(names)
    if not is_detector(names):
        return None
    return 'mmdet3d' if _has_geomim_swin(names) and not any(name.endswith(_INDEX) for name in names) else 'bevdet'


def describe_detector(names: Iterable[str]) -> str:
    """What a whole detector is, in words: its class, its image backbone and the tasks of its head."""
    names = tuple(names)
    kind, backbone = (
        next(title for title, mark in marks if any(name.startswith(mark) for name in names))
        for marks in (DETECTOR_MARKS, BACKBONE_MARKS)
    )
    tasks = {name.split('.')[2] for name in names if name.startswith('pts_bbox_head.task_heads.')}
    return f'{kind} on a {backbone}' + (f', {len(tasks)} tasks' if tasks else '')


def _has_geomim_swin(names: Iterable[str]) -> bool:
    return BACKBONE_MARKS[0][1] in names


def to_mmdet3d(state: State) -> State:
    """A published detector's weights under the names of ``geomim.bevdet``; a state dict of ours comes back as it is."""
    _check(state)
    derived = _has_geomim_swin(state)
    return {name: value for name, value in state.items() if not (derived and name.endswith(_INDEX))}


def to_bevdet(state: State) -> State:
    """Our detector's weights as the published code loads them; a published state dict comes back as it is.

    Raises:
        ValueError: no whole detector.
    """
    _check(state)
    renamed: State = {}
    for name, value in state.items():
        renamed[name] = value
        index = name.replace(_TABLE, _INDEX)
        if name.endswith(_TABLE) and index not in state:
            renamed[index] = relative_position_index(window_of_table(value.shape[0]))
    return renamed


def convert_detector(state: State, layout: str) -> State:
    """A whole detector in one of ``DETECTOR_LAYOUTS``, from whichever of them ``state`` is in.

    Raises:
        ValueError: no whole detector, or another layout.
    """
    if layout not in DETECTOR_LAYOUTS:
        raise ValueError(f'a whole detector can be written as {" or ".join(DETECTOR_LAYOUTS)}, not {layout!r}')
    return to_mmdet3d(state) if layout == 'mmdet3d' else to_bevdet(state)


def _check(state: State) -> None:
    if not is_detector(state):
        raise ValueError(
            'no whole detector of the BEVDet family, which has img_backbone.* and img_view_transformer.*; '
            f'the names start with {sorted(state)[:5]}'
        )

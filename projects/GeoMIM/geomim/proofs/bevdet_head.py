"""Compare a detection head with a reference file: raw maps, decoded boxes, losses."""

from __future__ import annotations

import math
from typing import Dict, List, Mapping

import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor

from ..bevdet.boxes.head import BEVDetCenterHead
from .reference_file import OUTPUT_TOLERANCE, ReferenceFile, Row, compare, compare_all

_BOX_FIGURES = ('boxes', 'scores', 'labels')
# Metres in the plane must not set the scale for heights, sizes, radians and metres a second.
_BOX_COLUMNS = (slice(0, 2), slice(2, 3), slice(3, 6), slice(6, 7), slice(7, 9))


def head_rows(head: BEVDetCenterHead, features: Tensor, file: ReferenceFile) -> List[Row]:
    """Rows for what the file has of ``out/head/``, ``out/boxes``, ``out/scores``, ``out/labels`` and ``out/loss/task*``.

    Args:
        head: with the file's parameters; it is put into evaluation mode.
        features: (1, C, Y, X) encoded BEV map.
        file: the reference.
    """
    reference = file.group('out/')
    head.eval()
    with torch.no_grad():
        maps = head([features])
    ours = {f'head/{task}/{name}': value for task, (levels, *_) in enumerate(maps) for name, value in levels.items()}
    rows = compare_all(ours, _under(reference, 'head/'), 'out/')
    if 'boxes' in reference:
        (found,) = head.predict_by_feat(maps, [{}])
        rows += box_rows(found, {name: reference[name] for name in _BOX_FIGURES})
    losses = _under(reference, 'loss/task')
    if losses:
        with torch.no_grad():
            computed = head.loss_by_feat(maps, [_ground_truth(file)])
        rows += compare_all({f'loss/{name}': value for name, value in computed.items()}, losses, 'out/')
    return rows


def box_rows(found: InstanceData, reference: Mapping[str, Tensor]) -> List[Row]:
    """Rows for the boxes as sets: each reference box against the nearest of ours of its class, which must be one to one.

    The error of ``out/boxes`` is the largest of those of position, height, sizes, yaw (whole turns aside) and velocity, each
    on its own scale.

    Args:
        found: ``bboxes_3d``, ``scores_3d``, ``labels_3d``.
        reference: boxes (M, 9), scores (M,), labels (M,).
    """
    boxes, wanted = found.bboxes_3d.tensor.double(), reference['boxes'].double()
    if boxes.shape != wanted.shape:
        remark = f'{tuple(boxes.shape)} boxes, reference {tuple(wanted.shape)}'
        return [Row(f'out/{name}', float('inf'), OUTPUT_TOLERANCE, remark) for name in _BOX_FIGURES]
    keys = _matching_keys(boxes, found.scores_3d, found.labels_3d)
    wanted_keys = _matching_keys(wanted, reference['scores'], reference['labels'])
    nearest = torch.cdist(wanted_keys, keys, p=float('inf')).argmin(1)
    if len(nearest.unique()) != len(nearest):
        return [
            Row(f'out/{name}', float('inf'), OUTPUT_TOLERANCE, 'the sets do not match one to one')
            for name in _BOX_FIGURES
        ]
    matched = boxes[nearest]
    turns = torch.round((wanted[:, 6] - matched[:, 6]) / (2 * math.pi))
    matched[:, 6] += turns * 2 * math.pi
    parts = [compare('out/boxes', matched[:, part], reference['boxes'][:, part]) for part in _BOX_COLUMNS]
    return [
        max(parts, key=lambda row: row.error),
        compare('out/scores', found.scores_3d[nearest], reference['scores']),
        compare('out/labels', found.labels_3d[nearest], reference['labels']),
    ]


def _matching_keys(boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Position, sizes, direction, velocity, score and class, the class far above all else."""
    yaw = boxes[:, 6:7]
    parts = [boxes[:, :6], yaw.sin(), yaw.cos(), boxes[:, 7:], scores[:, None].double(), labels[:, None].double() * 1e4]
    return torch.cat(parts, dim=1)


def _ground_truth(file: ReferenceFile) -> InstanceData:
    inputs = file.group('in/')
    boxes = LiDARInstance3DBoxes(inputs['gt_boxes'], box_dim=inputs['gt_boxes'].shape[1])
    return InstanceData(bboxes_3d=boxes, labels_3d=inputs['gt_labels'])


def _under(tensors: Mapping[str, Tensor], prefix: str) -> Dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name.startswith(prefix)}

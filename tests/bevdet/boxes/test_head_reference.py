"""Differences of a head from the published tensors are noticed; that there are none is in ../test_reference.py."""

from __future__ import annotations

import math
from typing import Any, List

import pytest
import torch
from torch import Tensor

pytest.importorskip('mmdet3d')

from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

from geomim.bevdet.boxes.head import BEVDetCenterHead
from geomim.proofs.bevdet_configs import head_config
from geomim.proofs.bevdet_head import box_rows, head_rows
from geomim.proofs.reference_file import ReferenceFile


def reference_head(file: ReferenceFile) -> BEVDetCenterHead:
    head = MODELS.build(head_config(file.config['model']['pts_bbox_head']))
    head.load_state_dict(file.group('param/pts_bbox_head.'))
    return head


def test_a_changed_parameter_or_setting_is_noticed(reference_folder: Any) -> None:
    file = ReferenceFile(reference_folder / 'bevdet_bevdet.npz')
    features = file.group('out/')['bev_encoded']
    head = reference_head(file)
    with torch.no_grad():
        head.task_heads[2].height[1].bias += 0.01
    failed = {row.name for row in head_rows(head, features, file) if not row.passed}
    assert failed == {'out/head/2/height', 'out/boxes'}  # its task has no ground truth
    for name, task, value in (('nms_rescale_factor', 0, 14.0), ('min_radius', 3, 20.0)):
        file = ReferenceFile(reference_folder / 'bevdet_bevdet.npz')
        file.config['model']['pts_bbox_head']['test_cfg'][name][task] = value
        failed = {row.name for row in head_rows(reference_head(file), features, file) if not row.passed}
        assert failed == {'out/boxes', 'out/scores', 'out/labels'}, name


def test_boxes_are_compared_as_sets() -> None:
    boxes = torch.randn(20, 9) * torch.tensor([20.0, 20, 1, 1, 1, 1, 1, 3, 3])
    reference = dict(boxes=boxes, scores=torch.rand(20), labels=torch.arange(20) % 3)
    turned = boxes.clone()
    turned[:, 6] += 2 * math.pi

    def passed(boxes: Tensor, order: Tensor) -> List[bool]:
        found = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes[order], box_dim=9),
            scores_3d=reference['scores'][order],
            labels_3d=reference['labels'][order],
        )
        return [row.passed for row in box_rows(found, reference)]

    order = torch.randperm(20)
    assert passed(turned, order) == [True] * 3
    assert passed(turned, order[:-1]) == [False] * 3
    assert passed(turned, torch.cat([order[:-1], order[:1]])) == [False] * 3  # one twice, one missing
    for column in range(9):
        moved = turned.clone()
        moved[4, column] += 0.01
        assert passed(moved, order) == [False, True, True], column

"""The detection head against the published implementation's tensors and names, and proof that differences are noticed."""

from __future__ import annotations

import math
from typing import Any, List

import pytest
import torch
from torch import Tensor

for _host in ('mmdet3d', 'numpy'):
    pytest.importorskip(_host)

from mmdet3d.structures import LiDARInstance3DBoxes  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from geomim.bevdet.boxes.head import BEVDetCenterHead  # noqa: E402
from geomim.proofs.bevdet_configs import head_config  # noqa: E402
from geomim.proofs.bevdet_head import box_rows, head_rows  # noqa: E402
from geomim.proofs.reference_file import ReferenceFile  # noqa: E402


def reference_head(file: ReferenceFile) -> BEVDetCenterHead:
    head = MODELS.build(head_config(file.config['model']['pts_bbox_head']))
    head.load_state_dict(file.group('param/pts_bbox_head.'))
    return head


@pytest.mark.parametrize('name', ['bevdet', '4d', 'depth', 'stereo'])
def test_maps_boxes_and_losses_equal_the_published_ones(reference_folder: Any, name: str) -> None:
    file = ReferenceFile(reference_folder / f'bevdet_{name}.npz')
    rows = head_rows(reference_head(file), file.group('out/')['bev_encoded'], file)
    assert [row for row in rows if not row.passed] == []
    names = {row.name for row in rows}
    wanted = {f'out/{key}' for key in file.group('out/') if key.startswith(('head/', 'loss/task'))}
    assert names == wanted | {'out/boxes', 'out/scores', 'out/labels'}
    assert len(names) == 6 * 6 + 6 * 6 + 3


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


@pytest.mark.parametrize('name', ['bevdet-swinb-4d-stereo-256x704-cbgs-geomim', 'bevdet-swinb-4d-256x704-cbgs-geomim'])
def test_parameters_have_the_published_names_at_full_size(reference_folder: Any, manifest: Any, name: str) -> None:
    prefix = 'pts_bbox_head.'
    wanted = {key[len(prefix) :]: shape for key, shape in manifest(name).items() if key.startswith(prefix)}
    if 'task_heads.1.reg.1.weight' in wanted:
        tasks = [
            dict(class_names=[f'{task}{index}' for index in range(size)])
            for task, size in zip('abcdef', (1, 2, 2, 1, 2, 2))
        ]
    else:
        tasks = [dict(class_names=[str(index) for index in range(10)])]
    config = ReferenceFile(reference_folder / 'bevdet_bevdet.npz').config['model']['pts_bbox_head']
    config = {**head_config(config), 'in_channels': 256, 'share_conv_channel': 64, 'tasks': tasks, 'test_cfg': None}
    with torch.device('meta'):
        head = MODELS.build(config)
    assert {key: tuple(value.shape) for key, value in head.state_dict().items()} == wanted


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

"""What the detection head learns from: mmdet3d's loop over the boxes is the slow twin.

The raster is 12 x 10 cells of 2 m, not square, so that swapped axes show.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Tuple

import pytest
import torch
from torch import Tensor

pytest.importorskip('mmdet3d')

from mmdet3d.models.dense_heads import CenterHead
from mmdet3d.models.utils import draw_heatmap_gaussian
from mmdet3d.models.utils import gaussian_radius as mmdet3d_radius
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from geomim.bevdet.boxes.targets import (
    CenterTargetConfig,
    CenterTargets,
    center_targets,
    draw_gaussians,
    gaussian_radius,
)

SIZE_X, SIZE_Y = 12, 10
LOWER = (-12.0, -8.0)
MAX_OBJECTS = 8
CLASSES_PER_TASK = (1, 2, 2)
TRAIN_CFG: Dict[str, Any] = dict(
    point_cloud_range=[*LOWER, -5.0, LOWER[0] + 2 * SIZE_X, LOWER[1] + 2 * SIZE_Y, 3.0],
    grid_size=[4 * SIZE_X, 4 * SIZE_Y, 40],
    voxel_size=[0.5, 0.5, 0.2],
    out_size_factor=4,
    dense_reg=1,
    gaussian_overlap=0.1,
    max_objs=MAX_OBJECTS,
    min_radius=2,
)


def config() -> CenterTargetConfig:
    return CenterTargetConfig.from_train_cfg(TRAIN_CFG, CLASSES_PER_TASK, log_size=True, velocity=True)


def loop() -> CenterHead:
    return CenterHead(
        in_channels=2,
        tasks=[
            dict(class_names=[f'{task}{label}' for label in range(size)]) for task, size in zip('abc', CLASSES_PER_TASK)
        ],
        bbox_coder=dict(type='CenterPointBBoxCoder', pc_range=LOWER, out_size_factor=4, voxel_size=(0.5, 0.5)),
        common_heads=dict(reg=(2, 2)),
        separate_head=dict(type='SeparateHead', head_conv=2),
        train_cfg=TRAIN_CFG,
    )


def random_boxes(count: int) -> Tuple[Tensor, Tensor]:
    """Boxes (bottom centre) in and around the raster, of sizes from a person's to several cells', and labels from -1."""
    boxes = torch.randn(count, 9)
    boxes[:, :2] = torch.tensor(LOWER) - 3 + torch.rand(count, 2) * (torch.tensor([2.0 * SIZE_X, 2.0 * SIZE_Y]) + 6)
    boxes[:, 3:6] = torch.exp(torch.randn(count, 3) * 1.5 + 0.5)
    return boxes, torch.randint(-1, sum(CLASSES_PER_TASK), (count,))


def instances(boxes: Tensor, labels: Tensor) -> InstanceData:
    return InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=labels)


def assigned(boxes: Tensor, labels: Tensor) -> CenterTargets:
    """Boxes at the bottom, as the loop takes them."""
    gravity_centre = LiDARInstance3DBoxes(boxes, box_dim=9).gravity_center
    return center_targets(torch.cat([gravity_centre, boxes[:, 3:]], 1), labels, config())


@pytest.mark.parametrize('count', [0, 1, 30, 80])
def test_targets_equal_mmdet3d_loop(count: int) -> None:
    """Out of range, below the lower edge by less than a cell, without extent, too many, in one cell, labelled -1: all in it."""
    boxes, labels = random_boxes(count)
    if count >= 30:
        boxes[0, :2] = torch.tensor(LOWER) - 0.7
        boxes[1, :2] = torch.tensor(LOWER) - 2.1
        boxes[2, 3] = 0.0
        boxes[3] = boxes[4]
        boxes[5, 7] = math.nan
        labels[:6] = torch.tensor([1, 1, 2, 3, 3, 0])
    ours, wanted = assigned(boxes, labels), loop().get_targets_single(instances(boxes, labels))
    for task in range(len(CLASSES_PER_TASK)):
        torch.testing.assert_close(ours.heatmaps[task], wanted[0][task], rtol=0, atol=1e-7)
        assert torch.equal(ours.heatmaps[task] == 1, wanted[0][task] == 1)
        torch.testing.assert_close(ours.boxes[task], wanted[1][task], rtol=1e-6, atol=1e-6, equal_nan=True)
        assert torch.equal(ours.indices[task], wanted[2][task])
        assert torch.equal(ours.masks[task], wanted[3][task])
        assert ours.masks[task].dtype == wanted[3][task].dtype
    taken = sum(int(masks.sum()) for masks in ours.masks)
    if count == 30:
        assert 10 < taken < 30
    if count == 80:
        assert any(int((labels == label).sum()) > MAX_OBJECTS for label in range(5))


@pytest.mark.parametrize('count', [1, 4, 40])
def test_gaussians_equal_mmdet3d_drawing(count: int) -> None:
    """Centres at all borders, Gaussians larger than the map, several over each other."""
    shape = (3, SIZE_Y, SIZE_X)
    classes = torch.arange(count) % 3
    cells = torch.stack([torch.randint(0, SIZE_X, (count,)), torch.randint(0, SIZE_Y, (count,))], 1)
    radii = torch.randint(0, 2 * SIZE_X, (count,))
    cells[0], radii[0] = 0, 2 * SIZE_X
    wanted = torch.zeros(shape)
    for label, cell, radius in zip(classes, cells, radii.tolist()):
        draw_heatmap_gaussian(wanted[label], cell, radius)
    torch.testing.assert_close(draw_gaussians(classes, cells, radii, shape), wanted, rtol=0, atol=1e-7)


def test_gaussian_radius_equals_mmdet3d() -> None:
    sizes = torch.rand(50, 2) * 20
    for overlap in (0.1, 0.5, 0.7):
        ours = gaussian_radius(sizes[:, 0], sizes[:, 1], overlap)
        assert ours.tolist() == [float(mmdet3d_radius((length, width), overlap)) for length, width in sizes]


def test_a_box_lies_at_row_y_and_column_x() -> None:
    box = torch.tensor([[-12.0 + 2 * 9.25, -8.0 + 2 * 3.5, -1.0, 4.0, 2.0, 1.5, 0.6, 3.0, -2.0]])
    heatmaps, boxes, indices, masks = center_targets(box, torch.tensor([2]), config())
    assert (heatmaps[1] == 1).nonzero().tolist() == [[1, 3, 9]]  # class 2 is the second of its task
    assert int(indices[1][0]) == 3 * SIZE_X + 9
    assert masks[1].tolist() == [1] + [0] * (MAX_OBJECTS - 1)
    wanted = [0.25, 0.5, -1, math.log(4), math.log(2), math.log(1.5), math.sin(0.6), math.cos(0.6), 3, -2]
    torch.testing.assert_close(boxes[1][0], torch.tensor(wanted))
    assert heatmaps[0].max() == heatmaps[2].max() == 0


def test_a_class_beyond_the_tasks_is_refused_and_a_negative_one_ignored() -> None:
    box = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0, 0, 0]])
    with pytest.raises(ValueError, match=r'label 5; the tasks have classes 0\.\.4'):
        center_targets(box, torch.tensor([5]), config())
    masks = center_targets(box, torch.tensor([-1]), config()).masks
    assert int(torch.stack(masks).sum()) == 0


def test_boxes_that_are_no_numbers_are_left_out() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0, 0, 0]]).repeat(4, 1)
    boxes[0, 0], boxes[1, 3], boxes[2, 4] = math.nan, math.nan, math.inf
    masks = center_targets(boxes, torch.zeros(4, dtype=torch.long), config()).masks
    assert masks[0].tolist() == [0, 0, 0, 1] + [0] * (MAX_OBJECTS - 4)


def test_ground_truth_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r'boxes must be \(M, 9\), got \(3, 7\)'):
        center_targets(torch.rand(3, 7), torch.zeros(3, dtype=torch.long), config())
    with pytest.raises(ValueError, match='3 boxes have 2 labels'):
        center_targets(torch.rand(3, 9), torch.zeros(2, dtype=torch.long), config())

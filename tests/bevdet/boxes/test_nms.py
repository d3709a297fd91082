"""Suppression of boxes in the bird's eye view: plain twins, and configurations that do not fit the tasks."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import pytest
import shapely
import torch
import torch.nn.functional as F
from shapely import affinity
from torch import Tensor

pytest.importorskip('mmdet3d')

from geomim.bevdet.boxes.nms import TaskNMS, nms_of_tasks


def polygon(box: List[float]) -> shapely.Geometry:
    """(x, y, length, width, yaw), counter-clockwise from x."""
    x, y, length, width, yaw = box
    flat = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    return affinity.translate(affinity.rotate(flat, yaw, origin=(0, 0), use_radians=True), x, y)


def iou_matrix(boxes: Tensor) -> np.ndarray:
    polygons = np.array([polygon(row) for row in boxes.double().tolist()])
    shared = shapely.area(shapely.intersection(polygons[:, None].copy(), polygons))
    return shared / (shapely.area(polygons)[:, None] + shapely.area(polygons) - shared)


def plain_nms(near: np.ndarray, scores: Tensor) -> List[int]:
    kept: List[int] = []
    for candidate in scores.argsort(descending=True).tolist():
        if not any(near[candidate, other] for other in kept):
            kept.append(candidate)
    return kept


def rotated_nms(boxes: Tensor, scores: Tensor, threshold: float, *limits: Any) -> Tensor:
    """Of boxes (M, 5) x, y, length, width, yaw of one class."""
    upright = torch.zeros(len(boxes), 7)
    upright[:, [0, 1, 3, 4, 6]] = boxes
    return TaskNMS('rotate', threshold, (1.0,), *limits).select(upright, scores, torch.zeros(len(boxes)))


def circle_nms(centres: Tensor, scores: Tensor, squared_distance: float, most: Optional[int] = None) -> Tensor:
    nms = TaskNMS('circle', squared_distance, (1.0,), None, most)
    return nms.select(F.pad(centres, (0, 5)), scores, torch.zeros(len(centres)))


@pytest.fixture
def crowd() -> Tuple[Tensor, Tensor]:
    """60 rotated boxes on 30 x 30 m, of which many overlap."""
    boxes = torch.rand(60, 5) * torch.tensor([30.0, 30.0, 6.0, 2.5, 2 * math.pi]) + torch.tensor([0, 0, 1.0, 0.5, -3])
    return boxes, torch.rand(60)


@pytest.mark.parametrize('threshold', [0.02, 0.125, 0.4])
def test_rotated_nms_equals_polygon_clipping(crowd: Tuple[Tensor, Tensor], threshold: float) -> None:
    boxes, scores = crowd
    overlaps = iou_matrix(boxes)
    assert np.abs(overlaps - threshold).min() > 1e-5  # no overlap that rounding could decide
    kept = rotated_nms(boxes, scores, threshold).tolist()
    assert kept == plain_nms(overlaps > threshold, scores)
    assert len(kept) < len(boxes)
    mirrored = boxes * torch.tensor([1, 1, 1, 1, -1.0])
    assert kept != plain_nms(iou_matrix(mirrored) > threshold, scores), 'the sense of the yaw must matter here'


def test_rotated_nms_size_limits(crowd: Tuple[Tensor, Tensor]) -> None:
    boxes, scores = crowd
    best = scores.argsort(descending=True)[:20]
    kept = rotated_nms(boxes, scores, 0.1, 20)
    assert kept.tolist() == best[rotated_nms(boxes[best], scores[best], 0.1)].tolist()
    assert rotated_nms(boxes, scores, 0.1, 20, 3).tolist() == kept[:3].tolist()
    assert rotated_nms(boxes[:0], scores[:0], 0.1).shape == (0,)


@pytest.mark.parametrize('squared_distance', [0.175, 4.0, 12.0])
def test_circle_nms_is_that_of_a_plain_loop(crowd: Tuple[Tensor, Tensor], squared_distance: float) -> None:
    boxes, scores = crowd
    near = torch.cdist(boxes[:, :2], boxes[:, :2]).square() <= squared_distance
    kept = circle_nms(boxes[:, :2], scores, squared_distance)
    assert kept.tolist() == plain_nms(near.numpy(), scores)
    assert len(kept) < len(boxes)
    assert circle_nms(boxes[:, :2], scores, squared_distance, 4).tolist() == kept[:4].tolist()
    assert circle_nms(boxes[:0, :2], scores[:0], squared_distance).shape == (0,)


def test_circle_nms_compares_squares() -> None:
    centres = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.5]])
    assert circle_nms(centres, torch.tensor([0.9, 0.8, 0.7]), 4.0).tolist() == [0, 2]


def test_scales_are_by_class_and_leave_the_boxes_alone() -> None:
    """Two pairs of boxes 2 m apart: pedestrians are enlarged until they overlap, cars are not."""
    boxes = torch.tensor([[0, 0, 0, 1.5, 1.5, 1, 0], [2, 0, 0, 1.5, 1.5, 1, 0]]).repeat(2, 1)
    boxes[2:, 1] += 20
    before = boxes.clone()
    nms = TaskNMS('rotate', 0.1, scales=(1.0, 2.0))
    kept = nms.select(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 1, 1]))
    assert kept.tolist() == [0, 1, 2]
    assert torch.equal(boxes, before)


CLASSES = (1, 2, 2, 1, 2, 2)
OFFICIAL: Dict[str, Any] = dict(
    min_radius=[4, 12, 10, 1, 0.85, 0.175],
    pre_max_size=1000,
    post_max_size=83,
    nms_thr=0.125,
    nms_type=['rotate', 'rotate', 'rotate', 'circle', 'rotate', 'rotate'],
    nms_rescale_factor=[0.7, [0.4, 0.6], [0.3, 0.4], 0.9, [1.0, 1.0], [1.5, 2.5]],
)


def test_the_published_configurations() -> None:
    tasks = nms_of_tasks(OFFICIAL, CLASSES)
    assert [task.kind for task in tasks] == OFFICIAL['nms_type']
    assert tasks[0] == TaskNMS('rotate', 0.125, (0.7,), 1000, 83)
    assert tasks[3] == TaskNMS('circle', 1.0, (0.9,), 1000, 83)
    assert tasks[5].scales == (1.5, 2.5)
    one_task = dict(OFFICIAL, nms_type=['rotate'], nms_thr=[0.2], nms_rescale_factor=[[1.0] * 9 + [3.5]])
    (task,) = nms_of_tasks(one_task, (10,))  # its min_radius has six entries, which nothing reads
    assert (task.threshold, task.scales[-1]) == (0.2, 3.5)
    plain = nms_of_tasks(dict(nms_type='rotate', nms_thr=0.2), (1, 2))
    assert [task.scales for task in plain] == [(1.0,), (1.0, 1.0)]


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(nms_type=['rotate'] * 5), 'nms_type has 5 entries for 6 tasks'),
        (dict(nms_type='ellipse'), "nms_type 'ellipse' is unknown; known are rotate, circle"),
        (dict(nms_type=None), 'lacks nms_type'),
        (dict(nms_thr=[0.1, 0.2]), 'nms_thr has 2 entries for 6 tasks'),
        (dict(nms_thr=None), 'lacks nms_thr'),
        (dict(min_radius=4), 'min_radius must be a list'),
        (dict(min_radius=[4, 12]), 'min_radius has 2 entries'),
        (dict(nms_rescale_factor=[1.0] * 4), 'nms_rescale_factor has 4 entries'),
        (dict(nms_rescale_factor=0.5), 'nms_rescale_factor must be a list'),
        (dict(nms_rescale_factor=[0.7, [0.4], [0.3, 0.4], 0.9, 1.0, 1.0]), r'of task 1 must be .* 2 of them'),
        (dict(nms_rescale_factor=[0.7, 0.0, 1.0, 0.9, 1.0, 1.0]), 'of task 1 must be a positive number'),
        (dict(post_max_size=0), 'post_max_size must be at least 1'),
    ],
)
def test_settings_that_do_not_fit(change: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nms_of_tasks(dict(OFFICIAL, **change), CLASSES)

"""Boxes in view against linear programs, and by hand where no corner is in the image."""

from __future__ import annotations

import math
from typing import Any, Callable

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from mmdet3d.structures import LiDARInstance3DBoxes

from geomim import CameraRig
from geomim.bevdet.boxes.visibility import boxes_in_view
from geomim.method.depth import project_points

Make = Callable[..., Any]
SIZE = (64, 96)


def centred(*rows: Any) -> LiDARInstance3DBoxes:
    return LiDARInstance3DBoxes(torch.tensor(rows), origin=(0.5, 0.5, 0.5))


def feasible(corners: np.ndarray, bev2img: np.ndarray, img_aug: np.ndarray) -> bool:
    """Whether a point of a box projects into the image, as a linear program over its three edges."""
    from scipy.optimize import linprog

    start, edges = corners[0], corners[[4, 3, 1]] - corners[0]
    image = np.eye(3)
    image[:2, :2], image[:2, 2] = img_aug[:2, :2], img_aug[:2, 3]
    u, v, z = image @ bev2img[:3]
    sides = np.stack([u, SIZE[1] * z - u, v, SIZE[0] * z - v])
    solved = linprog(np.zeros(3), -sides[:, :3] @ edges.T, sides[:, :3] @ start + sides[:, 3], bounds=[(0, 1)] * 3)
    return bool(solved.success)


def test_boxes_are_in_view_where_a_part_of_them_projects_into_an_image(make_rig: Make) -> None:
    rig = make_rig(1, 3, SIZE, augmented=True, dtype=torch.float64)
    random = np.random.default_rng(0)
    rows = np.c_[
        random.uniform(-8, 8, (80, 2)),
        random.uniform(-3, 3, 80),
        random.uniform(0.1, 6, (80, 3)),
        random.uniform(-4, 4, 80),
    ]
    boxes = centred(*rows.tolist())
    found = boxes_in_view(boxes, rig, SIZE)
    corners = boxes.corners.double().numpy()
    expected = [
        [feasible(box, matrix.numpy(), aug.numpy()) for box in corners]
        for matrix, aug in zip(rig.bev2img[0], rig.img_aug[0])
    ]
    assert found.tolist() == expected
    assert 40 < int(found.sum()) < 200
    outside = 0
    for camera, box in found.nonzero().tolist():
        uv, depth = project_points(boxes.corners[box], rig, 0)
        inside = (depth[camera] > 0) & (uv[camera] >= 0).all(-1) & (uv[camera] <= torch.tensor([96.0, 64.0])).all(-1)
        outside += int(not inside.any())
    assert outside > 0, 'boxes in view of which no corner is'


def ahead() -> CameraRig:
    """A camera at the origin that looks along x, half as wide as far."""
    cam2bev = torch.eye(4, dtype=torch.float64)
    cam2bev[:3, :3] = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    intrinsics = torch.tensor([[96.0, 0, 48], [0, 96, 32], [0, 0, 1]], dtype=torch.float64)
    return CameraRig.create(intrinsics[None, None], cam2bev[None, None], cam2bev[None, None])


@pytest.mark.parametrize(
    'row, seen',
    [
        ([10.0, 0, 0, 1, 1, 1, 0], True),
        ([-10.0, 0, 0, 1, 1, 1, 0], False),  # mirrored into the image by a division by a negative depth
        ([10.0, 0, 0, 0.2, 40, 40, 0], True),  # a wall, whose corners are all outside
        ([0.0, 0, 0, 4, 4, 4, 0], True),  # around the camera
        ([0.0, 8, 0, 30, 2, 2, 0], True),  # beside it, from behind it to far ahead
        ([0.0, 8, 0, 4, 2, 2, 0], False),
        ([0.0, 8, 0, 4, 2, 2, math.pi / 4], False),
        ([10.0, 5.6, 0, 1, 1, 1, 0], True),  # 0.15 m of it: the border is at y = 5.25 where x is 10.5
        ([10.0, 5.8, 0, 1, 1, 1, 0], False),
        ([10.0, 0, 4.1, 1, 1, 1, 0], False),  # above
        ([10.0, 0, 0, 0, 0, 0, 0], True),  # a point
    ],
)
def test_boxes_ahead_behind_and_beside(row: Any, seen: bool) -> None:
    assert boxes_in_view(centred(row), ahead(), SIZE).tolist() == [[seen]]


def test_no_box_at_all() -> None:
    assert tuple(boxes_in_view(LiDARInstance3DBoxes(torch.zeros(0, 9), box_dim=9), ahead(), SIZE).shape) == (1, 0)

"""One object in an otherwise empty scene lights up the same BEV cell in the student's geometry and in the teacher's map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from mmdet3d.structures import LiDARPoints

from geomim import BEVGrid, CameraRig, DepthBins, ViewTransform, ViewTransformConfig
from geomim.method.depth import project_points
from geomim.mmdet3d.teacher import LidarTeacher, expected_cell
from geomim.mmdet3d.transforms import BEVFlip
from geomim.teachers.probe import lit_cell, object_points

from .teacher_zoo import KINDS, near, teacher_config

IMAGE_SIZE = (256, 384)
PLACES = ((4.5, 1.5), (-3.3, 2.7), (2.1, -3.9))


def ring(bev_aug: torch.Tensor, cams: int = 6) -> CameraRig:
    """Cameras at the LiDAR's place that look outward, with an image augmentation each."""
    angles = torch.arange(cams) * (2 * torch.pi / cams) + 0.2
    cam2bev = torch.zeros(1, cams, 4, 4)
    cam2bev[0, :, 0, 0], cam2bev[0, :, 0, 2] = angles.sin(), angles.cos()
    cam2bev[0, :, 1, 0], cam2bev[0, :, 1, 2] = -angles.cos(), angles.sin()
    cam2bev[0, :, 2, 1] = -1
    cam2bev[0, :, 3, 3] = 1
    intrinsics = torch.tensor([[500.0, 0, 400], [0, 500, 225], [0, 0, 1]]).expand(1, cams, 3, 3)
    img_aug = torch.eye(4).repeat(1, cams, 1, 1)
    img_aug[..., 0, 0], img_aug[..., 1, 1], img_aug[..., 0, 3], img_aug[..., 1, 3] = 0.45, 0.45, 12.0, 20.0
    img_aug[0, ::2, 0, 0], img_aug[0, ::2, 0, 3] = -0.45, 372.0  # every other image mirrored
    return CameraRig.create(intrinsics, cam2bev, cam2bev, img_aug, bev_aug)


def student_cell(grid: BEVGrid, rig: CameraRig, centre: torch.Tensor) -> tuple:
    """The cell that receives the feature of the pixel in which the object's centre (augmented LiDAR frame) is seen."""
    bins = DepthBins(0.5, 20.5, 0.25)
    view = ViewTransform(
        4, ViewTransformConfig(image_size=IMAGE_SIZE, grid=grid, depth_bins=bins, channels=1, downsample=1)
    )
    uv, depth = project_points(centre[None], rig, 0)
    uv, depth = uv[:, 0], depth[:, 0]
    height, width = IMAGE_SIZE
    seen = (depth > 0.5) & (uv[:, 0] >= 0) & (uv[:, 0] < width) & (uv[:, 1] >= 0) & (uv[:, 1] < height)
    camera = int(seen.int().argmax())
    assert bool(seen[camera]), 'no camera of the ring sees the object'
    rows, cols = view.config.feature_size
    row = round(float(uv[camera, 1]) / (height - 1) * (rows - 1))
    col = round(float(uv[camera, 0]) / (width - 1) * (cols - 1))
    probability = torch.zeros(rig.num_cams, bins.count, rows, cols)
    probability[camera, int((depth[camera] - bins.lower) / bins.step + 0.5), row, col] = 1
    context = torch.ones(rig.num_cams, 1, rows, cols)
    bev = view.splat(probability, context, view.plan(rig))[0, 0]
    peak = int(bev.argmax())
    assert float(bev.max()) > 0
    return peak // bev.shape[1], peak % bev.shape[1]


@pytest.fixture(scope='module')
def teachers() -> dict:
    return {kind: LidarTeacher(**teacher_config(kind)) for kind in KINDS}


@pytest.mark.parametrize('place', PLACES, ids=str)
@pytest.mark.parametrize('flips', [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize('kind', KINDS)
def test_student_and_teacher_light_up_the_same_cell(teachers, kind: str, flips, place) -> None:
    teacher = teachers[kind]
    points = object_points(*place, 0.0, 5, size=0.5)
    background = object_points(-6.0, -4.0, 0.0, 5, size=0.5)
    flip = BEVFlip(flip_x=float(flips[0]), flip_y=float(flips[1]))

    def flipped(cloud: torch.Tensor) -> tuple:
        results = flip.transform(
            dict(points=LiDARPoints(cloud, points_dim=5), bev_aug_matrix=np.eye(4, dtype=np.float32))
        )
        return results['points'].tensor, torch.as_tensor(results['bev_aug_matrix'])[None]

    moved, bev_aug = flipped(points)
    centre = moved[:, :3].mean(dim=0)
    expected = expected_cell(teacher.record, float(centre[0]), float(centre[1]))
    seen_by_teacher = lit_cell(teacher, flipped(background)[0], moved)
    seen_by_student = student_cell(teacher.record.grid, ring(bev_aug), centre)
    assert near(seen_by_teacher, expected)
    assert near(seen_by_student, expected)
    signs = [-1 if flipped_axis else 1 for flipped_axis in flips]
    torch.testing.assert_close(centre[:2], torch.tensor(place) * torch.tensor(signs), atol=1e-4, rtol=0)

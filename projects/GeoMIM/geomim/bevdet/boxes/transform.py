"""Boxes between the LiDAR frame, the key ego frame and the augmented one."""

from __future__ import annotations

import numpy as np
import torch
from mmdet3d.structures import LiDARInstance3DBoxes


def transform_boxes(boxes: LiDARInstance3DBoxes, matrix: np.ndarray) -> LiDARInstance3DBoxes:
    """Upright boxes under a matrix that keeps the vertical nearly upright.

    Centres go by the whole matrix, sizes by its scale, headings and velocities by its linear part seen from above; a
    mirrored matrix mirrors headings and velocities.

    Args:
        boxes: (M, 7 or 9), metres, radians and metres a second; not changed.
        matrix: (4, 4), a rotation, possibly mirrored, times a scale, and a translation.

    Returns:
        Boxes of the same kind, number type and device.

    Raises:
        ValueError: a matrix of another shape, with values that are not finite, or that flattens space.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or np.linalg.det(matrix) == 0:
        raise ValueError(f'boxes need an invertible (4, 4) matrix of finite numbers, got {matrix.tolist()}')
    given = boxes.tensor.double()
    linear = torch.from_numpy(matrix[:3, :3]).to(given.device)
    moved = given.clone()
    translation = torch.from_numpy(matrix[:3, 3]).to(given.device)
    moved[:, :3] = boxes.gravity_center.double() @ linear.T + translation
    moved[:, 3:6] = given[:, 3:6] * abs(np.linalg.det(matrix[:3, :3])) ** (1 / 3)
    heading = torch.stack([given[:, 6].cos(), given[:, 6].sin()], dim=1) @ linear[:2, :2].T
    moved[:, 6] = torch.atan2(heading[:, 1], heading[:, 0])
    if given.shape[1] > 7:
        moved[:, 7:9] = given[:, 7:9] @ linear[:2, :2].T
    return LiDARInstance3DBoxes(moved.to(boxes.tensor), box_dim=given.shape[1], origin=(0.5, 0.5, 0.5))

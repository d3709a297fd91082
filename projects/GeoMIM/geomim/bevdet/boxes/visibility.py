"""Which boxes the cameras of a rig can see at all."""

from __future__ import annotations

from typing import Tuple

import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from torch import Tensor

from ...method.camera import CameraRig
from ...method.visibility import view_matrices

# A view in the coordinates of `view_matrices` is the cone of these rays, and lies on the positive side of these faces
_RAYS = ((0.0, 0.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.0, 1.0, 1.0))
_FACES = ((1.0, 0.0, 0.0), (-1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.0, -1.0, 1.0))
_NEIGHBOURS = [4, 3, 1]  # of mmdet3d's corner 0, along the three edges of a box
_TOLERANCE = 1e-9  # of rounding, in float64


def boxes_in_view(boxes: LiDARInstance3DBoxes, rig: CameraRig, image_size: Tuple[int, int]) -> Tensor:
    """Which boxes have a part, however small, that projects into which camera's image; what hides it is not looked at.

    Exact, also for boxes whose corners are all outside of the image or that reach behind the camera: box and view are convex, so
    they are apart if and only if they are apart along a normal of a face of either or of an edge of each.

    Args:
        boxes: (M, 7 or more), in the augmented BEV frame of the rig.
        rig: calibration of one sample.
        image_size: (H, W) of the augmented images.

    Returns:
        (N, M) bool.
    """
    views = view_matrices(rig, image_size)[0].double()[:, None]  # (N, 1, 3, 4)
    corners = boxes.corners.to(views).reshape(-1, 8, 3) @ views[..., :3].transpose(-1, -2) + views[..., None, :, 3]
    rays, faces = (views.new_tensor(rows).expand(*corners.shape[:2], 4, 3) for rows in (_RAYS, _FACES))
    edges = corners[..., _NEIGHBOURS, :] - corners[..., :1, :]  # (N, M, 3, 3)
    box_faces = torch.cross(edges, edges.roll(1, dims=-2), dim=-1)
    pairs = torch.broadcast_tensors(edges[..., None, :], rays[..., None, :, :])
    across = torch.cross(*pairs, dim=-1).flatten(2, 3)
    normals = torch.cat([faces, box_faces, -box_faces, across, -across], dim=-2)
    normals = normals / normals.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(normals.dtype).tiny)
    view_above = (rays @ normals.transpose(-1, -2)).amin(dim=-2) >= -_TOLERANCE
    box_below = (corners @ normals.transpose(-1, -2)).amax(dim=-2) < -_TOLERANCE
    return ~(view_above & box_below).any(dim=-1)

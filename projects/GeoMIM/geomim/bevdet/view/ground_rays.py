"""Where the rays of feature cells meet flat ground: what a camera's pose tells of depth before any image is seen.

Shape legend: B samples, N cameras, M = B * N images, h x w feature cells, D depth bins. Metres.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...method.camera import CameraRig
from ...method.lift_splat import frustum_points

EXTRA_CHANNELS = 2  # besides one a depth bin
_STEEPEST = 1.0  # inverse of the nearest ground, 1/m
_HIGHEST = -0.1  # the same above the horizon
_SPREAD = (0.5, 0.05)  # a bin is near the ground's depth within 0.5 m + 5 %


def ground_rays(pixels: Tensor, depths: Tensor, rig: CameraRig) -> Tensor:
    """Description of each feature cell's ray by the depth at which it meets the plane z = 0 of the ego frame.

    It depends on poses and optics alone, not on a rotation about z, mirroring or scaling of the BEV frame. An addition of
    this project: BEVDepth's network knows the cameras, but not which of its cells looks where.

    Args:
        pixels: (h, w, 2), of the cells.
        depths: (D,), of the bins, metres.
        rig: cameras to key ego.

    Returns:
        (M, D + 2, h, w) from -1 to 5: how near the ground is to each bin (0 to 1; all 0 where a ray meets no ground within the last bin),
        5 / m over the ground's depth, and the rise of the ray over its length.
    """
    ends = torch.stack([torch.zeros_like(depths[0]), torch.ones_like(depths[0])])
    points = frustum_points(pixels, ends, rig).flatten(0, 1)
    origin, ray = points[..., 0, :], points[..., 1, :] - points[..., 0, :]
    height = origin[..., 2].clamp(min=0.1)  # of a camera, metres
    inverse = (-ray[..., 2] / height).clamp(_HIGHEST, _STEEPEST)
    ground = 1 / inverse.clamp(min=1 / (2 * depths[-1]))
    off = (depths - ground[..., None]) / (_SPREAD[0] + _SPREAD[1] * ground[..., None])
    near = torch.exp(-0.5 * off.square()) * (ground <= depths[-1])[..., None]
    rise = ray[..., 2] / ray.norm(dim=-1)
    return torch.cat([near, 5 * inverse[..., None], rise[..., None]], dim=-1).permute(0, 3, 1, 2)

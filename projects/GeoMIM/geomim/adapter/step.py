"""From a batch to what pretraining computes of it: one record and one function for every host.

Shape legend: B samples, N cameras, H x W pixels, M points, F features a point. Metres, pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Callable, Optional, Sequence

import torch
from torch import Tensor

from ..method.camera import CameraRig
from ..method.depth import depth_maps
from ..method.pretrainer import GeoMIM, PretrainOutput


@dataclass(frozen=True)
class PretrainBatch:
    """What a student and its teacher see of B samples, on the model's device.

    Args:
        images: (B, N, 3, H, W), normalised RGB.
        rig: calibration of the N cameras; its BEV frame is that of the points.
        points: B clouds (M, F) in the augmented LiDAR frame.
        depth_map: (B, N, H, W), 0 = none, where the host has projected the points before; made of them otherwise.
    """

    images: Tensor
    rig: CameraRig
    points: Sequence[Tensor]
    depth_map: Optional[Tensor] = None

    def first(self, count: int) -> PretrainBatch:
        """The first ``count`` samples."""
        matrices = {f.name: getattr(self.rig, f.name)[:count] for f in fields(self.rig) if f.name != 'names'}
        return PretrainBatch(
            self.images[:count],
            replace(self.rig, **matrices),
            self.points[:count],
            None if self.depth_map is None else self.depth_map[:count],
        )

    def measured_depth(self) -> Tensor:
        """(B, N, H, W): the given depth maps, or those of the points; the last point of a pixel counts, as published."""
        if self.depth_map is not None:
            return self.depth_map
        height, width = self.images.shape[-2:]
        return depth_maps(self.points, self.rig, (height, width), 'last')


def pretrain_step(
    batch: PretrainBatch,
    student: GeoMIM,
    teacher: Callable[[Sequence[Tensor]], Tensor],
    generator: Optional[torch.Generator] = None,
) -> PretrainOutput:
    """One pass, with masks drawn from ``generator``; ``teacher`` turns the clouds into BEV maps (B, C, X, Y)."""
    target_bev = teacher(batch.points)
    masks = student.draw_masks(batch.images.device, generator)
    return student(batch.images, batch.rig, target_bev, batch.measured_depth(), masks)

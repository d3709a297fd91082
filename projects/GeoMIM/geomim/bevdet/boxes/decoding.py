"""Boxes from a CenterHead's maps.

Shape legend: B samples, C classes of a task, K candidates, Y x X cells. Metres, radians.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import torch
from torch import Tensor


class Detections(NamedTuple):
    """boxes: (M, 7 or 9) x, y, z of the centre of gravity, sizes, yaw[, velocity]; scores: (M,); labels: (M,) class within the task."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def take(self, indices: Tensor) -> Detections:
        return Detections(*(value[indices] for value in self))


@dataclass(frozen=True)
class CenterDecoder:
    """From cells to metres.

    Args:
        lower: (x, y) of the raster's lower corner, metres.
        voxel_size: (x, y) of a voxel, metres.
        stride: voxels a cell of the maps.
        max_candidates: K, best cells over all classes of a task.
        center_range: (x, y, z) lowest then highest centre that is kept, metres; all if None.
        score_threshold: a box must score higher; no such bound if None.
        log_size: the size map holds logarithms.
    """

    lower: Tuple[float, float]
    voxel_size: Tuple[float, float]
    stride: int
    max_candidates: int = 500
    center_range: Optional[Tuple[float, ...]] = None
    score_threshold: Optional[float] = None
    log_size: bool = True

    @classmethod
    def from_coder(cls, coder: Any, log_size: bool) -> CenterDecoder:
        """The sizes of mmdet3d's ``CenterPointBBoxCoder``."""
        return cls(
            lower=(float(coder.pc_range[0]), float(coder.pc_range[1])),
            voxel_size=(float(coder.voxel_size[0]), float(coder.voxel_size[1])),
            stride=int(coder.out_size_factor),
            max_candidates=int(coder.max_num),
            center_range=None if coder.post_center_range is None else tuple(map(float, coder.post_center_range)),
            score_threshold=coder.score_threshold,
            log_size=log_size,
        )

    def decode(self, maps: Mapping[str, Tensor]) -> List[Detections]:
        """The candidates of each sample, the best first.

        Args:
            maps: heatmap (B, C, Y, X) logits, reg (B, 2, Y, X) offset in the cell, height (B, 1, Y, X) of the centre,
                dim (B, 3, Y, X), rot (B, 2, Y, X) sine and cosine, and vel (B, 2, Y, X) or none.
        """
        heatmap = maps['heatmap'].sigmoid()
        _, classes, height, width = heatmap.shape
        candidates = min(self.max_candidates, classes * height * width)
        scores, places = heatmap.flatten(1).topk(candidates)
        cells = places % (height * width)
        boxes = self._boxes(_gathered(maps, cells), cells, width)
        kept = self._kept(boxes, scores)
        labels = places // (height * width)
        return [Detections(*sample).take(keep) for *sample, keep in zip(boxes, scores, labels, kept)]

    def _boxes(self, at: Dict[str, Tensor], cells: Tensor, width: int) -> Tensor:
        x = ((cells % width) + at['reg'][..., 0]) * self.stride * self.voxel_size[0] + self.lower[0]
        y = ((cells // width) + at['reg'][..., 1]) * self.stride * self.voxel_size[1] + self.lower[1]
        sizes = at['dim'].exp() if self.log_size else at['dim']
        yaw = torch.atan2(at['rot'][..., :1], at['rot'][..., 1:])
        parts = [x[..., None], y[..., None], at['height'], sizes, yaw]
        if 'vel' in at:
            parts.append(at['vel'])
        return torch.cat(parts, dim=-1)

    def _kept(self, boxes: Tensor, scores: Tensor) -> Tensor:
        kept = torch.ones_like(scores, dtype=torch.bool)
        if self.score_threshold:
            kept &= scores > self.score_threshold
        if self.center_range is not None:
            bounds = boxes.new_tensor(self.center_range)
            kept &= ((boxes[..., :3] >= bounds[:3]) & (boxes[..., :3] <= bounds[3:])).all(-1)
        return kept


def _gathered(maps: Mapping[str, Tensor], cells: Tensor) -> Dict[str, Tensor]:
    """Each regression map at the cells: (B, K, channels)."""
    return {name: gather_cells(value, cells) for name, value in maps.items() if name != 'heatmap'}


def gather_cells(values: Tensor, cells: Tensor) -> Tensor:
    """(B, channels, Y, X) at cells (B, K) y * X + x -> (B, K, channels)."""
    index = cells[:, None].expand(-1, values.shape[1], -1)
    return values.flatten(2).gather(2, index).transpose(1, 2)

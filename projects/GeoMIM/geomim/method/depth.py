"""Depth labels from LiDAR points, depth bins, and the depth loss (paper section 3.3; METHOD 2.5 and 4).

Shape legend: B samples, N cameras, H x W pixels, h x w feature cells, D depth bins, M points. Depths are metres along the optical axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence, Tuple

import torch
from torch import Tensor

from .camera import CameraRig, full_precision
from .grid import count_cells

_NEAREST = 1e-5  # metres; a point nearer to the image plane is not projected
_LOG_FLOOR = -100.0  # as binary_cross_entropy clamps its logarithms


@dataclass(frozen=True)
class DepthBins:
    """Uniform depth bins: bin i covers [lower + i * step, lower + (i + 1) * step), metres.

    Raises:
        ValueError: a step that does not divide the range, or a lower bound that is not positive.
    """

    lower: float = 1.0
    upper: float = 60.0
    step: float = 0.5

    def __post_init__(self) -> None:
        count_cells((self.lower, self.upper, self.step), 'depth_bound')
        if self.lower <= 0:
            raise ValueError(f'depth_bound must start above 0 m, got {self.lower}')

    @property
    def count(self) -> int:
        return count_cells((self.lower, self.upper, self.step), 'depth_bound')

    def values(self) -> Tensor:
        """(D,) lower edges, at which the frustum has its points."""
        return torch.arange(self.count, dtype=torch.float) * self.step + self.lower

    def position(self, depth: Tensor) -> Tensor:
        """Depths in metres -> positions counted in bins from 1: bin i takes [i + 1, i + 2)."""
        return (depth - (self.lower - self.step)) / self.step


def check_weight(weight: float, name: str) -> None:
    """Raise ``ValueError`` for a factor of a loss that is not finite or below 0."""
    if not 0 <= weight < float('inf'):
        raise ValueError(f'{name} must be a finite number of at least 0, got {weight}')


def check_cloud(points: Tensor, source: str = 'points') -> None:
    """Raise ``ValueError`` for a point cloud that is no (M > 0, >= 3); looks at no value."""
    if points.dim() != 2 or points.shape[1] < 3:
        raise ValueError(f'{source}: a point cloud must be (M, >= 3), got shape {tuple(points.shape)}')
    if len(points) == 0:
        raise ValueError(f'{source}: the point cloud is empty; a LiDAR sweep with at least one point is needed')


def check_points(points: Tensor, source: str = 'points') -> None:
    """As :func:`check_cloud`, and raise ``ValueError`` for values that are not finite.

    Reads the values back: call it on the host.
    """
    check_cloud(points, source)
    if bool(torch.isfinite(points.sum())):  # one value that is not finite spoils the sum; fast
        return
    bad = (~torch.isfinite(points)).any(dim=1)
    if bool(bad.any()):
        row = int(bad.int().argmax())
        raise ValueError(
            f'{source}: {int(bad.sum())} of {len(points)} points are not finite, the first in row {row}: {points[row].tolist()}; '
            'drop_nonfinite=True of the step that checks clouds drops such rows'
        )


def finite_points(points: Tensor, source: str = 'points') -> Tensor:
    """(M,) bool, the rows of a cloud whose values are all finite, for a host that drops the others.

    Raises:
        ValueError: as of :func:`check_cloud`, or no row is finite.
    """
    check_cloud(points, source)
    finite = torch.isfinite(points).all(dim=1)
    if not bool(finite.any()):
        raise ValueError(f'{source}: none of the {len(points)} points is finite')
    return finite


def _winner_per_slot(slots: Tensor, num_slots: int) -> Tensor:
    """slots (N, M) int64 in [0, num_slots) -> (N, num_slots) index of the last point in each slot, -1 where there is none.

    Deterministic on every device, unlike assignment through repeated indices.
    """
    order = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
    winners = slots.new_full((slots.shape[0], num_slots), -1)
    if hasattr(winners, 'scatter_reduce_') and torch.__version__ >= '1.13':
        return winners.scatter_reduce_(1, slots, order, reduce='amax')
    ranked, position = torch.sort(slots, dim=1, stable=True)  # torch < 1.13
    last = torch.ones_like(ranked, dtype=torch.bool)
    last[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    padded = torch.cat([winners, winners[:, :1]], dim=1)
    return padded.scatter_(1, torch.where(last, ranked, num_slots), position)[:, :num_slots]


def project_points(points: Tensor, rig: CameraRig, sample: int) -> Tuple[Tensor, Tensor]:
    """Points (M, >= 3) of ``sample``, in the augmented BEV frame -> pixels (N, M, 2) of the augmented images and depths (N, M).

    The pixels of points behind a camera are meaningless; their depth is negative.
    """
    return _project(points, rig.bev2img[sample], rig.img_aug[sample])


def _project(points: Tensor, bev2img: Tensor, img_aug: Tensor) -> Tuple[Tensor, Tensor]:
    """As :func:`project_points`, with (N, 4, 4) of a rig's ``bev2img`` and ``img_aug``."""
    xyz = points[:, :3].to(bev2img.dtype)
    with full_precision(xyz):
        projected = xyz @ bev2img[:, :3, :3].transpose(1, 2) + bev2img[:, None, :3, 3]
        depth = projected[..., 2]
        uv = projected[..., :2] / depth.clamp(min=_NEAREST)[..., None]
        uv = uv @ img_aug[:, :2, :2].transpose(1, 2) + img_aug[:, None, :2, 3]
    return uv, depth


def depth_maps(
    points: Sequence[Tensor],
    rig: CameraRig,
    image_size: Tuple[int, int],
    rule: str = 'last',
    depth_range: Tuple[float, float] = (0.0, float('inf')),
) -> Tensor:
    """Sparse depth maps of LiDAR points, on their device, without reading a value back.

    Args:
        points: B clouds (M_b, >= 3) in the augmented BEV frame, metres; not changed.
        rig: calibration of the B samples.
        image_size: (H, W) of the augmented images.
        rule: which of several points in a pixel counts: the ``'last'`` of the cloud, as in the published pretraining, or the
            ``'nearest'``, as in BEVDepth.
        depth_range: (lower, upper) metres, upper excluded; other points do not count.

    Returns:
        (B, N, H, W) metres, 0 where no point falls.

    Raises:
        ValueError: another rule, or another number of clouds than samples.
    """
    if rule not in ('last', 'nearest'):
        raise ValueError(f"depth maps: rule must be 'last' or 'nearest', got {rule!r}")
    if len(points) != rig.batch_size:
        raise ValueError(f'{len(points)} point clouds for {rig.batch_size} samples')
    projected = [_project(cloud, *matrices) for cloud, *matrices in zip(points, rig.bev2img, rig.img_aug)]
    return torch.stack([_depth_map(uv, depth, image_size, rule == 'nearest', depth_range) for uv, depth in projected])


def _depth_map(
    uv: Tensor, depth: Tensor, image_size: Tuple[int, int], nearest: bool, depth_range: Tuple[float, float]
) -> Tensor:
    """Pixels (N, M, 2) and depths (N, M) -> (N, H, W)."""
    height, width = image_size
    if nearest:  # from far to near, the last is the nearest
        depth, order = depth.sort(dim=1, descending=True)
        uv = uv.gather(1, order[..., None].expand_as(uv))
    u, v = uv[..., 0], uv[..., 1]
    visible = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (depth > _NEAREST)
    visible &= (depth >= depth_range[0]) & (depth < depth_range[1])
    # One spare slot takes what is not visible, so that no shape depends on the data.
    slots = torch.where(
        visible,
        v.nan_to_num().clamp(0, height - 1).long() * width + u.nan_to_num().clamp(0, width - 1).long(),
        height * width,
    )
    winner = _winner_per_slot(slots, height * width + 1)[:, :-1]
    values = depth.gather(1, winner.clamp(min=0))
    return torch.where(winner >= 0, values, torch.zeros_like(values)).view(-1, height, width)


def depth_labels(maps: Tensor, bins: DepthBins, stride: int) -> Tensor:
    """Depth bin of each feature cell.

    Args:
        maps: (..., H, W) metres, 0 = none; H and W multiples of ``stride``.

    Returns:
        (..., H / stride, W / stride) int64: the bin of the smallest depth in the cell, or -1 (no point, or out of range).
    """
    height, width = maps.shape[-2:]
    if height % stride or width % stride:
        raise ValueError(f'a depth map of {height} x {width} pixels cannot be cut into {stride}-pixel cells')
    blocks = maps.reshape(*maps.shape[:-2], height // stride, stride, width // stride, stride)
    blocks = torch.where(blocks == 0, torch.full_like(blocks, float('inf')), blocks)
    nearest = blocks.amin(dim=(-3, -1))
    position = bins.position(nearest)
    labelled = (position >= 1) & (position < bins.count + 1)
    return torch.where(labelled, position, torch.zeros_like(position)).long() - 1


def _log_hit(probabilities: Tensor) -> Tensor:
    """log p, at least the floor. Its gradient is 0 where 1 / p overflows: a saturated softmax gives exact zeros."""
    safe = probabilities >= torch.finfo(probabilities.dtype).tiny
    floored = probabilities.detach().log().clamp(min=_LOG_FLOOR)
    return torch.where(safe, torch.where(safe, probabilities, torch.ones_like(floored)).log(), floored)


def _log_miss(probabilities: Tensor) -> Tensor:
    """log(1 - p), at least the floor. Its gradient is 0 where p is exactly 1, as it is in a saturated softmax."""
    safe = probabilities < 1
    floor = torch.full_like(probabilities, _LOG_FLOOR)
    return torch.where(safe, torch.log1p(-torch.where(safe, probabilities, torch.zeros_like(floor))), floor)


def depth_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of depth distributions against one-hot labels.

    Args:
        probabilities: (M, D, h, w), each cell's distribution over the bins; float32.
        labels: (M, h, w) int64 from :func:`depth_labels`.

    Returns:
        Scalar: sum over bins and labelled cells / max(1, number of labelled cells).
    """
    labelled = labels >= 0
    at_label = probabilities.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    cell = _log_miss(probabilities).sum(dim=1) - _log_miss(at_label) + _log_hit(at_label)
    total = torch.where(labelled, -cell, torch.zeros_like(cell)).sum()
    return total / labelled.sum().clamp(min=1)

"""What a CenterHead learns from one sample's boxes: class heat maps and, at each box's cell, the box itself.

Shape legend: M boxes, T tasks, C classes over all tasks, K slots a task, R regression channels, X x Y cells. Metres, radians.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Mapping, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

_SETTINGS = ('point_cloud_range', 'voxel_size', 'grid_size', 'out_size_factor', 'max_objs', 'gaussian_overlap')


@dataclass(frozen=True)
class CenterTargetConfig:
    """Sizes of the target assignment.

    Args:
        classes_per_task: number of classes of each task; labels count through the tasks in order.
        lower: (x, y) of the raster's lower corner, metres.
        voxel_size: (x, y) of a voxel, metres.
        stride: voxels a cell of the heat maps.
        shape: (X, Y) cells of the heat maps.
        max_objects: K, boxes of a task beyond it are left out.
        gaussian_overlap: smallest IoU of a box displaced by the Gaussian's radius with the box itself.
        min_radius: smallest radius of a Gaussian, cells.
        log_size: regress logarithms of the sizes.
        velocity: regress the velocity too.
    """

    classes_per_task: Tuple[int, ...]
    lower: Tuple[float, float]
    voxel_size: Tuple[float, float]
    stride: int
    shape: Tuple[int, int]
    max_objects: int = 500
    gaussian_overlap: float = 0.1
    min_radius: int = 2
    log_size: bool = True
    velocity: bool = True

    @classmethod
    def from_train_cfg(
        cls, train_cfg: Mapping[str, Any], classes_per_task: Sequence[int], log_size: bool, velocity: bool
    ) -> CenterTargetConfig:
        """From ``train_cfg`` in CenterHead's vocabulary.

        Raises:
            ValueError: an entry is missing, or the grid is no multiple of the stride.
        """
        missing = [name for name in _SETTINGS if name not in train_cfg]
        if missing:
            raise ValueError(f'train_cfg lacks {", ".join(missing)}; it has {", ".join(sorted(train_cfg))}')
        grid, stride = train_cfg['grid_size'], int(train_cfg['out_size_factor'])
        if stride < 1 or any(int(side) % stride for side in grid[:2]):
            raise ValueError(f'train_cfg: grid_size {list(grid[:2])} is no multiple of out_size_factor {stride}')
        bounds, voxel = train_cfg['point_cloud_range'], train_cfg['voxel_size']
        return cls(
            classes_per_task=tuple(classes_per_task),
            lower=(float(bounds[0]), float(bounds[1])),
            voxel_size=(float(voxel[0]), float(voxel[1])),
            stride=stride,
            shape=(int(grid[0]) // stride, int(grid[1]) // stride),
            max_objects=int(train_cfg['max_objs']) * int(train_cfg.get('dense_reg', 1)),
            gaussian_overlap=float(train_cfg['gaussian_overlap']),
            min_radius=int(train_cfg.get('min_radius', 2)),
            log_size=log_size,
            velocity=velocity,
        )

    @property
    def num_classes(self) -> int:
        return sum(self.classes_per_task)

    @property
    def channels(self) -> int:
        """R: offset 2, height 1, size 3, sine and cosine 2, velocity 2."""
        return 10 if self.velocity else 8


class CenterTargets(NamedTuple):
    """One entry a task, in the order that mmdet3d's ``get_targets_single`` returns.

    heatmaps: (classes of the task, Y, X). boxes: (K, R). indices: (K,) y * X + x. masks: (K,) uint8, 1 where a slot holds a box.
    """

    heatmaps: List[Tensor]
    boxes: List[Tensor]
    indices: List[Tensor]
    masks: List[Tensor]


class TaskTargets(NamedTuple):
    """One task's targets, stacked over B samples: as in :class:`CenterTargets`, each with B in front."""

    heatmaps: Tensor
    boxes: Tensor
    indices: Tensor
    masks: Tensor


def gaussian_radius(length: Tensor, width: Tensor, min_overlap: float) -> Tensor:
    """Largest displacement of both corners of a box that keeps the IoU at ``min_overlap``, for many boxes (CornerNet, section 3.1).

    The three cases (both corners outwards, both inwards, one each) are solved as CornerNet's code does, whose constants the
    checkpoints were trained with; products are in its order too, since the result is cut to whole cells.

    Args:
        length, width: (M,) cells.
        min_overlap: IoU.

    Returns: (M,) cells.
    """
    around = length + width
    mixed = (around + torch.sqrt(around**2 - 4 * (width * length * (1 - min_overlap) / (1 + min_overlap)))) / 2
    twice = 2 * around
    inwards = (twice + torch.sqrt(twice**2 - 16 * ((1 - min_overlap) * width * length))) / 2
    linear, constant = -2 * min_overlap * around, (min_overlap - 1) * width * length
    outwards = (linear + torch.sqrt(linear**2 - 16 * min_overlap * constant)) / 2
    return torch.minimum(torch.minimum(mixed, inwards), outwards)


def draw_gaussians(classes: Tensor, cells: Tensor, radii: Tensor, shape: Tuple[int, int, int]) -> Tensor:
    """Heat maps with a Gaussian of sigma (2 r + 1) / 6 around each cell, cut off at r cells; where several meet, the largest counts.

    Args:
        classes: (M,) the map of each Gaussian.
        cells: (M, 2) whole (x, y), inside the map.
        radii: (M,) whole cells.
        shape: (C, Y, X).

    Returns: (C, Y, X) float32, 1 at the cells themselves.
    """
    _, height, width = shape
    heatmaps = torch.zeros(shape, device=cells.device)
    if len(cells) == 0:
        return heatmaps
    # One window for all Gaussians, as wide as the widest: offsets (W * W,) from a centre, W = 2 * reach + 1
    reach = min(int(radii.max()), max(height, width))
    steps = torch.arange(-reach, reach + 1, device=cells.device)
    dy, dx = (steps.repeat_interleave(len(steps)), steps.repeat(len(steps)))
    # Cells (M, W * W) of each window, and those of them within its own radius and on the map
    x, y = cells[:, :1] + dx, cells[:, 1:] + dy
    drawn = (torch.maximum(dx.abs(), dy.abs()) <= radii[:, None]) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # Where Gaussians of one class meet, the largest value stays
    sigma = (2 * radii.double() + 1) / 6
    values = torch.exp(-(dx * dx + dy * dy).double() / (2 * sigma * sigma)[:, None]).float()
    places = (classes[:, None] * height + y) * width + x
    heatmaps.view(-1).scatter_reduce_(0, places[drawn], values[drawn], reduce='amax')
    return heatmaps


def center_targets(boxes: Tensor, labels: Tensor, config: CenterTargetConfig) -> CenterTargets:
    """Targets of one sample; the numbers are those of mmdet3d's loop over the boxes.

    A box is left out if its label is negative, its centre lies outside the raster or is no number, it has no extent in the plane, or its
    task is full. A centre less than a cell below the lower edge belongs to the first cell.

    Args:
        boxes: (M, 7 or 9) x, y, z of the centre of gravity, sizes along x, y, z, yaw, velocity along x, y (may be NaN).
        labels: (M,) classes, counted through the tasks.
        config: the sizes.

    Raises:
        ValueError: boxes without the velocity that the configuration wants, or a class beyond the tasks.
    """
    _check(boxes, labels, config)
    # Boxes with a class, task by task and class by class; each with its task and its slot there, (M,)
    order = torch.argsort(labels, stable=True)
    order = order[labels[order] >= 0]
    boxes, labels = boxes[order], labels[order].long()
    tasks, slots = _slots(labels, config.classes_per_task)
    # Metres to cells of the heat maps: extents and centres (M, 2), and the whole cell that holds each centre
    voxel_size, lower = boxes.new_tensor(config.voxel_size), boxes.new_tensor(config.lower)
    extents = boxes[:, 3:5] / voxel_size / config.stride
    centres = (boxes[:, :2] - lower) / voxel_size / config.stride
    cells = centres.trunc()
    # Boxes that can be learnt: a cell of the raster, an extent, a free slot
    inside = ((cells >= 0) & (cells < cells.new_tensor(config.shape))).all(1)
    used = inside & (extents > 0).all(1) & extents.isfinite().all(1) & (slots < config.max_objects)

    boxes, labels, tasks, slots = boxes[used], labels[used], tasks[used], slots[used]
    extents, centres, cells = extents[used], centres[used], cells[used].long()
    # Heat maps (C, Y, X): the larger a box in the plane, the wider its Gaussian
    radii = gaussian_radius(extents[:, 1], extents[:, 0], config.gaussian_overlap).long().clamp(min=config.min_radius)
    size_x, size_y = config.shape
    heatmaps = draw_gaussians(labels, cells, radii, (config.num_classes, size_y, size_x))

    # A row of R numbers, a cell and a mark for each box, at [task, slot] of (T, K)
    shape = (len(config.classes_per_task), config.max_objects)
    values = boxes.new_zeros((*shape, config.channels), dtype=torch.float32)
    indices = torch.zeros(shape, dtype=torch.long, device=boxes.device)
    masks = torch.zeros(shape, dtype=torch.uint8, device=boxes.device)
    values[tasks, slots] = _regression(boxes, centres - cells, config).float()
    indices[tasks, slots] = cells[:, 1] * size_x + cells[:, 0]
    masks[tasks, slots] = 1
    return CenterTargets(list(heatmaps.split(list(config.classes_per_task))), list(values), list(indices), list(masks))


def _check(boxes: Tensor, labels: Tensor, config: CenterTargetConfig) -> None:
    wanted = 9 if config.velocity else 7
    if boxes.dim() != 2 or boxes.shape[1] < wanted:
        raise ValueError(f'boxes must be (M, {wanted}), got {tuple(boxes.shape)}')
    if len(boxes) != len(labels):
        raise ValueError(f'{len(boxes)} boxes have {len(labels)} labels')
    if len(labels) and int(labels.max()) >= config.num_classes:
        raise ValueError(f'a box has label {int(labels.max())}; the tasks have classes 0..{config.num_classes - 1}')


def _slots(labels: Tensor, classes_per_task: Sequence[int]) -> Tuple[Tensor, Tensor]:
    """Task of each box and its place among the task's boxes; labels (M,) ascending."""
    counts = torch.tensor(classes_per_task, device=labels.device)
    task_of_class = torch.repeat_interleave(torch.arange(len(counts), device=labels.device), counts)
    tasks = task_of_class[labels]
    boxes_per_task = torch.bincount(tasks, minlength=len(counts))
    first = boxes_per_task.cumsum(0) - boxes_per_task
    return tasks, torch.arange(len(labels), device=labels.device) - first[tasks]


def _regression(boxes: Tensor, offsets: Tensor, config: CenterTargetConfig) -> Tensor:
    sizes, yaw = boxes[:, 3:6], boxes[:, 6:7]
    parts = [offsets, boxes[:, 2:3], sizes.log() if config.log_size else sizes, yaw.sin(), yaw.cos()]
    if config.velocity:
        parts.append(boxes[:, 7:9])
    return torch.cat(parts, dim=1)

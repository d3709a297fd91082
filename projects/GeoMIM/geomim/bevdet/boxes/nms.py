"""Which of a task's boxes stay: rotated IoU or centre distance in the bird's eye view, with sizes rescaled first (scale-NMS of BEVDet).

Shape legend: M boxes. Metres, radians.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Mapping, Optional, Sequence, Tuple

import torch
from mmdet3d.models.layers import circle_nms, nms_bev
from mmdet3d.structures import xywhr2xyxyr
from torch import Tensor

NMS_TYPES = ('rotate', 'circle')


@dataclass(frozen=True)
class TaskNMS:
    """Non-maximum suppression of one task, over all of its classes together.

    Args:
        kind: ``'rotate'`` or ``'circle'``.
        threshold: IoU for ``'rotate'``, square metres between centres for ``'circle'``.
        scales: for ``'rotate'``, a factor a class on the boxes' sizes; the boxes themselves keep their sizes.
        pre_max_size: for ``'rotate'``, best boxes that take part.
        post_max_size: most boxes that stay.
    """

    kind: str
    threshold: float
    scales: Tuple[float, ...]
    pre_max_size: Optional[int] = None
    post_max_size: Optional[int] = None

    def select(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Indices (kept,) of the boxes that stay, the best first.

        Args:
            boxes: (M, 7 or more) x, y, z, sizes along x, y, z, yaw.
            scores: (M,).
            labels: (M,) class within the task.
        """
        if len(boxes) == 0:
            return torch.zeros_like(labels, dtype=torch.long)
        if self.kind == 'circle':
            places = torch.cat([boxes[:, :2], scores[:, None]], dim=1).detach().cpu().numpy()
            kept = circle_nms(places, self.threshold, self.post_max_size or len(boxes))
            return torch.tensor(kept, dtype=torch.long, device=boxes.device)
        scales = boxes.new_tensor(self.scales)[labels.long(), None]
        planar = torch.cat([boxes[:, :2], boxes[:, 3:5] * scales, boxes[:, 6:7]], dim=1)
        return nms_bev(xywhr2xyxyr(planar), scores, self.threshold, self.pre_max_size, self.post_max_size)


def nms_of_tasks(test_cfg: Mapping[str, Any], classes_per_task: Sequence[int]) -> Tuple[TaskNMS, ...]:
    """One :class:`TaskNMS` a task from ``test_cfg`` in BEVDet's vocabulary.

    ``nms_type`` and ``nms_thr`` are one value or one a task; ``nms_rescale_factor`` has one entry a task, a number or one a class;
    ``min_radius`` one a task (only ``'circle'`` reads it).

    Raises:
        ValueError: an unknown type, a missing entry, or a list that does not fit the tasks.
    """
    tasks = len(classes_per_task)
    kinds = _per_task(test_cfg, 'nms_type', tasks)
    unknown = [kind for kind in kinds if kind not in NMS_TYPES]
    if unknown:
        raise ValueError(f'test_cfg.nms_type {unknown[0]!r} is unknown; known are {", ".join(NMS_TYPES)}')
    overlaps = _per_task(test_cfg, 'nms_thr', tasks) if 'rotate' in kinds else [0.0] * tasks
    distances = _per_task(test_cfg, 'min_radius', tasks, single=False) if 'circle' in kinds else [0.0] * tasks
    scales: List[Any] = [1.0] * tasks
    if test_cfg.get('nms_rescale_factor') is not None:
        scales = _per_task(test_cfg, 'nms_rescale_factor', tasks, single=False)
    return tuple(
        TaskNMS(
            kind=kinds[task],
            threshold=float(distances[task] if kinds[task] == 'circle' else overlaps[task]),
            scales=_class_scales(scales[task], task, classes_per_task[task]),
            pre_max_size=_limit(test_cfg, 'pre_max_size'),
            post_max_size=_limit(test_cfg, 'post_max_size'),
        )
        for task in range(tasks)
    )


def _per_task(test_cfg: Mapping[str, Any], name: str, tasks: int, single: bool = True) -> List[Any]:
    if test_cfg.get(name) is None:
        raise ValueError(f'test_cfg lacks {name}; it has {", ".join(sorted(test_cfg))}')
    value = test_cfg[name]
    if not isinstance(value, (list, tuple)):
        if not single:
            raise ValueError(
                f'test_cfg.{name} must be a list with an entry for each of the {tasks} tasks, got {value!r}'
            )
        return [value] * tasks
    if len(value) != tasks:
        raise ValueError(f'test_cfg.{name} has {len(value)} entries for {tasks} tasks: {list(value)}')
    return list(value)


def _class_scales(scale: Any, task: int, classes: int) -> Tuple[float, ...]:
    scales = tuple(map(float, scale)) if isinstance(scale, (list, tuple)) else (float(scale),) * classes
    if len(scales) != classes or min(scales) <= 0:
        raise ValueError(
            f'test_cfg.nms_rescale_factor of task {task} must be a positive number, or {classes} of them, one a class; '
            f'got {scale!r}'
        )
    return scales


def _limit(test_cfg: Mapping[str, Any], name: str) -> Optional[int]:
    value = test_cfg.get(name)
    if value is None:
        return None
    if int(value) < 1:
        raise ValueError(f'test_cfg.{name} must be at least 1 or None, got {value}')
    return int(value)

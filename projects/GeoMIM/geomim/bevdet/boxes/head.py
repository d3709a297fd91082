"""BEVDet's detection head: CenterPoint's, with a loss a part of the box, averages over all ranks and scale-NMS.

Shape legend: B samples, T tasks, C classes of a task, K target slots, Y x X cells. Metres, radians.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from mmdet.utils import reduce_mean
from mmdet3d.models.dense_heads import CenterHead
from mmdet3d.models.task_modules import CenterPointBBoxCoder
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

from ...method.target import at_least_float32
from ...teachers.base import not_compiled
from .decoding import CenterDecoder, Detections, gather_cells
from .nms import TaskNMS, nms_of_tasks
from .targets import CenterTargetConfig, CenterTargets, TaskTargets, center_targets


class _BoxPart(NamedTuple):
    loss: str
    branch: str
    channels: int


# In the order of the targets' channels.
_BOX_PARTS = (
    _BoxPart('xy', 'reg', 2),
    _BoxPart('z', 'height', 1),
    _BoxPart('whl', 'dim', 3),
    _BoxPart('yaw', 'rot', 2),
    _BoxPart('vel', 'vel', 2),
)
_CLIP = 1e-4  # of the heat map's probabilities, before the logarithm
_FEWEST_PEAKS, _FEWEST_BOXES = 1.0, 1e-4  # floors of the averaging factors, for batches without boxes
_COUNT_EPS = 1e-4


@MODELS.register_module()
class BEVDetCenterHead(CenterHead):
    """mmdet3d's CenterHead with BEVDet's losses and post-processing (arXiv 2112.11790); parameters have the same names.

    Args:
        tasks: a dict a task with ``class_names``; labels count through the tasks in order.
        bbox_coder: config of a ``CenterPointBBoxCoder``: cells to metres, score threshold, range of centres.
        common_heads: ``reg``, ``height``, ``dim``, ``rot`` and, to regress velocities, ``vel``, each (channels, convolutions).
        train_cfg, test_cfg: CenterHead's, with BEVDet's lists by task in ``nms_type``, ``nms_thr`` and ``nms_rescale_factor``.
        center_head: the other arguments of mmdet3d's CenterHead. ``separate_head.init_bias`` is where the heat maps' biases start;
            without it torch draws them, as in the published runs, whose host never came to set its -2.19.

    Raises:
        ValueError: settings that do not fit the tasks or each other.
    """

    def __init__(
        self,
        tasks: Sequence[Dict[str, Any]],
        bbox_coder: Dict[str, Any],
        common_heads: Dict[str, Sequence[int]],
        train_cfg: Optional[Dict[str, Any]] = None,
        test_cfg: Optional[Dict[str, Any]] = None,
        **center_head: Any,
    ) -> None:
        _check_tasks(tasks)
        _check_branches(common_heads)
        center_head.setdefault('separate_head', dict(type='SeparateHead', final_kernel=3))
        center_head.setdefault('loss_bbox', dict(type='mmdet.L1Loss', reduction='mean', loss_weight=0.25))
        super().__init__(  # on copies: the parent writes into its configuration
            tasks=deepcopy(list(tasks)),
            bbox_coder=deepcopy(bbox_coder),
            common_heads=deepcopy(common_heads),
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            **deepcopy(center_head),
        )
        self.heatmap_bias: Optional[float] = center_head['separate_head'].get('init_bias')
        self.box_parts = tuple(part for part in _BOX_PARTS if part.branch in common_heads)
        self.target_config = self._target_config()
        self.decoder = self._decoder()
        self.task_nms: Optional[Tuple[TaskNMS, ...]] = nms_of_tasks(test_cfg, self.num_classes) if test_cfg else None
        for name in ('loss_cls', 'loss_bbox'):
            if getattr(self, name).reduction != 'mean':
                raise ValueError(f"{name} must have reduction='mean', got {getattr(self, name).reduction!r}")

    def init_weights(self) -> None:
        """As every module's; heat maps begin at ``init_bias`` where it is given, which a plain list of task heads hides from mmengine.

        The other weights of the task heads stay as torch draws them, as in the published code: wider ones flood the first heat maps.
        """
        super().init_weights()
        if self.heatmap_bias is not None:
            for head in self.task_heads:
                torch.nn.init.constant_(head.heatmap[-1].bias, self.heatmap_bias)

    @property
    def with_velocity(self) -> bool:
        return self.box_parts[-1].branch == 'vel'

    def forward(self, feats: Sequence[Tensor]) -> Tuple[List[Dict[str, Tensor]], ...]:
        """One BEV map [(B, channels, Y, X)] -> for each task a list of one dict of maps.

        Raises:
            ValueError: more or fewer than one level.
        """
        if isinstance(feats, Tensor) or len(feats) != 1:
            got = 'a tensor' if isinstance(feats, Tensor) else f'{len(feats)} levels'
            raise ValueError(f'the head takes a list of one BEV map, got {got}')
        return super().forward(feats)

    @not_compiled
    def get_targets(self, batch_gt_instances_3d: Sequence[InstanceData]) -> Tuple[List[Tensor], ...]:
        """CenterHead's: lists over the tasks of heat maps, boxes, their cells and masks, each (B, ...)."""
        targets: Tuple[List[Tensor], ...] = super().get_targets(batch_gt_instances_3d)
        return targets

    def get_targets_single(self, gt_instances_3d: InstanceData) -> CenterTargets:
        """Targets of one sample, see :func:`~.center_targets.center_targets`; ``get_targets`` stacks them over the batch.

        Raises:
            ValueError: no ``train_cfg``, or boxes or labels that do not fit the head.
        """
        if self.target_config is None:
            raise ValueError('the head was built without train_cfg and has no targets')
        labels, boxes = gt_instances_3d.labels_3d, gt_instances_3d.bboxes_3d
        values = torch.cat([boxes.gravity_center, boxes.tensor[:, 3:]], dim=1).to(labels.device)
        return center_targets(values, labels, self.target_config)

    def loss_by_feat(
        self,
        preds_dicts: Sequence[List[Dict[str, Tensor]]],
        batch_gt_instances_3d: Sequence[InstanceData],
        *args: Any,
        **kwargs: Any,
    ) -> Dict[str, Tensor]:
        """Losses by name, computed in float32 (or float64) whatever the maps' type.

        ``task{t}.loss_heatmap`` is averaged over the peaks, ``task{t}.loss_{xy,z,whl,yaw,vel}`` over the boxes of the task, both means over
        the ranks and never less than a floor. Target values that are no finite number (a NaN velocity) do not count.

        Args:
            preds_dicts: of :meth:`forward`.
            batch_gt_instances_3d: B times ``bboxes_3d`` and ``labels_3d``.

        Raises:
            ValueError: targets whose raster is not that of the maps.
        """
        targets = CenterTargets(*self.get_targets(batch_gt_instances_3d))
        factors = _averaging_factors(targets)
        losses: Dict[str, Tensor] = {}
        for task, (levels, *of_task) in enumerate(zip(preds_dicts, *targets)):
            maps = {name: at_least_float32(value) for name, value in levels[0].items()}
            for part, value in self._task_losses(maps, TaskTargets(*of_task), *factors[task]).items():
                losses[f'task{task}.loss_{part}'] = value
        return losses

    def predict_by_feat(
        self,
        preds_dicts: Sequence[List[Dict[str, Tensor]]],
        batch_input_metas: Sequence[Dict[str, Any]],
        *args: Any,
        **kwargs: Any,
    ) -> List[InstanceData]:
        """Boxes of each sample: decoded, suppressed by task, and at most ``test_cfg['max_per_img']`` of them.

        Args:
            preds_dicts: of :meth:`forward`.
            batch_input_metas: B dicts; ``box_type_3d`` is the boxes' class, LiDARInstance3DBoxes where it is absent.

        Returns: ``bboxes_3d`` (z at the bottom, 9 numbers with velocity, 7 without), ``scores_3d`` and ``labels_3d``, which
            counts through the tasks, in the order of the tasks, the best of each first.

        Raises:
            ValueError: no ``test_cfg``.
        """
        if self.task_nms is None:
            raise ValueError('the head was built without test_cfg and cannot suppress boxes')
        by_task = [self._detections(nms, maps) for nms, (maps, *_) in zip(self.task_nms, preds_dicts)]
        return [self._instances(found, meta) for found, meta in zip(zip(*by_task), batch_input_metas)]

    def _task_losses(
        self, maps: Dict[str, Tensor], targets: TaskTargets, peaks: Tensor, boxes: Tensor
    ) -> Dict[str, Tensor]:
        """Losses of one task, averaged over the numbers of peaks and boxes."""
        _check_raster(maps['heatmap'], targets.heatmaps)
        finite = targets.boxes.isfinite()
        wanted = torch.where(finite, targets.boxes, torch.zeros_like(targets.boxes))
        weights = (targets.masks[..., None] * finite) * wanted.new_tensor(self.train_cfg['code_weights'])
        channels = [part.channels for part in self.box_parts]
        losses: Dict[str, Tensor] = {}
        for part, target, weight in zip(self.box_parts, wanted.split(channels, -1), weights.split(channels, -1)):
            found = gather_cells(maps[part.branch], targets.indices)
            losses[part.loss] = self.loss_bbox(found, target, weight, avg_factor=boxes)
        probabilities = maps['heatmap'].sigmoid().clamp(_CLIP, 1 - _CLIP)
        losses['heatmap'] = self.loss_cls(probabilities, targets.heatmaps, avg_factor=peaks)
        return losses

    def _detections(self, nms: TaskNMS, maps: Dict[str, Tensor]) -> List[Detections]:
        """Boxes of each sample for one task."""
        candidates = self.decoder.decode({name: at_least_float32(value) for name, value in maps.items()})
        return [found.take(nms.select(*found)) for found in candidates]

    def _instances(self, by_task: Sequence[Detections], meta: Dict[str, Any]) -> InstanceData:
        offsets = [sum(self.num_classes[:task]) for task in range(len(by_task))]
        boxes = torch.cat([found.boxes for found in by_task])
        scores = torch.cat([found.scores for found in by_task])
        labels = torch.cat([found.labels + offset for found, offset in zip(by_task, offsets)]).int()
        most = self.test_cfg.get('max_per_img')
        if most is not None and len(scores) > most:
            best = scores.argsort(descending=True, stable=True)[:most].sort().values
            boxes, scores, labels = boxes[best], scores[best], labels[best]
        bottom = torch.cat([boxes[:, :2], boxes[:, 2:3] - boxes[:, 5:6] * 0.5, boxes[:, 3:]], dim=1)
        box_type = meta.get('box_type_3d', LiDARInstance3DBoxes)
        return InstanceData(bboxes_3d=box_type(bottom, bottom.shape[1]), scores_3d=scores, labels_3d=labels)

    def _target_config(self) -> Optional[CenterTargetConfig]:
        if not self.train_cfg:
            return None
        config = CenterTargetConfig.from_train_cfg(self.train_cfg, self.num_classes, self.norm_bbox, self.with_velocity)
        weights = self.train_cfg.get('code_weights')
        if weights is None or len(weights) != config.channels:
            raise ValueError(f'train_cfg.code_weights must have {config.channels} numbers, got {weights}')
        return config

    def _decoder(self) -> CenterDecoder:
        if not isinstance(self.bbox_coder, CenterPointBBoxCoder):
            raise ValueError(f'bbox_coder must be a CenterPointBBoxCoder, got {type(self.bbox_coder).__name__}')
        code_size = sum(part.channels for part in self.box_parts) - 1  # sine and cosine give one yaw
        if self.bbox_coder.code_size != code_size:
            raise ValueError(f'bbox_coder.code_size must be {code_size}, got {self.bbox_coder.code_size}')
        decoder, targets = CenterDecoder.from_coder(self.bbox_coder, self.norm_bbox), self.target_config
        if targets is not None:
            for name in ('lower', 'voxel_size', 'stride'):
                coded, wanted = getattr(decoder, name), getattr(targets, name)
                if coded != wanted:
                    raise ValueError(f'{name} is {wanted} in train_cfg and {coded} in bbox_coder; they must agree')
        return decoder


def _averaging_factors(targets: CenterTargets) -> Tensor:
    """(T, 2) peaks and boxes of each task: means over the ranks, in one reduction, with their floors."""
    counts = torch.stack(
        [torch.stack([heatmaps.eq(1).sum(), masks.sum()]) for heatmaps, masks in zip(targets.heatmaps, targets.masks)]
    ).float()
    counts = torch.maximum(reduce_mean(counts), counts.new_tensor([_FEWEST_PEAKS, _FEWEST_BOXES]))
    return counts + counts.new_tensor([0.0, _COUNT_EPS])


def _check_tasks(tasks: Sequence[Dict[str, Any]]) -> None:
    if not tasks:
        raise ValueError('tasks is empty; it needs a dict with class_names for each task')
    for index, task in enumerate(tasks):
        names = task.get('class_names')
        if not names:
            raise ValueError(f'task {index} has no class_names: {dict(task)}')
        if task.get('num_class', len(names)) != len(names):
            raise ValueError(
                f'task {index} has num_class {task["num_class"]} and {len(names)} class_names {list(names)}'
            )
    names = [name for task in tasks for name in task['class_names']]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f'classes must belong to one task, but {", ".join(repeated)} comes up more than once')


def _check_branches(common_heads: Dict[str, Sequence[int]]) -> None:
    parts = {part.branch: part.channels for part in _BOX_PARTS}
    missing = [branch for branch in parts if branch not in common_heads and branch != 'vel']
    unknown = [branch for branch in common_heads if branch not in parts]
    if missing or unknown:
        raise ValueError(f'common_heads must be {", ".join(parts)} (vel may lack), got {", ".join(common_heads)}')
    for branch, (channels, *_) in common_heads.items():
        if channels != parts[branch]:
            raise ValueError(f'common_heads.{branch} must have {parts[branch]} channels, got {channels}')


def _check_raster(maps: Tensor, heatmaps: Tensor) -> None:
    if maps.shape != heatmaps.shape:
        raise ValueError(
            f'the heat maps are {tuple(maps.shape)} (samples, classes, y, x), but train_cfg and the ground truth give '
            f'{tuple(heatmaps.shape)}'
        )

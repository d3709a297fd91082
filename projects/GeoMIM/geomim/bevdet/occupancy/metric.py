"""Mean intersection over union (IoU) of occupancy.

Shape legend: X x Y x Z voxels; K classes, the last of which is 'free'.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS

from ...mmengine.rig import sample_name
from .labels import OCCUPANCY_CLASSES


def confusion(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) int64: how many voxels of each true class (row) were found to be of each class (column)."""
    pairs = truth.astype(np.int64).ravel() * classes + found.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def intersection_over_union(matrix: np.ndarray) -> np.ndarray:
    """(K,) of a confusion matrix; NaN for a class that neither is there nor was found."""
    hits = np.diag(matrix).astype(float)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


@METRICS.register_module()
class OccupancyMetric(BaseMetric):
    """Occ3D's score: IoU of every class over all samples' voxels together, and its mean over the classes but 'free'.

    Samples carry ``pred_occupancy`` (semantics) and ``gt_occupancy`` (semantics, mask_lidar, mask_camera), each (X, Y, Z).

    Args:
        mask: voxels that count: 'camera', those that a camera sees (the published figures); 'lidar'; None, all of them.
        class_names: the last one is 'free'.
        collect_device: as of every metric.

    Returns (``evaluate``):
        ``occupancy/mIoU`` and ``occupancy/IoU_CLASS``, percent. A class that occurs nowhere is NaN and left out of the mean.

    Raises:
        ValueError: another mask; a sample without labels or predictions, or of different shapes; a class that is none.
    """

    default_prefix = 'occupancy'

    def __init__(
        self,
        mask: Optional[str] = 'camera',
        class_names: Sequence[str] = OCCUPANCY_CLASSES,
        collect_device: str = 'cpu',
    ) -> None:
        super().__init__(collect_device=collect_device)
        if mask not in ('camera', 'lidar', None):
            raise ValueError(f"OccupancyMetric: mask must be 'camera', 'lidar' or None, got {mask!r}")
        self.mask, self.class_names = mask, tuple(class_names)

    def process(self, data_batch: Any, data_samples: Sequence[Dict[str, Any]]) -> None:
        """Take in a batch of predictions."""
        self.results.extend(self._count(sample) for sample in data_samples)

    def compute_metrics(self, results: List[np.ndarray]) -> Dict[str, float]:
        """The scores of all samples' counts."""
        ious = 100 * intersection_over_union(np.sum(results, axis=0))[:-1]
        mean = float(np.nanmean(ious)) if not np.isnan(ious).all() else float('nan')
        lines = [f'{name:22}{iou:7.2f}' for name, iou in zip((*self.class_names[:-1], 'mIoU'), (*ious, mean))]
        print_log(f'IoU of {len(results)} samples, percent\n' + '\n'.join(lines), 'current')
        return {'mIoU': mean, **{f'IoU_{name}': float(iou) for name, iou in zip(self.class_names, ious)}}

    def _count(self, sample: Dict[str, Any]) -> np.ndarray:
        where = sample_name(sample)
        absent = [name for name in ('gt_occupancy', 'pred_occupancy') if name not in sample]
        if absent:
            raise ValueError(
                f'{where}: no {", ".join(absent)} to score; labels come from LoadOccupancyLabels, which the pipeline of the '
                'evaluation needs too, predictions from BEVStereo4DOCC'
            )
        truth, found = (_array(sample[name]['semantics']) for name in ('gt_occupancy', 'pred_occupancy'))
        if truth.shape != found.shape:
            raise ValueError(f'{where}: {found.shape} voxels predicted, {truth.shape} labelled')
        classes = len(self.class_names)
        for name, labels in (('label', truth), ('prediction', found)):
            if labels.size and not 0 <= labels.min() <= labels.max() < classes:
                raise ValueError(
                    f'{where}: {name} of class {labels.max() if labels.max() >= classes else labels.min()}, '
                    f'there are 0..{classes - 1}'
                )
        if self.mask is not None:
            counts = _array(sample['gt_occupancy'][f'mask_{self.mask}']).astype(bool)
            truth, found = truth[counts], found[counts]
        return confusion(truth, found, classes)


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.cpu() if hasattr(values, 'cpu') else values)

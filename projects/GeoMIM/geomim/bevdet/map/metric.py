"""Intersection over union (IoU) of map segmentation.

Shape legend: C classes, T thresholds, Y x X cells.
"""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from torch import Tensor

from ...mmengine.rig import sample_name


def count_cells(probabilities: Tensor, labels: Tensor, thresholds: Sequence[float]) -> Tensor:
    """(3, C, T) int64: cells found rightly, found wrongly and missed, of maps (C, Y, X)."""
    found = probabilities[:, None] >= probabilities.new_tensor(thresholds).view(1, -1, 1, 1)
    there = labels[:, None].bool().expand_as(found)
    return torch.stack([(a & b).sum(dim=(2, 3)) for a, b in ((found, there), (found, ~there), (~found, there))])


@METRICS.register_module()
class BEVMapIoU(BaseMetric):
    """BEVFusion's score of maps (arXiv 2205.13542): IoU over all samples' cells together, at the threshold that suits a class best.

    Samples carry ``pred_bev_map`` (probabilities) and ``gt_bev_map``, each with ``data`` (C, Y, X) and its classes and bounds.

    Args:
        thresholds: of the probabilities.
        collect_device, prefix: as of every metric.

    Returns (``evaluate``):
        ``map/mIoU`` over the classes, ``map/IoU_CLASS`` at its best threshold, and ``map/IoU_CLASS@THRESHOLD``, percent. A class without
        a labelled cell in all samples is NaN and left out of the mean, where BEVFusion gives 0.

    Raises:
        ValueError: no threshold within (0, 1); a sample without prediction or labels, or of different classes or rasters.
    """

    default_prefix = 'map'

    def __init__(
        self,
        thresholds: Sequence[float] = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65),
        collect_device: str = 'cpu',
        prefix: Any = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not thresholds or not all(0 < threshold < 1 for threshold in thresholds):
            raise ValueError(f'BEVMapIoU: thresholds must lie between 0 and 1, got {list(thresholds)}')
        self.thresholds = tuple(float(threshold) for threshold in thresholds)

    def process(self, data_batch: Any, data_samples: Sequence[Dict[str, Any]]) -> None:
        """Take in a batch of predictions."""
        self.results.extend(self._count(sample) for sample in data_samples)

    def compute_metrics(self, results: List[Dict[str, Any]]) -> Dict[str, float]:
        """The scores of all samples' counts."""
        names = results[0]['classes']
        hits, false, missed = torch.stack([result['counts'] for result in results]).sum(dim=0).double()
        ious = 100 * hits / (hits + false + missed).clamp(min=1)
        ious[(hits + missed)[:, 0] == 0] = float('nan')
        best = ious.max(dim=1).values
        scores = {'mIoU': float(best.nanmean())}
        scores.update({f'IoU_{name}': float(value) for name, value in zip(names, best)})
        print_log(
            f'IoU of {len(results)} maps, percent\n'
            + '\n'.join(f'{name:18}{value:7.2f}' for name, value in scores.items()),
            'current',
        )
        for name, row in zip(names, ious):
            scores.update({f'IoU_{name}@{at:.2f}': float(value) for at, value in zip(self.thresholds, row)})
        return scores

    def _count(self, sample: Dict[str, Any]) -> Dict[str, Any]:
        where = sample_name(sample)
        absent = [name for name in ('gt_bev_map', 'pred_bev_map') if name not in sample]
        if absent:
            raise ValueError(
                f'{where}: no {", ".join(absent)} to score; labels come from LoadBEVMapLabels, which the pipeline of the '
                'evaluation needs too, predictions from a detector with a map_head'
            )
        truth, found = sample['gt_bev_map'], sample['pred_bev_map']
        for name in ('classes', 'x_bound', 'y_bound'):
            if tuple(truth[name]) != tuple(found[name]):
                raise ValueError(f'{where}: {name} of the predicted map is {found[name]}, of the labels {truth[name]}')
        return {'classes': truth['classes'], 'counts': count_cells(found['data'], truth['data'], self.thresholds).cpu()}

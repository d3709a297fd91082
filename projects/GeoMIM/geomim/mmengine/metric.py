"""How well a student reconstructs, over an evaluation set."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ..adapter.measures import count_behind


@METRICS.register_module()
class ReconstructionMetric(BaseMetric):
    """Means of the figures that ``GeoMIMPretrainer`` attaches to its samples in prediction.

    ``reconstruction_loss`` is to be read beside ``constant_map_loss`` (the best map without any spatial detail) and ``target_power`` (the
    zero map, 1 by construction up to the normalisation's unbiased variance).
    """

    default_prefix = 'geomim'

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        for sample in data_samples:
            metainfo = sample['metainfo'] if isinstance(sample, dict) and 'metainfo' in sample else sample
            figures = metainfo['geomim'] if isinstance(metainfo, dict) else metainfo.geomim
            self.results.append({name: float(value) for name, value in figures.items()})

    def compute_metrics(self, results: List[Dict[str, float]]) -> Dict[str, float]:
        means = {}
        for name in results[0]:
            count = count_behind(name)
            weights = [1.0 if count is None else row[count] for row in results]
            total = sum(row[name] * weight for row, weight in zip(results, weights))
            means[name] = total / max(1.0, sum(weights))
        means['explained'] = 1 - means['reconstruction_loss'] / means['constant_map_loss']
        return means

"""nuScenes' detection scores by the devkit, at official ranges and at shorter ones."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from mmdet3d.evaluation.metrics import NuScenesMetric
from mmengine.fileio import get, load
from mmengine.logging import print_log
from mmengine.registry import METRICS
from nuscenes import NuScenes
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import filter_eval_boxes
from nuscenes.eval.detection.data_classes import DetectionConfig
from nuscenes.eval.detection.evaluate import DetectionEval

from ..checkpoints.info_files import read_infos

SPLIT_OF = {'v1.0-mini': 'mini_val', 'v1.0-trainval': 'val'}
OFFICIAL = ''

Summary = Mapping[str, Any]


def range_names(within: Sequence[float]) -> Dict[str, float]:
    """``within_20m`` -> 20, and so on, metres.

    Raises:
        ValueError: a range that is no positive number.
    """
    wrong = [metres for metres in within if not 0 < metres < math.inf]
    if wrong:
        raise ValueError(f'within: ranges are metres above 0, such as (12, 20, 30); got {wrong[0]}')
    return {f'within_{metres:g}m': metres for metres in within}


def evaluate_within(
    tables: NuScenes, results: str, within: Sequence[float], config: DetectionConfig, folder: str
) -> Dict[str, Summary]:
    """The devkit's summaries of a results file: by ``OFFICIAL``, and by the name of each shorter range.

    A class's range becomes the smaller one of its official range and the given one, for predictions and annotations alike, and
    all else is the devkit's: distances are the ego vehicle's, and a class without a box in range counts as 0 in mAP. Such
    scores cannot be compared with published ones. Results and annotations are read once.

    Args:
        tables: of v1.0-trainval or v1.0-mini, whose validation split is scored.
        results: file in nuScenes' format, with every sample of the split.
        within: metres.
        config: the devkit's, with the official ranges.
        folder: for the devkit's own files.

    Raises:
        ValueError: no positive range, tables without annotations, results without a single box.
        AssertionError: the devkit's, of results that it refuses.
    """
    names = range_names(within)
    if tables.version not in SPLIT_OF:
        raise ValueError(f'{tables.version} has no annotations to score against; {" and ".join(SPLIT_OF)} have')
    if not has_boxes(results):
        raise ValueError(f'{results} has no box in any sample: mAP and NDS are 0 at every range')
    official = DetectionEval(tables, config, results, SPLIT_OF[tables.version], folder, verbose=False)
    summaries: Dict[str, Summary] = {OFFICIAL: official.main(render_curves=False)}
    for name, metres in names.items():
        summaries[name] = _shortened(official, metres).evaluate()[0].serialize()
    return summaries


def has_boxes(results: str) -> bool:
    """Whether a results file has a box at all, without which the devkit fails."""
    return any(load(results)['results'].values())


def _shortened(official: DetectionEval, metres: float) -> DetectionEval:
    """The evaluation of the boxes that are also within ``metres``; ``official`` stays as it is."""
    ranges = {name: min(limit, metres) for name, limit in official.cfg.class_range.items()}
    shorter = copy.copy(official)
    shorter.cfg = DetectionConfig.deserialize({**official.cfg.serialize(), 'class_range': ranges})
    shorter.pred_boxes, shorter.gt_boxes = EvalBoxes(), EvalBoxes()
    for boxes, chosen in ((official.pred_boxes, shorter.pred_boxes), (official.gt_boxes, shorter.gt_boxes)):
        for token in boxes.sample_tokens:
            chosen.add_boxes(token, boxes[token])
        if chosen.all:  # the devkit finds out by a box which kind they are
            filter_eval_boxes(official.nusc, chosen, ranges)
    return shorter


@METRICS.register_module()
class GeoMIMNuScenesMetric(NuScenesMetric):
    """mmdet3d's ``NuScenesMetric`` (same arguments), also at shorter ranges than the official ones.

    The info file is read without executing what it may hold before mmdet3d opens it. Where no sample has a box in range, as
    early in training, the scores are 0 with a warning; the devkit raises an obscure error.

    Args:
        within: metres, see :func:`evaluate_within`; for each range, NDS, mAP and AP by class and distance of a match come
            under names such as ``within_20m/mAP``, behind the official ones.

    Raises:
        ValueError: a range that is no positive number.
    """

    def __init__(self, *args: Any, within: Sequence[float] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.within = range_names(within)

    def compute_metrics(self, results: List[Dict[str, Any]]) -> Dict[str, float]:
        """mmdet3d's scores and those of the shorter ranges, or none with ``format_only``.

        Raises:
            ValueError: an info file that ``read_infos`` refuses; mmdet3d would execute what it holds.
        """
        read_infos(self.ann_file, get(self.ann_file, backend_args=self.backend_args))
        scores: Dict[str, float] = super().compute_metrics(results)
        return scores

    def _evaluate_single(
        self, result_path: str, classes: Optional[List[str]] = None, result_name: str = 'pred_instances_3d'
    ) -> Dict[str, float]:
        prefix = f'{result_name}_NuScenes'
        if not has_boxes(result_path):
            print_log('no sample has a box within its class range: mAP and NDS are 0', 'current', level=30)
            places = (prefix, *(f'{prefix}/{name}' for name in self.within))
            return {f'{place}/{score}': 0.0 for place in places for score in ('mAP', 'NDS')}
        if not self.within:
            scores: Dict[str, float] = super()._evaluate_single(result_path, classes, result_name)
            return scores
        summaries = evaluate_within(
            NuScenes(self.version, self.data_root, verbose=False),
            result_path,
            list(self.within.values()),
            self.eval_detection_configs,
            str(Path(result_path).parent),
        )
        official = summaries.pop(OFFICIAL)
        scores = {**self._errors(official, classes or (), prefix), **_precisions(official, classes or (), prefix)}
        for name, summary in summaries.items():
            scores.update(_precisions(summary, classes or (), f'{prefix}/{name}'))
        return scores

    def _errors(self, summary: Summary, classes: Sequence[str], prefix: str) -> Dict[str, float]:
        """Errors of the hits, of each class and their means, named and rounded as mmdet3d does."""
        errors = {f'{self.ErrNameMapping[kind]}': error for kind, error in summary['tp_errors'].items()}
        for name in classes:
            errors.update({f'{name}_{kind}': error for kind, error in summary['label_tp_errors'][name].items()})
        return {f'{prefix}/{name}': float(f'{error:.4f}') for name, error in errors.items()}


def _precisions(summary: Summary, classes: Sequence[str], place: str) -> Dict[str, float]:
    """NDS, mAP and AP by class and distance, named and rounded as mmdet3d does."""
    scores = {f'{place}/NDS': summary['nd_score'], f'{place}/mAP': summary['mean_ap']}
    for name in classes:
        for distance, precision in summary['label_aps'][name].items():
            scores[f'{place}/{name}_AP_dist_{distance}'] = float(f'{precision:.4f}')
    return scores

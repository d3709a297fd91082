"""What training and evaluation of a detector tell: losses, precisions, scores."""

from __future__ import annotations

import math
from typing import Dict, List, Mapping, Optional, Sequence

from run_folders import Point, Row, metric, validates

from geomim.synthetic.labels import DETECTION

from .model import Cell, Table

NUSCENES_CLASSES = tuple(DETECTION)
AP_DISTANCES = ('0.5', '1.0', '2.0', '4.0')  # metres, as the nuScenes metric spells them
TRUE_POSITIVE_ERRORS = {
    'mATE': 'translation, m',
    'mASE': 'scale, 1 - IoU',
    'mAOE': 'orientation, rad',
    'mAVE': 'velocity, m/s',
    'mAAE': 'attribute, 1 - accuracy',
}


def loss_parts(rows: Sequence[Row]) -> Dict[str, List[Point]]:
    """The total and its parts; what mmdet3d splits over tasks (task0.loss_heatmap, task1.loss_heatmap, ...) is summed."""
    parts: Dict[str, Dict[float, float]] = {}
    for row in (row for row in rows if not validates(row)):
        for key, value in row.items():
            name = key.rpartition('.')[2]
            if name.startswith('loss') and math.isfinite(value):
                points = parts.setdefault('total' if name == 'loss' else name, {})
                points[row['step']] = points.get(row['step'], 0.0) + value
    names = sorted(parts, key=lambda name: name != 'total')
    return {name: sorted(parts[name].items()) for name in names if len(parts) != 2 or name == 'total'}


def wide_range(lines: Mapping[str, Sequence[Point]]) -> bool:
    values = [y for points in lines.values() for _, y in points if y > 0]
    return bool(values) and max(values) > 30 * min(values)


def class_precision(metrics: Mapping[str, float], name: str) -> Optional[float]:
    """Average precision of a class, mean over the distances that are there."""
    scores = [metric(metrics, f'{name}_AP_dist_{distance}') for distance in AP_DISTANCES]
    found = [score for score in scores if score is not None]
    return sum(found) / len(found) if found else None


def precision_table(metrics: Mapping[str, float]) -> Optional[Table]:
    rows: List[List[Cell]] = []
    for name in NUSCENES_CLASSES:
        precision = class_precision(metrics, name)
        if precision is not None:
            scores = (metric(metrics, f'{name}_AP_dist_{distance}') for distance in AP_DISTANCES)
            rows.append([name, precision, *scores])
    mean = metric(metrics, 'mAP')
    if mean is None and not rows:
        return None
    rows.append(['mean (mAP)', mean, *(_mean_precision(metrics, distance) for distance in AP_DISTANCES)])
    caption = (
        'Average precision on the validation keyframes: mean, and by the distance between centres within which a detection is a hit. '
        'A class that does not occur in them counts as 0 in the mean.'
    )
    header = ('Class', 'AP', *(f'{float(distance):g} m' for distance in AP_DISTANCES))
    return Table(header, rows, caption, emphasis_column=1, emphasis_row=-1)


def _mean_precision(metrics: Mapping[str, float], distance: str) -> Optional[float]:
    """Mean over the classes, if all are there."""
    scores = [metric(metrics, f'{name}_AP_dist_{distance}') for name in NUSCENES_CLASSES]
    found = [score for score in scores if score is not None]
    return sum(found) / len(found) if len(found) == len(NUSCENES_CLASSES) else None


def score_table(metrics: Mapping[str, float]) -> Optional[Table]:
    rows: List[List[Cell]] = [[name, meaning, metric(metrics, name)] for name, meaning in TRUE_POSITIVE_ERRORS.items()]
    rows = [row for row in rows if row[2] is not None]
    caption = 'Errors of the hits within 2 m, means over the classes; lower is better.' if rows else ''
    detection = metric(metrics, 'NDS')
    if detection is not None:
        rows.append(['NDS', 'nuScenes detection score', detection])
        caption += ' NDS is half mAP and half the mean of 1 - error over the five errors, each error at most 1.'
    emphasis = -1 if detection is not None else None
    return Table(('Metric', 'Of', 'Value'), rows, caption.strip(), emphasis_row=emphasis) if rows else None

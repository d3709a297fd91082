"""The section about a detector that was finetuned with and without pretraining."""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Tuple

from run_folders import Point, metric, read_scalars

from .detection import NUSCENES_CLASSES, TRUE_POSITIVE_ERRORS, class_precision, loss_parts, wide_range
from .model import Card, Cell, Curves, Item, Note, Run, Section, Table

PRETRAINED, SCRATCH = 'from GeoMIM', 'from scratch'

_LOSSES = {'total': 'Training loss', 'loss_heatmap': 'Heat map loss', 'loss_depth': 'Depth loss'}
_BOX_LOSS = 'Box loss'  # all others, of the boxes' centres, sizes, headings and velocities


def finetuned_card(runs: Mapping[str, Run], keyframes: int = 0) -> List[Card]:
    """The mAP of the detector that started from GeoMIM, beside that of the other; none without it."""
    found = {name: metric(run.scores, 'mAP') for name, run in runs.items()}
    value, other = found.get(PRETRAINED), found.get(SCRATCH)
    if value is None:
        return []
    detail = '' if other is None else f'{PRETRAINED}; {SCRATCH} {other:.3f}; one seed'
    on = f' on {keyframes} validation keyframes' if keyframes else ''
    return [Card('Camera detector mAP', f'{value:.3f}', f'{detail}{on}'.strip())]


def finetuning_section(runs: Mapping[str, Run]) -> Section:
    """A detector finetuned with one seed from each of several starts, ``PRETRAINED`` and ``SCRATCH`` among them.

    What a run did not log or score is left out.
    """
    text = [
        'A BEVDepth4D, which sees nothing but camera pictures when it detects, is finetuned twice on the same data with the same number '
        "of iterations and the same seed. The one's image encoder starts from GeoMIM's pretraining, the other's from random weights; "
        'all else is equal.'
    ]
    verdict = _verdict(runs)
    if verdict:
        text.append(verdict)
    tables = [table for table in (_score_table(runs), _class_table(runs)) if table is not None]
    items: List[Item] = [*_loss_curves(runs), *tables]
    if tables:
        items.append(
            Note(
                'One seed: each number is that of a single run, and nothing here tells how much of a difference is chance. '
                '`experiments/transfer.py` repeats both runs over seeds and shares of labels.'
            )
        )
    return Section('Finetuning: a camera detector with and without pretraining', tuple(text), tuple(items))


def _verdict(runs: Mapping[str, Run]) -> str:
    """What the two runs say, whichever is ahead."""
    parts = []
    for name in ('mAP', 'NDS'):
        ours, other = (metric(runs[start].scores, name) if start in runs else None for start in (PRETRAINED, SCRATCH))
        if ours is not None and other is not None:
            gap = round(ours, 3) - round(other, 3)
            word = 'the same' if abs(gap) < 5e-4 else f'{abs(gap):.3f} {"higher" if gap > 0 else "lower"}'
            parts.append(f'{name} is {word} ({ours:.3f} against {other:.3f})')
    return f'Started from GeoMIM instead of from scratch, {", ".join(parts)}. This is one seed.' if parts else ''


def _loss_curves(runs: Mapping[str, Run]) -> List[Curves]:
    lines: Dict[str, Dict[str, List[Point]]] = {title: {} for title in (*_LOSSES.values(), _BOX_LOSS)}
    for start, run in runs.items():
        sums: Dict[str, Dict[float, float]] = {}
        for name, points in loss_parts(read_scalars(run.folder)).items():
            parts = sums.setdefault(_LOSSES.get(name, _BOX_LOSS), {})
            for step, value in points:
                parts[step] = parts.get(step, 0.0) + value
        for title, parts in sums.items():
            lines[title][start] = sorted(parts.items())
    return [
        Curves(title, 'iteration', 'loss', found, log_y=wide_range(found)) for title, found in lines.items() if found
    ]


def _score_table(runs: Mapping[str, Run]) -> Optional[Table]:
    names = [
        ('mAP', 'mean average precision'),
        ('NDS', 'nuScenes detection score'),
        *TRUE_POSITIVE_ERRORS.items(),
    ]
    rows: List[List[Cell]] = []
    for name, meaning in names:
        values = [metric(run.scores, name) for run in runs.values()]
        if any(value is not None for value in values):
            rows.append([name, meaning, *values])
    caption = 'Scores on the validation keyframes: of mAP and NDS more is better, of the errors of the hits less.'
    return Table(('Metric', 'Of', *_capitals(runs)), rows, caption, emphasis_row=0) if rows else None


def _class_table(runs: Mapping[str, Run]) -> Optional[Table]:
    rows: List[List[Cell]] = []
    for name in NUSCENES_CLASSES:
        values = [class_precision(run.scores, name) for run in runs.values()]
        if any(value is not None for value in values):
            rows.append([name, *values])
    if not rows:
        return None
    rows.append(['mean (mAP)', *(metric(run.scores, 'mAP') for run in runs.values())])
    caption = (
        'Average precision by class, mean over the four distances between centres within which a detection is a hit.'
    )
    return Table(('Class', *_capitals(runs)), rows, caption, emphasis_row=-1)


def _capitals(names: Mapping[str, Run]) -> Tuple[str, ...]:
    return tuple(name[:1].upper() + name[1:] for name in names)

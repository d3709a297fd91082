"""Readers of mmengine's run folders: what a run logged, and the pictures that it drew."""

from __future__ import annotations

import json
import math
import numbers
import re
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

Point = Tuple[float, float]
Row = Dict[str, float]


def read_scalars(run: Path) -> List[Row]:
    """What an mmengine run logged, over all its resumptions: the numbers of each line of ``run/*/vis_data/scalars.json``, by 'step'.

    Training and validation lines stay apart, since a run by epochs counts the steps of the one in iterations and of the other in
    epochs. Where timestamp folders overlap the later one counts: what the earlier logged after the point of resumption never
    entered the weights. Lines that do not parse, such as the last one of a killed process, are left out.

    Returns:
        rows in the order of 'step', validation after training; none for an absent folder.
    """
    merged: Dict[Tuple[float, bool], Row] = {}
    for path in sorted(Path(run).glob('*/vis_data/scalars.json')):
        lines = _scalar_lines(path)
        starts: Dict[bool, float] = {}
        for line in lines:
            starts[validates(line)] = min(line['step'], starts.get(validates(line), math.inf))
        if False in starts:  # a folder without training, of a validation alone, ends nothing
            merged = {key: row for key, row in merged.items() if key[0] < starts.get(key[1], math.inf)}
        for line in lines:
            key = (line['step'], validates(line))
            merged[key] = {**merged.get(key, {}), **line}
    return [merged[key] for key in sorted(merged)]


def _scalar_lines(path: Path) -> List[Row]:
    rows: List[Row] = []
    trained = 0.0
    for text in path.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if not isinstance(line, dict) or not is_number(line.get('step')):
            continue
        row = {str(name): value for name, value in line.items() if is_number(value)}
        if not validates(row):
            trained = row['step']
        elif row['step'] == 0:
            # LoggerHook counts in epochs unless told otherwise, and an iteration-based loop stays in epoch 0.
            row['step'] = trained
        rows.append(row)
    return rows


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def finite(value: Any) -> Optional[float]:
    return float(value) if is_number(value) and math.isfinite(value) else None


def validates(row: Row) -> bool:
    return 'iter' not in row and 'loss' not in row and 'lr' not in row


def series(rows: Iterable[Row], key: str) -> List[Point]:
    """(step, value) of the rows that hold a finite number under ``key``."""
    return [(row['step'], row[key]) for row in rows if 'step' in row and finite(row.get(key)) is not None]


def first_and_last_picture(run: Path) -> List[Path]:
    """The first and the last picture of one subject over the run, or the only one.

    Pictures are ``run/*/vis_data/vis_image/NAME_ITERATION.png``, in the order of the iteration as a number; a picture that a resumed run
    drew again counts once. Of several names the one with most pictures is taken.
    """
    subjects: Dict[str, Dict[int, Path]] = {}
    for path in sorted(Path(run).glob('*/vis_data/vis_image/*.png')):
        name, iteration = picture_subject(path)
        subjects.setdefault(name, {})[iteration] = path
    drawn = max(subjects.values(), key=len, default={})
    return [drawn[iteration] for iteration in sorted({min(drawn), max(drawn)})] if drawn else []


def picture_subject(path: Path) -> Tuple[str, int]:
    """reconstruction_0_120.png -> ('reconstruction_0', 120)."""
    found = re.fullmatch(r'(.*?)_?(\d+)', path.stem)
    return (found[1], int(found[2])) if found else (path.stem, -1)


def key_of(rows: Iterable[Mapping[str, float]], name: str) -> Optional[str]:
    """The key of a metric, whatever prefix it was logged under; scores at shorter ranges, with one part more, come last."""
    keys = [key for row in rows for key in row if key.rpartition('/')[2] == name]
    return min(keys, key=lambda key: key.count('/'), default=None)


def metric(metrics: Mapping[str, float], name: str) -> Optional[float]:
    return finite(metrics.get(key_of([metrics], name) or ''))


def last_scores(run: Path) -> Row:
    """The last result in a run folder, mAP or a map's mIoU, of a validation or else of a test; {} without one."""
    logged = [row for row in read_scalars(run) if _scored(row)]
    if logged:
        return logged[-1]
    # mmengine keeps a test's result there alone
    tested = [json.loads(path.read_text(encoding='utf-8')) for path in sorted(Path(run).glob('*/*.json'))]
    return next((row for row in reversed(tested) if _scored(row)), {})


def _scored(row: Mapping[str, float]) -> bool:
    return any(metric(row, name) is not None for name in ('mAP', 'mIoU'))

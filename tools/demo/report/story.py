"""The demonstration's own sections. A further step is one more function that returns a ``Section``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple

from run_folders import (
    Row,
    finite,
    first_and_last_picture,
    is_number,
    key_of,
    last_scores,
    metric,
    picture_subject,
    read_scalars,
    series,
    validates,
)

from .detection import NUSCENES_CLASSES, loss_parts, precision_table, score_table, wide_range
from .finetuned import finetuned_card
from .model import Card, Cell, Curves, Figure, Item, Note, Run, Section, Table
from .text import number, percent


def headline_cards(
    metrics: Mapping[str, float],
    figures: Mapping[str, Any],
    keyframes: int = 0,
    finetuned: Optional[Mapping[str, Run]] = None,
) -> List[Card]:
    """The numbers of the other sections that answer the first questions; those that are there."""
    cards = []
    on = f' on {keyframes} validation keyframes' if keyframes else ''
    if metric(metrics, 'mAP') is not None:
        nds = metric(metrics, 'NDS')
        detail = f'{"" if nds is None else f"NDS {nds:.2f}"}{on}'.strip()
        cards.append(Card('Teacher mAP', f'{metric(metrics, "mAP"):.2f}', detail))
    beyond = _explained(figures, 'mean_target_loss')
    if beyond is not None:
        detail = 'of the target explained beyond the mean target'
        cards.append(Card('Reconstruction', percent(beyond, 0), detail, beyond > 0))
    near = [(share, cells) for _, end, share, cells in _depth_rows(figures) if end is not None and end <= 20 and cells]
    total = sum(cells for _, cells in near)
    if total:
        share = sum(share * cells for share, cells in near) / total
        cards.append(Card('Depth within one bin', percent(share, 0), 'of labelled cells nearer than 20 m'))
    return cards + finetuned_card(finetuned or {}, keyframes)


def world_section(summary: Mapping[str, Any], pictures: Sequence[Figure]) -> Section:
    """The data. ``summary`` counts 'scenes', 'keyframes', 'images', 'scans' and 'boxes' by class; {} stands for real data."""
    if not summary:
        return Section('The data', ('Real nuScenes data was given; nothing was synthesized.',), tuple(pictures))
    names = {'scenes': 'scenes', 'keyframes': 'keyframes', 'images': 'camera images', 'scans': 'LiDAR scans'}
    counted = [f'{number(summary[key])} {name}' for key, name in names.items() if key in summary]
    size = f': {", ".join(counted)}' if counted else ''
    text = (
        f'A small world was synthesized and stored in the nuScenes format{size}. mmdet3d reads it as it reads nuScenes.'
    )
    boxes = summary.get('boxes') or {}
    items: List[Item] = list(pictures)
    if boxes:
        total = sum(boxes.values())
        known = [name for name in NUSCENES_CLASSES if name in boxes]
        rows: List[List[Cell]] = [
            [name, boxes[name], percent(boxes[name] / max(total, 1))]
            for name in (*known, *(name for name in boxes if name not in known))
        ]
        rows.append(['all', total, None])
        items.append(Table(('Class', 'Boxes', 'Share'), rows, 'Annotated boxes over all keyframes.', emphasis_row=-1))
    items.append(
        Note(
            'Numbers from a synthesized world show that each step runs and learns. They say nothing about accuracy on real roads.'
        )
    )
    return Section('A small world', (text,), tuple(items))


def teacher_section(run: Path, metrics: Mapping[str, float]) -> Section:
    """The LiDAR detector: its run folder, and a result of mmdet3d's nuScenes metric ({} takes the last one that the run logged)."""
    rows = read_scalars(run)
    metrics = metrics or last_scores(run)
    text = (
        'The teacher is a LiDAR detector. What pretraining shows the camera network is not its boxes but its features on the ground plane, '
        "in bird's-eye view (BEV). The accuracy below says whether they hold anything about the scene.",
    )
    items: List[Item] = []
    losses = loss_parts(rows)
    if losses:
        items.append(Curves('Training loss', 'iteration', 'loss', losses, log_y=wide_range(losses)))
    scores = {name: series(rows, key) for name in ('mAP', 'NDS') for key in [key_of(rows, name)] if key}
    if any(len(points) > 1 for points in scores.values()):
        items.append(Curves('Validation', 'iteration', 'score, 0 to 1', scores))
    table = precision_table(metrics)
    items += [part for part in (table, score_table(metrics)) if part is not None]
    return Section('The teacher: a LiDAR detector', text, tuple(items))


_BASELINES = {
    'mean_target_loss': (
        'mean target',
        'The mean target is the mean over the training frames of their targets, cell by cell: it knows everything except what is in front '
        'of the cameras. What the student explains beyond it comes from the pictures.',
    ),
    'student_average_map_loss': (
        "student's average map",
        "The student's average map is the mean of its predictions over the validation frames, shown for every frame: beyond it lies what "
        'the student says about one frame in particular.',
    ),
    'constant_map_loss': (
        'constant map',
        'The constant map is one best value a channel, the same in every cell: beyond it lies all spatial detail.',
    ),
    'zero_map_loss': (
        'zero map',
        'The zero map predicts 0 everywhere; targets are normalised, so that its loss is about 1.',
    ),
}


def pretraining_section(run: Path, figures: Mapping[str, Any]) -> Section:
    """GeoMIM pretraining: its run folder, and what an evaluation of its student found.

    ``figures``: 'frames'; 'student' with 'reconstruction_loss' and 'depth_within_one_bin', range -> [share, cells];
    'mean_target_loss', 'constant_map_loss', 'zero_map_loss'. Whatever is missing is left out.
    """
    text = [
        'GeoMIM hides half of the camera pictures in patches and lets a camera network reconstruct the BEV features that the teacher '
        'computes from the LiDAR points of the same moment. A depth loss on projected LiDAR points supports it.'
    ]
    table = _reconstruction_table(figures)
    if table is not None:
        explained = ' Explained is 1 - loss / baseline loss: 100 % is a perfect reconstruction, 0 % no better than the baseline.'
        text.append('Losses are mean squared errors of the normalised target.' + explained)
        text += [meaning for key, (_, meaning) in _BASELINES.items() if finite(figures.get(key)) is not None]
    items: List[Item] = [*_pretraining_curves(read_scalars(run), figures)]
    items += [part for part in (table, _depth_table(figures)) if part is not None]
    pictures = first_and_last_picture(run)
    for path in pictures:
        items.append(
            Figure(path, f'Iteration {picture_subject(path)[1]}. {_PANEL if path == pictures[0] else ""}'.strip())
        )
    return Section('Pretraining: the camera network reconstructs the teacher', tuple(text), tuple(items))


_PANEL = (
    'Above, the cameras: pictures, what each masked copy sees, predicted depth, LiDAR depth. Below, the BEV: target, '
    'reconstruction of each copy, squared error; colours are the principal components of the target.'
)


def _pretraining_curves(rows: Sequence[Row], figures: Mapping[str, Any]) -> List[Curves]:
    lines = {'training batches': series(rows, 'loss_reconstruction')}
    key = key_of((row for row in rows if validates(row)), 'reconstruction_loss')
    if key:
        lines['validation'] = series(rows, key)
    levels = {name: finite(figures.get(key)) for key, (name, _) in _BASELINES.items()}
    baselines = {name: level for name, level in levels.items() if level is not None}
    shown = [Curves('Reconstruction loss', 'iteration', 'mean squared error', lines, baselines)]
    shown.append(
        Curves('Depth loss', 'iteration', 'binary cross entropy', {'training batches': series(rows, 'loss_depth')})
    )
    return [curves for curves in shown if any(curves.series.values())]


def _student_loss(figures: Mapping[str, Any]) -> Optional[float]:
    return finite((figures.get('student') or {}).get('reconstruction_loss'))


def _explained(figures: Mapping[str, Any], baseline: str) -> Optional[float]:
    loss, level = _student_loss(figures), finite(figures.get(baseline))
    return 1 - loss / level if loss is not None and level else None


def _reconstruction_table(figures: Mapping[str, Any]) -> Optional[Table]:
    loss = _student_loss(figures)
    rows: List[List[Cell]] = [['student', loss, None]] if loss is not None else []
    for key, (name, _) in _BASELINES.items():
        level, beyond = finite(figures.get(key)), _explained(figures, key)
        if level is not None:
            rows.append([name, level, None if beyond is None else percent(beyond)])
    if not rows:
        return None
    frames = finite(figures.get('frames'))
    caption = 'Reconstruction' + (f' of {number(int(frames))} validation frames.' if frames is not None else '.')
    header = ('Prediction', 'Loss', 'Student explains beyond it')
    return Table(header, rows, caption, emphasis_row=0 if loss is not None else None)


def _depth_rows(figures: Mapping[str, Any]) -> List[Tuple[str, Optional[float], float, Optional[int]]]:
    """(range, its end in metres if it has one, share, labelled cells if counted)."""
    found = (figures.get('student') or {}).get('depth_within_one_bin')
    if is_number(found):
        found = {'all': [found]}
    rows = []
    for name, entry in (found or {}).items():
        share, cells = (*entry, None)[:2] if isinstance(entry, (list, tuple)) else (entry, None)
        end = re.fullmatch(r'[\d.]+\s*-\s*([\d.]+) m', name)
        if is_number(share) and math.isfinite(share):
            rows.append((name, float(end[1]) if end else None, float(share), int(cells) if is_number(cells) else None))
    return rows


def _depth_table(figures: Mapping[str, Any]) -> Optional[Table]:
    rows = _depth_rows(figures)
    if not rows:
        return None
    prior = figures.get('prior_depth_within_one_bin') or {}
    guesses = {name: entry[0] for name, entry in prior.items() if isinstance(entry, (list, tuple)) and entry}
    cells = [
        [name, percent(share), *([percent(guesses[name]) if name in guesses else None] if guesses else []), count]
        for name, _, share, count in rows
    ]
    last = next((index for index, row in enumerate(rows) if row[0] == 'all'), None)
    caption = (
        "Depth: share of the cells with a LiDAR label where the likeliest bin is the label's or a neighbour of it."
    )
    if guesses:
        caption += ' Most frequent: guessing, for each cell of each camera, the bin that training frames show there most often.'
    if is_number(figures.get('bin_metres')):
        caption += f' A bin is {figures["bin_metres"]:g} m.'
    header = ('Distance', 'Within one bin', *(['Most frequent'] if guesses else []), 'Labelled cells')
    return Table(header, cells, caption, emphasis_row=last)

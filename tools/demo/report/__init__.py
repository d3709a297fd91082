"""One self-contained HTML page about a GeoMIM demonstration: what was computed, what it means, and beside which baselines.

Three layers, each of use without the next: a small page model (``model``), written by ``write_report`` (``page``, ``charts``,
``text``), the tables of a detector's scores (``detection``), and the demonstration's own sections (``story``, ``finetuned``).
"""

from __future__ import annotations

from .charts import (
    COLOURS,
    MAX_POINTS,
    NOISE_WINDOW,
    Axis,
    line_chart,
    log_ticks,
    nice_ticks,
    smoothed,
    thinned,
    tick_labels,
)
from .detection import AP_DISTANCES, NUSCENES_CLASSES, TRUE_POSITIVE_ERRORS
from .finetuned import PRETRAINED, SCRATCH, finetuning_section
from .model import Card, Cell, Curves, Figure, Item, Note, Run, Section, Story, Table
from .page import WIDE_PICTURE, render, write_report
from .story import headline_cards, pretraining_section, teacher_section, world_section
from .text import NO_VALUE, escape, number, percent, prose

__all__ = [
    'AP_DISTANCES',
    'COLOURS',
    'MAX_POINTS',
    'NOISE_WINDOW',
    'NO_VALUE',
    'NUSCENES_CLASSES',
    'PRETRAINED',
    'SCRATCH',
    'TRUE_POSITIVE_ERRORS',
    'WIDE_PICTURE',
    'Axis',
    'Card',
    'Cell',
    'Curves',
    'Figure',
    'Item',
    'Note',
    'Run',
    'Section',
    'Story',
    'Table',
    'escape',
    'finetuning_section',
    'headline_cards',
    'line_chart',
    'log_ticks',
    'nice_ticks',
    'number',
    'percent',
    'pretraining_section',
    'prose',
    'render',
    'smoothed',
    'teacher_section',
    'thinned',
    'tick_labels',
    'world_section',
    'write_report',
]

"""One self-contained HTML page about a GeoMIM demonstration: what was computed, what it means, and beside which baselines.

Three layers, each of use without the next: a small page model (``model``), written by ``write_report`` (``page``, ``charts``,
``text``), the tables of a detector's scores (``detection``), and the demonstration's own sections (``story``, ``finetuned``).
"""

from .charts import line_chart, smoothed
from .detection import AP_DISTANCES, NUSCENES_CLASSES
from .finetuned import PRETRAINED, SCRATCH, finetuning_section
from .model import Card, Curves, Figure, Note, Run, Section, Story, Table
from .page import render, write_report
from .story import headline_cards, pretraining_section, teacher_section, world_section
from .text import number, prose

__all__ = [
    'AP_DISTANCES', 'NUSCENES_CLASSES', 'PRETRAINED', 'SCRATCH', 'Card', 'Curves', 'Figure', 'Note', 'Run', 'Section',
    'Story', 'Table', 'finetuning_section', 'headline_cards', 'line_chart', 'number', 'pretraining_section', 'prose',
    'render', 'smoothed', 'teacher_section', 'world_section', 'write_report',
]  # fmt: skip

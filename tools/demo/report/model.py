"""What a page consists of: a story of sections, each with its pictures, curves, tables and notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from run_folders import Point

Cell = Union[str, int, float, None]


@dataclass(frozen=True, eq=False)  # arrays have no single answer to ==
class Figure:
    """A picture.

    Args:
        source: a PNG or JPEG file, embedded as it is, or an array (H, W, 3) uint8 RGB, embedded without loss.
        caption: what to see in it.
    """

    source: Union[Path, np.ndarray]
    caption: str = ''


@dataclass(frozen=True)
class Curves:
    """Lines over a common axis.

    Args:
        title, x_label, y_label: with units.
        series: name -> (x, y) in the order of x; values that are not finite are left out.
        baselines: name -> y of a dashed horizontal line.
        log_y: a logarithmic y axis, without the values <= 0.
        caption: what to see in them.
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Point]]
    baselines: Mapping[str, float] = field(default_factory=dict)
    log_y: bool = False
    caption: str = ''


@dataclass(frozen=True)
class Table:
    """Rows below a header; a column of numbers is set to the right. The emphasised ones count from 0, or with -1 from the end."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ''
    emphasis_column: Optional[int] = None
    emphasis_row: Optional[int] = None


@dataclass(frozen=True)
class Note:
    """A remark set apart from the text, such as what a number does not show."""

    text: str


Item = Union[Figure, Curves, Table, Note]


@dataclass(frozen=True)
class Card:
    """A headline number; ``ok`` is None where there is no threshold to pass."""

    label: str
    value: str
    detail: str = ''
    ok: Optional[bool] = None


@dataclass(frozen=True)
class Section:
    """A numbered step: paragraphs (`` `code` `` in backquotes), then its items. Neighbours of one kind share a row where there is room."""

    title: str
    text: Sequence[str] = ()
    items: Sequence[Item] = ()


@dataclass(frozen=True)
class Story:
    """The page. ``command`` is the exact command that produced it."""

    title: str
    lead: str = ''
    facts: Sequence[Tuple[str, Cell]] = ()
    sections: Sequence[Section] = ()
    cards: Sequence[Card] = ()
    command: str = ''


@dataclass(frozen=True)
class Run:
    """A finished training: mmengine's run folder, and the last result of the metric there."""

    folder: Path
    scores: Mapping[str, float]

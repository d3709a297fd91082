"""The page as HTML. It loads nothing: pictures are data URIs, curves are inline SVG, the style is inline."""

from __future__ import annotations

import base64
import functools
import itertools
import re
from pathlib import Path
from typing import List, Optional, Tuple, Union

import cv2
import jinja2
import numpy as np

from geomim.checkpoints.files import atomic_path

from .charts import caption, line_chart
from .model import Figure, Section, Story, Table
from .text import NO_VALUE, number, prose

_FOLDER = Path(__file__).parent
WIDE_PICTURE = 1800  # pixels: a panel of several pictures, which takes the page's whole width


def write_report(path: Path, story: Story) -> Path:
    """Write the page; a reader finds the whole new page or the whole old one.

    A picture file that is missing or no picture is named on the page in its place.

    Raises:
        ValueError: a picture array that is not (H, W, 3) uint8.
    """
    page = render(story).encode('utf-8', 'backslashreplace')
    with atomic_path(path) as partial:
        Path(partial).write_bytes(page)
    return Path(path)


def render(story: Story) -> str:
    """The page as text. Raises as ``write_report``."""
    style = _FOLDER.joinpath('style.css').read_text(encoding='utf-8')
    return _page().render(story=story, style=style, groups=_groups, wide=WIDE_PICTURE)


@functools.lru_cache(maxsize=None)
def _page() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=number, prose=prose, chart=line_chart, curve_caption=caption, picture=_picture, numeric=_numeric_columns
    )
    return environment.get_template('page.html.jinja')


def _groups(section: Section) -> List[Tuple[str, list]]:
    """Neighbours of one kind, which share a row where there is room."""
    return [(kind.__name__, list(group)) for kind, group in itertools.groupby(section.items, type)]


def _picture(figure: Figure) -> Optional[Tuple[str, int, int]]:
    """Data URI of a PNG or JPEG file or of an array, its width and height; None for a file that is missing or something else."""
    data = _encoded(figure.source)
    known = data.startswith((b'\x89PNG', b'\xff\xd8'))
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if known else None
    if decoded is None:
        return None
    kind = 'jpeg' if data.startswith(b'\xff\xd8') else 'png'
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}', decoded.shape[1], decoded.shape[0]


def _encoded(source: Union[Path, np.ndarray]) -> bytes:
    if not isinstance(source, np.ndarray):
        return Path(source).read_bytes() if Path(source).is_file() else b''
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
        raise ValueError(f'a picture must be (H, W, 3) uint8 RGB, got {source.dtype} of shape {source.shape}')
    return bytes(cv2.imencode('.png', np.ascontiguousarray(source[..., ::-1]))[1])


def _numeric_columns(table: Table) -> List[bool]:
    """Columns with numbers, as numbers or as text such as '38.1 %', and nothing else but gaps."""
    pattern = re.compile(r'[-+]?[\d\N{NARROW NO-BREAK SPACE}]*\.?\d+(e[-+]?\d+)?( ?%)?')
    texts = [[number(row[column]) for row in table.rows] for column in range(len(table.header))]
    filled = [[text for text in column if text != NO_VALUE] for column in texts]
    return [bool(column) and all(map(pattern.fullmatch, column)) for column in filled]

"""The page as HTML. It loads nothing: pictures are data URIs, curves are inline SVG, the style is inline."""

from __future__ import annotations

import base64
import itertools
import re
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Tuple, Union

import cv2
import numpy as np

from geomim.checkpoints.files import atomic_path

from .charts import curves_figure
from .model import Card, Cell, Curves, Figure, Note, Section, Story, Table
from .text import NO_VALUE, escape, number, prose

WIDE_PICTURE = 1800  # pixels: a panel of several pictures, which takes the page's whole width

# The browser itself refuses whatever would leave the page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = Path(__file__).with_name('style.css').read_text(encoding='utf-8').rstrip('\n')


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
    numbered = list(enumerate(story.sections, 1))
    links = ''.join(f'<a href="#step-{number}">{number}. {escape(part.title)}</a>' for number, part in numbered)
    body = [
        f'<header>\n<h1>{escape(story.title)}</h1>',
        f'<p class="lead">{prose(story.lead)}</p>' if story.lead else '',
        _cards(story.cards),
        _facts(story.facts),
        f'<div class="command"><span>Command</span><pre>{escape(story.command)}</pre></div>' if story.command else '',
        f'<nav>{links}</nav>' if len(numbered) > 1 else '',
        '</header>',
        *(_section(number, part) for number, part in numbered),
    ]
    return _PAGE.format(
        title=escape(story.title), style=_STYLE, body='\n'.join(part for part in body if part), policy=_POLICY
    )


def _cards(cards: Sequence[Card]) -> str:
    if not cards:
        return ''
    marks = {None: ('neutral', ''), True: ('good', '\N{CHECK MARK} '), False: ('bad', '\N{MULTIPLICATION SIGN} ')}
    parts = []
    for card in cards:
        kind, mark = marks[card.ok]
        detail = f'<div class="detail">{prose(card.detail)}</div>' if card.detail else ''
        parts.append(
            f'<div class="card {kind}"><div class="label">{mark}{escape(card.label)}</div>'
            f'<div class="value">{escape(card.value)}</div>{detail}</div>'
        )
    return '<div class="cards">\n' + '\n'.join(parts) + '\n</div>'


def _facts(facts: Sequence[Tuple[str, Cell]]) -> str:
    rows = ''.join(f'<dt>{escape(label)}</dt><dd>{prose(number(value))}</dd>' for label, value in facts)
    return f'<dl class="facts">{rows}</dl>' if rows else ''


def _section(index: int, section: Section) -> str:
    parts = [f'<section id="step-{index}">', f'<h2><span>{index}</span> {escape(section.title)}</h2>']
    parts += [f'<p>{prose(paragraph)}</p>' for paragraph in section.text]
    for kind, group in itertools.groupby(section.items, type):
        name, draw = _DRAWN[kind]
        drawn = [text for text in map(draw, group) if text]
        if drawn:
            parts.append(f'<div class="{name}">\n' + '\n'.join(drawn) + '\n</div>')
    return '\n'.join([*parts, '</section>'])


def _note(note: Note) -> str:
    return f'<p>{prose(note.text)}</p>'


def _figure(figure: Figure) -> str:
    caption = f'<figcaption>{prose(figure.caption)}</figcaption>' if figure.caption else ''
    data, size = _picture(figure.source)
    if size is None:
        return f'<p class="absent">No picture could be read from {escape(figure.source)}.</p>'
    kind = 'jpeg' if data[:2] == b'\xff\xd8' else 'png'
    height, width = size
    wide = ' class="wide"' if width >= WIDE_PICTURE else f' style="max-width:{max(width, 320)}px"'
    uri = f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
    alt = escape(figure.caption or 'picture')
    return f'<figure{wide}><img src="{uri}" width="{width}" height="{height}" alt="{alt}">{caption}</figure>'


def _picture(source: Union[Path, np.ndarray]) -> Tuple[bytes, Optional[Tuple[int, int]]]:
    """The bytes of a PNG or JPEG file and its (height, width); no size for a file that is missing or something else."""
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
            raise ValueError(f'a picture must be (H, W, 3) uint8 RGB, got {source.dtype} of shape {source.shape}')
        encoded = cv2.imencode('.png', np.ascontiguousarray(source[..., ::-1]))[1].tobytes()
        return encoded, (source.shape[0], source.shape[1])
    try:
        data = Path(source).read_bytes()
    except OSError:
        return b'', None
    known = data.startswith((b'\x89PNG', b'\xff\xd8'))
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if known else None
    return data, (decoded.shape[0], decoded.shape[1]) if decoded is not None else None


def _table(table: Table) -> str:
    columns, count = len(table.header), len(table.rows)
    strong_column = _from_start(table.emphasis_column, columns)
    strong_row = _from_start(table.emphasis_row, count)
    numeric = [_is_numeric([row[column] for row in table.rows if column < len(row)]) for column in range(columns)]

    def cell(tag: str, text: str, column: int) -> str:
        right = column < columns and numeric[column]
        names = ' '.join(name for name, on in (('right', right), ('strong', column == strong_column)) if on)
        return f'<{tag} class="{names}">{text}</{tag}>' if names else f'<{tag}>{text}</{tag}>'

    head = ''.join(cell('th', prose(title), column) for column, title in enumerate(table.header))
    body = []
    for index, row in enumerate(table.rows):
        cells = ''.join(cell('td', prose(number(value)), column) for column, value in enumerate(row))
        body.append(f'<tr class="strong">{cells}</tr>' if index == strong_row else f'<tr>{cells}</tr>')
    caption = f'<figcaption>{prose(table.caption)}</figcaption>' if table.caption else ''
    rows = '\n'.join(body)
    return (
        f'<figure class="table"><div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f'<tbody>\n{rows}\n</tbody></table></div>{caption}</figure>'
    )


def _from_start(index: Optional[int], count: int) -> Optional[int]:
    return index + count if index is not None and index < 0 else index


def _is_numeric(cells: Sequence[Cell]) -> bool:
    """A column with numbers, as numbers or as text such as '38.1 %', and nothing else but gaps."""
    texts = [text for text in (number(cell) for cell in cells) if text != NO_VALUE]
    pattern = re.compile(r'[-+]?[\d\N{NARROW NO-BREAK SPACE}]*\.?\d+(e[-+]?\d+)?( ?%)?')
    return bool(texts) and all(pattern.fullmatch(text) for text in texts)


_DRAWN: Dict[Any, Tuple[str, Callable[[Any], str]]] = {
    Figure: ('figures', _figure),
    Curves: ('curves', curves_figure),
    Table: ('tables', _table),
    Note: ('notes', _note),
}

"""One self-contained HTML page about a GeoMIM demonstration: what was computed, what it means, and beside which baselines.

The page loads nothing: pictures are data URIs, curves are inline SVG, the style is inline. Three layers, each of use without
the next: a small page model (``Story`` to ``Note``, written by ``write_report``), readers of mmengine's run folders
(``read_scalars``, ``series``, ``newest_pictures``), and the demonstration's own sections (``world_section`` and the others).
A further step is one more function that returns a ``Section``.
"""

from __future__ import annotations

import base64
import html
import itertools
import json
import math
import numbers
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

import cv2
import numpy as np

from geomim.checkpoint_io import atomic_path

Point = Tuple[float, float]
Cell = Union[str, int, float, None]
Row = Dict[str, float]

NUSCENES_CLASSES = (
    'car',
    'truck',
    'trailer',
    'bus',
    'construction_vehicle',
    'bicycle',
    'motorcycle',
    'pedestrian',
    'traffic_cone',
    'barrier',
)
AP_DISTANCES = ('0.5', '1.0', '2.0', '4.0')  # metres, as the nuScenes metric spells them
TRUE_POSITIVE_ERRORS = {
    'mATE': 'translation, m',
    'mASE': 'scale, 1 - IoU',
    'mAOE': 'orientation, rad',
    'mAVE': 'velocity, m/s',
    'mAAE': 'attribute, 1 - accuracy',
}
WIDE_PICTURE = 1800  # pixels: a panel of several pictures, which takes the page's whole width
MAX_POINTS = 400  # a line
NOISE_WINDOW = 0.02  # of a line's points
COLOURS = 6  # --c0 to --c5 of the style: Okabe and Ito's, told apart with any colour vision
NO_VALUE = '\N{EN DASH}'


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


def escape(text: object) -> str:
    """Text that HTML shows as it is, in attributes too."""
    return html.escape(str(text), quote=True)


def prose(text: str) -> str:
    """Escaped text, with `` `code` `` in a fixed pitch."""
    return re.sub(r'`([^`]+)`', r'<code>\1</code>', escape(text))


def number(value: Cell) -> str:
    """A value as readers compare it: three decimals for usual sizes, thousands apart, a dash for what is missing or not finite."""
    if value is None or isinstance(value, str):
        return value if value else NO_VALUE
    if not math.isfinite(value):
        return NO_VALUE
    if isinstance(value, numbers.Integral):
        return _thousands(str(int(value)))
    return f'{value:.3f}' if value == 0 or 1e-3 <= abs(value) < 1e4 else f'{value:.3g}'


def _thousands(digits: str) -> str:
    """12345.6 -> 12 345.6; four digits are read without help."""
    whole, point, rest = digits.partition('.')
    apart = f'{int(whole):,}'.replace(',', '\N{NARROW NO-BREAK SPACE}')
    return digits if len(whole.lstrip('-')) < 5 else apart + point + rest


def percent(share: float, digits: int = 1) -> str:
    """0.381 -> '38.1 %'."""
    return f'{100 * share:.{digits}f} %' if math.isfinite(share) else NO_VALUE


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


# ---- curves


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` on the pixels from ``start`` to ``end``; ``ticks`` with their labels."""

    low: float
    high: float
    ticks: Sequence[Tuple[float, str]]
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Pixels; a value beyond the axis lies on its end."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)


_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 456, 12, 254


def line_chart(curves: Curves) -> str:
    """Inline SVG of the curves, or '' where they hold no point."""
    lines = {name: _drawable(points, curves.log_y) for name, points in curves.series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ''
    levels = {name: y for name, y in curves.baselines.items() if math.isfinite(y) and (y > 0 or not curves.log_y)}
    x_axis = _x_axis([x for points in lines.values() for x, _ in points])
    y_axis = _y_axis([*(y for points in lines.values() for _, y in points), *levels.values()], curves.log_y)
    parts = [_grid(x_axis, y_axis, curves)]
    for index, (name, points) in enumerate(lines.items()):
        parts.append(_line(name, points, index, x_axis, y_axis, curves))
    for index, (name, level) in enumerate(levels.items(), len(lines)):
        y = y_axis.place(level)
        parts.append(
            f'<line class="level" {_stroke(index)} x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}">'
            f'<title>{escape(name)}: {number(level)}</title></line>'
        )
    label = escape(f'{curves.title}: {curves.y_label} over {curves.x_label}')
    body = '\n'.join(parts)
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">\n{body}\n</svg>'


def _drawable(points: Sequence[Point], log_y: bool) -> List[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)]


def smoothed(points: Sequence[Point]) -> List[Point]:
    """Moving average over about 2 % of the points, centred, over fewer at the ends; the points themselves below 100 of them."""
    half = round(NOISE_WINDOW * len(points)) // 2
    values = [y for _, y in points]
    sums = [0.0, *itertools.accumulate(values)]
    result = []
    for index, (x, _) in enumerate(points):
        first, last = max(0, index - half), min(len(points), index + half + 1)
        result.append((x, (sums[last] - sums[first]) / (last - first) if half else values[index]))
    return result


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> List[Point]:
    """At most ``limit`` of the points in their order: the lowest and the highest of each stretch, so that spikes stay visible."""
    if len(points) <= limit:
        return list(points)
    ends = np.linspace(0, len(points), limit // 2 + 1).round().astype(int).tolist()
    kept = []
    for first, last in zip(ends, ends[1:]):
        stretch = range(first, last)
        picked = {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
        kept += [points[index] for index in sorted(picked)]
    return kept


def _line(name: str, points: Sequence[Point], index: int, x_axis: Axis, y_axis: Axis, curves: Curves) -> str:
    smooth = smoothed(points)
    title = f'<title>{escape(name)}</title>'
    parts = []
    if smooth != list(points):
        parts.append(_polyline('raw', index, thinned(points), x_axis, y_axis, title))
    smooth = thinned(smooth)
    if len(smooth) > 1:
        parts.append(_polyline('line', index, smooth, x_axis, y_axis, title))
    few = len(smooth) <= 40
    marks = smooth if few else smooth[:: -(-len(smooth) // 80)]
    for x, y in marks:
        text = escape(f'{name}, {curves.x_label} {x:g}: {number(float(y))}')
        style = f'class="dot" fill="var(--c{index % COLOURS})" r="2.5"' if few else 'class="hover" r="6"'
        parts.append(
            f'<circle {style} cx="{x_axis.place(x):.1f}" cy="{y_axis.place(y):.1f}"><title>{text}</title></circle>'
        )
    return '\n'.join(parts)


def _polyline(kind: str, index: int, points: Sequence[Point], x_axis: Axis, y_axis: Axis, title: str) -> str:
    places = ' '.join(f'{x_axis.place(x):.1f},{y_axis.place(y):.1f}' for x, y in points)
    return f'<polyline class="{kind}" {_stroke(index)} points="{places}">{title}</polyline>'


def _stroke(index: int) -> str:
    dashes = '' if index < COLOURS else ' stroke-dasharray="2 3"'
    return f'stroke="var(--c{index % COLOURS})"{dashes}'


def _grid(x_axis: Axis, y_axis: Axis, curves: Curves) -> str:
    parts = []
    for value, label in y_axis.ticks:
        y = y_axis.place(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for value, label in x_axis.ticks:
        x = x_axis.place(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_BOTTOM + 17}" text-anchor="middle">{label}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>')
    middle_x, middle_y = (_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2
    parts.append(f'<text x="{middle_x}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(curves.x_label)}</text>')
    y_label = escape(curves.y_label + (' (log)' if curves.log_y else ''))
    turn = f'transform="rotate(-90 13 {middle_y})"'
    parts.append(f'<text x="13" y="{middle_y}" text-anchor="middle" {turn}>{y_label}</text>')
    return '\n'.join(parts)


def _x_axis(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    if 0 < low <= 0.5 * high:
        low = 0.0  # iterations count from 0, wherever the first one was logged
    if low == high:
        low, high = low - 1, high + 1
    ticks = nice_ticks(low, high, whole=all(float(value).is_integer() for value in values))
    return Axis(low, high, tick_labels(ticks), _LEFT, _RIGHT)


def _y_axis(values: Sequence[float], log: bool) -> Axis:
    low, high = min(values), max(values)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1))
    elif not log and 0 < low < 0.4 * high:
        low = 0.0
    ticks = log_ticks(low, high) if log else nice_ticks(low, high, outward=True)
    return Axis(min(low, ticks[0]), max(high, ticks[-1]), tick_labels(ticks), _BOTTOM, _TOP, log)


_LESS_ROUND = (1.5, 3, 4, 7.5)  # steps for the few axes on which rounder ones give too many ticks or too few


def nice_ticks(low: float, high: float, outward: bool = False, whole: bool = False) -> List[float]:
    """4 to 6 multiples of a round step: inside [low, high], or around it if ``outward``.

    ``whole`` takes integers only, which may be fewer on a short axis.
    """
    power = math.floor(math.log10(high - low))
    down, up = (math.floor, math.ceil) if outward else (math.ceil, math.floor)
    slack = 1e-9 if outward else -1e-9
    choices: List[Tuple[Tuple[float, ...], float, range]] = []
    for rank, factor in itertools.product(range(power - 2, power + 2), (1, 2, 2.5, 5, *_LESS_ROUND)):
        step = factor * 10.0**rank
        first, last = down(low / step + slack), up(high / step - slack)
        count = last - first + 1
        cost = (factor in _LESS_ROUND, count * step if outward else abs(count - 5), abs(count - 5))
        if 4 <= count <= 6 and (step.is_integer() or not whole):
            choices.append((cost, step, range(first, last + 1)))
    if not choices:  # no round step is whole: any whole step then
        step = max(1, math.ceil((high - low) / 5))
        choices = [((), step, range(math.ceil(low / step), math.floor(high / step) + 1))]
    _, step, indices = min(choices, key=lambda choice: choice[0])
    return [round(index * step, 12 - power) for index in indices]


def log_ticks(low: float, high: float) -> List[float]:
    """4 to 6 round values around [low, high], both above 0, for a logarithmic axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    choices = [nice_ticks(low, high, outward=True)]  # less than a decade
    for stride in range(1, max(1, (last - first + 2) // 4) + 1):
        choices.append([10.0**rank for rank in range(first, last + stride, stride)])
    for factors in ((1, 3), (1, 2, 5)):
        values = [factor * 10.0**rank for rank in range(first - 1, last + 1) for factor in factors]
        below = max(value for value in values if value <= low * (1 + 1e-9))
        choices.append([value for value in values if below <= value < high * (1 - 1e-9)])
        choices[-1].append(min(value for value in (*values, 10.0 ** (last + 1)) if value >= high * (1 - 1e-9)))
    choices = [ticks for ticks in choices if 0 < ticks[0] <= low * (1 + 1e-9)]
    return min(choices, key=lambda ticks: (not 4 <= len(ticks) <= 6, ticks[-1] / ticks[0]))


def tick_labels(ticks: Sequence[float]) -> List[Tuple[float, str]]:
    """Ticks with labels that tell them apart, all in one notation."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    smallest = min((abs(tick) for tick in ticks if tick), default=0.0)
    if largest >= 1e6 or 0 < largest < 1e-3 or (smallest and largest / smallest >= 1e4):
        return [(tick, f'{tick:g}') for tick in ticks]
    uneven = len({round(b - a, 9) for a, b in zip(ticks, ticks[1:])}) > 1
    if uneven:
        return [(tick, f'{tick:g}') for tick in ticks]
    digits = next((digits for digits in range(7) if all(abs(round(t, digits) - t) <= 1e-9 for t in ticks)), 7)
    return [(tick, _thousands(f'{tick:.{digits}f}')) for tick in ticks]


def _curves(curves: Curves) -> str:
    chart = line_chart(curves)
    if not chart:
        return ''
    names = [name for name, points in curves.series.items() if _drawable(points, curves.log_y)]
    levels = [name for name, y in curves.baselines.items() if math.isfinite(y) and (y > 0 or not curves.log_y)]
    keys = []
    for index, name in enumerate((*names, *levels)):
        kind = 'level' if index >= len(names) else 'line'
        stroke = f'<line class="{kind}" {_stroke(index)} x1="0" x2="24" y1="5" y2="5"/>'
        keys.append(f'<span><svg width="24" height="10" viewBox="0 0 24 10">{stroke}</svg> {escape(name)}</span>')
    legend = f'<div class="legend">{"".join(keys)}</div>' if len(keys) > 1 else ''
    windows = [2 * (round(NOISE_WINDOW * len(points)) // 2) + 1 for points in curves.series.values()]
    caption = curves.caption
    if max(windows) > 1:
        caption = f'{caption} Faint: as logged; bold: moving average over {max(windows)} points.'.strip()
    shown = f'<figcaption>{prose(caption)}</figcaption>' if caption else ''
    return f'<figure class="curve"><h3>{escape(curves.title)}</h3>\n{chart}\n{legend}\n{shown}</figure>'


_DRAWN: Dict[Any, Tuple[str, Callable[[Any], str]]] = {
    Figure: ('figures', _figure),
    Curves: ('curves', _curves),
    Table: ('tables', _table),
    Note: ('notes', _note),
}


# ---- readers of mmengine's run folders


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
            starts[_validates(line)] = min(line['step'], starts.get(_validates(line), math.inf))
        if False in starts:  # a folder without training, of a validation alone, ends nothing
            merged = {key: row for key, row in merged.items() if key[0] < starts.get(key[1], math.inf)}
        for line in lines:
            key = (line['step'], _validates(line))
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
        if not isinstance(line, dict) or not _is_number(line.get('step')):
            continue
        row = {str(name): value for name, value in line.items() if _is_number(value)}
        if not _validates(row):
            trained = row['step']
        elif row['step'] == 0:
            # LoggerHook counts in epochs unless told otherwise, and an iteration-based loop stays in epoch 0.
            row['step'] = trained
        rows.append(row)
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _finite(value: Any) -> Optional[float]:
    return float(value) if _is_number(value) and math.isfinite(value) else None


def _validates(row: Row) -> bool:
    return 'iter' not in row and 'loss' not in row and 'lr' not in row


def series(rows: Iterable[Row], key: str) -> List[Point]:
    """(step, value) of the rows that hold a finite number under ``key``."""
    return [(row['step'], row[key]) for row in rows if 'step' in row and _finite(row.get(key)) is not None]


def validation_series(rows: Sequence[Row], key: str) -> List[Point]:
    """``series`` of a validation figure over iterations, also where the run counted its validations in epochs."""
    ends: Dict[float, float] = {}
    for row in rows:
        if 'epoch' in row and not _validates(row):
            ends[row['epoch']] = max(row['step'], ends.get(row['epoch'], 0))
    return [(ends.get(step, step), value) for step, value in series(rows, key)]


def newest_pictures(run: Path, count: int) -> List[Path]:
    """Up to ``count`` pictures of one subject over the run, the first and the last among them, the others evenly between.

    Pictures are ``run/*/vis_data/vis_image/NAME_ITERATION.png``, in the order of the iteration as a number; a picture that a resumed run
    drew again counts once. Of several names the one with most pictures is taken. One picture is the last.
    """
    subjects: Dict[str, Dict[int, Path]] = {}
    for path in sorted(Path(run).glob('*/vis_data/vis_image/*.png')):
        name, iteration = _subject(path)
        subjects.setdefault(name, {})[iteration] = path
    if not subjects or count < 1:
        return []
    drawn = max(subjects.values(), key=len)
    ordered = [drawn[iteration] for iteration in sorted(drawn)]
    picked = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int).tolist()
    return [ordered[index] for index in picked] if count > 1 else ordered[-1:]


def _subject(path: Path) -> Tuple[str, int]:
    """reconstruction_0_120.png -> ('reconstruction_0', 120)."""
    found = re.fullmatch(r'(.*?)_?(\d+)', path.stem)
    return (found[1], int(found[2])) if found else (path.stem, -1)


# ---- the demonstration's sections


def headline_cards(metrics: Mapping[str, float], figures: Mapping[str, Any], keyframes: int = 0) -> List[Card]:
    """The numbers of ``teacher_section`` and ``pretraining_section`` that answer the first questions; those that are there."""
    cards = []
    on = f' on {keyframes} validation keyframes' if keyframes else ''
    if _metric(metrics, 'mAP') is not None:
        nds = _metric(metrics, 'NDS')
        detail = f'{"" if nds is None else f"NDS {nds:.2f}"}{on}'.strip()
        cards.append(Card('Teacher mAP', f'{_metric(metrics, "mAP"):.2f}', detail))
    beyond = _explained(figures, 'mean_target_loss')
    if beyond is not None:
        detail = 'of the target explained beyond the mean target'
        cards.append(Card('Reconstruction', percent(beyond, 0), detail, beyond > 0))
    near = [(share, cells) for _, end, share, cells in _depth_rows(figures) if end is not None and end <= 20 and cells]
    total = sum(cells for _, cells in near)
    if total:
        share = sum(share * cells for share, cells in near) / total
        cards.append(Card('Depth within one bin', percent(share, 0), 'of labelled cells nearer than 20 m'))
    return cards


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
    if not metrics:
        validated = [row for row in rows if _metric(row, 'mAP') is not None]
        metrics = validated[-1] if validated else {}
    text = (
        'The teacher is a LiDAR detector. What pretraining shows the camera network is not its boxes but its features on the ground plane, '
        "in bird's-eye view (BEV). The accuracy below says whether they hold anything about the scene.",
    )
    items: List[Item] = []
    losses = _loss_parts(rows)
    if losses:
        items.append(Curves('Training loss', 'iteration', 'loss', losses, log_y=_wide_range(losses)))
    scores = {name: validation_series(rows, key) for name in ('mAP', 'NDS') for key in [_key(rows, name)] if key}
    if any(len(points) > 1 for points in scores.values()):
        items.append(Curves('Validation', 'iteration', 'score, 0 to 1', scores))
    table = _precision_table(metrics)
    items += [part for part in (table, _score_table(metrics)) if part is not None]
    return Section('The teacher: a LiDAR detector', text, tuple(items))


def _loss_parts(rows: Sequence[Row]) -> Dict[str, List[Point]]:
    """The total and its parts; what mmdet3d splits over tasks (task0.loss_heatmap, task1.loss_heatmap, ...) is summed."""
    parts: Dict[str, Dict[float, float]] = {}
    for row in (row for row in rows if not _validates(row)):
        for key, value in row.items():
            name = key.rpartition('.')[2]
            if name.startswith('loss') and math.isfinite(value):
                points = parts.setdefault('total' if name == 'loss' else name, {})
                points[row['step']] = points.get(row['step'], 0.0) + value
    names = sorted(parts, key=lambda name: name != 'total')
    return {name: sorted(parts[name].items()) for name in names if len(parts) != 2 or name == 'total'}


def _wide_range(lines: Mapping[str, Sequence[Point]]) -> bool:
    values = [y for points in lines.values() for _, y in points if y > 0]
    return bool(values) and max(values) > 30 * min(values)


def _key(rows: Iterable[Mapping[str, float]], name: str) -> Optional[str]:
    """The key of a metric, whatever prefix it was logged under."""
    return next((key for row in rows for key in row if key.rpartition('/')[2] == name), None)


def _metric(metrics: Mapping[str, float], name: str) -> Optional[float]:
    return _finite(metrics.get(_key([metrics], name) or ''))


def _precision_table(metrics: Mapping[str, float]) -> Optional[Table]:
    rows: List[List[Cell]] = []
    for name in NUSCENES_CLASSES:
        scores = [_metric(metrics, f'{name}_AP_dist_{distance}') for distance in AP_DISTANCES]
        found = [score for score in scores if score is not None]
        if found:
            rows.append([name, sum(found) / len(found), *scores])
    mean = _metric(metrics, 'mAP')
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
    scores = [_metric(metrics, f'{name}_AP_dist_{distance}') for name in NUSCENES_CLASSES]
    found = [score for score in scores if score is not None]
    return sum(found) / len(found) if len(found) == len(NUSCENES_CLASSES) else None


def _score_table(metrics: Mapping[str, float]) -> Optional[Table]:
    rows: List[List[Cell]] = [[name, meaning, _metric(metrics, name)] for name, meaning in TRUE_POSITIVE_ERRORS.items()]
    rows = [row for row in rows if row[2] is not None]
    caption = 'Errors of the hits within 2 m, means over the classes; lower is better.' if rows else ''
    detection = _metric(metrics, 'NDS')
    if detection is not None:
        rows.append(['NDS', 'nuScenes detection score', detection])
        caption += ' NDS is half mAP and half the mean of 1 - error over the five errors, each error at most 1.'
    emphasis = -1 if detection is not None else None
    return Table(('Metric', 'Of', 'Value'), rows, caption.strip(), emphasis_row=emphasis) if rows else None


_BASELINES = {
    'mean_target_loss': (
        'mean target',
        'The mean target is the mean over the training frames of their targets, cell by cell: it knows everything except what is in front '
        'of the cameras. What the student explains beyond it comes from the pictures.',
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
        text += [meaning for key, (_, meaning) in _BASELINES.items() if _finite(figures.get(key)) is not None]
    items: List[Item] = [*_pretraining_curves(read_scalars(run), figures)]
    items += [part for part in (table, _depth_table(figures)) if part is not None]
    pictures = newest_pictures(run, 2)
    for path in pictures:
        items.append(Figure(path, f'Iteration {_subject(path)[1]}. {_PANEL if path == pictures[0] else ""}'.strip()))
    return Section('Pretraining: the camera network reconstructs the teacher', tuple(text), tuple(items))


_PANEL = (
    'Above, the cameras: pictures, what each masked copy sees, predicted depth, LiDAR depth. Below, the BEV: target, '
    'reconstruction of each copy, squared error; colours are the principal components of the target.'
)


def _pretraining_curves(rows: Sequence[Row], figures: Mapping[str, Any]) -> List[Curves]:
    lines = {'training batches': series(rows, 'loss_reconstruction')}
    key = _key((row for row in rows if _validates(row)), 'reconstruction_loss')
    if key:
        lines['validation'] = validation_series(rows, key)
    levels = {name: _finite(figures.get(key)) for key, (name, _) in _BASELINES.items()}
    baselines = {name: level for name, level in levels.items() if level is not None}
    shown = [Curves('Reconstruction loss', 'iteration', 'mean squared error', lines, baselines)]
    shown.append(
        Curves('Depth loss', 'iteration', 'binary cross entropy', {'training batches': series(rows, 'loss_depth')})
    )
    return [curves for curves in shown if any(curves.series.values())]


def _student_loss(figures: Mapping[str, Any]) -> Optional[float]:
    return _finite((figures.get('student') or {}).get('reconstruction_loss'))


def _explained(figures: Mapping[str, Any], baseline: str) -> Optional[float]:
    loss, level = _student_loss(figures), _finite(figures.get(baseline))
    return 1 - loss / level if loss is not None and level else None


def _reconstruction_table(figures: Mapping[str, Any]) -> Optional[Table]:
    loss = _student_loss(figures)
    rows: List[List[Cell]] = [['student', loss, None]] if loss is not None else []
    for key, (name, _) in _BASELINES.items():
        level, beyond = _finite(figures.get(key)), _explained(figures, key)
        if level is not None:
            rows.append([name, level, None if beyond is None else percent(beyond)])
    if not rows:
        return None
    frames = _finite(figures.get('frames'))
    caption = 'Reconstruction' + (f' of {number(int(frames))} validation frames.' if frames is not None else '.')
    header = ('Prediction', 'Loss', 'Student explains beyond it')
    return Table(header, rows, caption, emphasis_row=0 if loss is not None else None)


def _depth_rows(figures: Mapping[str, Any]) -> List[Tuple[str, Optional[float], float, Optional[int]]]:
    """(range, its end in metres if it has one, share, labelled cells if counted)."""
    found = (figures.get('student') or {}).get('depth_within_one_bin')
    if _is_number(found):
        found = {'all': [found]}
    rows = []
    for name, entry in (found or {}).items():
        share, cells = (*entry, None)[:2] if isinstance(entry, (list, tuple)) else (entry, None)
        end = re.fullmatch(r'[\d.]+\s*-\s*([\d.]+) m', name)
        if _is_number(share) and math.isfinite(share):
            rows.append((name, float(end[1]) if end else None, float(share), int(cells) if _is_number(cells) else None))
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
    if _is_number(figures.get('bin_metres')):
        caption += f' A bin is {figures["bin_metres"]:g} m.'
    header = ('Distance', 'Within one bin', *(['Most frequent'] if guesses else []), 'Labelled cells')
    return Table(header, cells, caption, emphasis_row=last)


# ---- the page's frame

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

_STYLE = """:root { color-scheme: light dark;
  --ground: #fff; --panel: #f6f7f8; --text: #1b1f23; --soft: #59636e; --rule: #d8dde2; --good: #00795a; --bad: #b8400e;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b5578e; --c4: #b57f00; --c5: #3a9bd0; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #15181c; --panel: #1e2227; --text: #e4e7ea; --soft: #9aa4ae; --rule: #343a41; --good: #3ecfa0; --bad: #ff9a66;
  --c0: #56b4e9; --c1: #f0803c; --c2: #2fc79a; --c3: #dd93b9; --c4: #e6b33d; --c5: #8fb8ff; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 .75rem; }
h2 span { color: var(--soft); font-weight: 400; margin-right: .3em; }
h3 { font-size: .95rem; margin: 0 0 .25rem; }
p { margin: 0 0 .75rem; max-width: 46rem; }
.lead { font-size: 1.1rem; color: var(--soft); margin-bottom: 1.25rem; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", "DejaVu Sans Mono", monospace; font-size: .875em; }
section { border-top: 1px solid var(--rule); margin-top: 2.25rem; padding-top: 1.5rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin-top: 1rem; font-size: .9rem; }
a { color: var(--c0); text-decoration-thickness: 1px; text-underline-offset: .15em; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 190px), 1fr)); gap: 12px; margin: 0 0 1.5rem; }
.card { background: var(--panel); border-left: 3px solid var(--rule); padding: 12px 16px; break-inside: avoid; }
.card.good { border-left-color: var(--good); } .card.bad { border-left-color: var(--bad); }
.card .label { font-size: .875rem; color: var(--soft); }
.card.good .label { color: var(--good); } .card.bad .label { color: var(--bad); }
.card .value { font-size: 1.75rem; line-height: 1.25; font-weight: 600; font-variant-numeric: tabular-nums; }
.card .detail { font-size: .875rem; line-height: 1.4; color: var(--soft); }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; margin: 0 0 1rem; font-size: .9rem; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.command { font-size: .9rem; } .command span { color: var(--soft); }
pre { margin: .25rem 0 0; padding: 10px 14px; background: var(--panel); white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { font-size: .85rem; line-height: 1.45; color: var(--soft); margin-top: .4rem; max-width: 46rem; }
.figures, .curves, .tables { display: grid; gap: 1.5rem 2rem; margin: 1.25rem 0; align-items: start; }
.figures { grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.curves { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.curve { max-width: 640px; }
.tables { display: flex; flex-wrap: wrap; }
.tables figure { flex: 0 1 auto; max-width: 100%; }
.tables figcaption { max-width: 30rem; }
.figures .wide { grid-column: 1 / -1; }
.figures .absent { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
img { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 14px 4px 0; text-align: left; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; border-bottom-color: var(--soft); }
th:last-child, td:last-child { padding-right: 4px; }
.right { text-align: right; }
td.strong, tr.strong td { font-weight: 600; }
tr.strong td { background: var(--panel); }
.notes { margin: 1.25rem 0; }
.notes p { border-left: 3px solid var(--rule); padding: 2px 0 2px 14px; color: var(--soft); font-size: .9rem; }
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font-size: 12.5px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1; fill: none; }
.line, .raw { fill: none; stroke-width: 2; stroke-linejoin: round; }
.raw { stroke-width: 1; opacity: .3; }
.level { stroke-width: 1.5; stroke-dasharray: 6 4; }
.hover { fill: transparent; } .hover:hover, .dot:hover { fill: var(--text); }
.legend { display: flex; flex-wrap: wrap; gap: 0 1.1rem; font-size: .85rem; color: var(--soft); margin-top: .25rem; }
@media (max-width: 600px) { main { padding: 20px 14px 40px; } h1 { font-size: 1.5rem; }
  .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: .4rem; } .chart text { font-size: 14px; }
  table { font-size: .82rem; } th, td { padding-right: 9px; } }
@media print { @page { margin: 14mm; } :root { --ground: #fff; --panel: #f6f7f8; --text: #000; --soft: #444; --rule: #bbb; --good: #00795a;
  --bad: #b8400e; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b5578e; --c4: #b57f00; --c5: #3a9bd0; }
  body { font-size: 10.5pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; } main { max-width: none; padding: 0; }
  nav { display: none; } h2, h3 { break-after: avoid; } .curves { grid-template-columns: 1fr 1fr; } .scroll { overflow: visible; } }"""

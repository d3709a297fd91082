"""Curves as inline SVG: lines, axes and their ticks."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import List, Sequence, Tuple

import numpy as np
from run_folders import Point

from .model import Curves
from .text import escape, number, prose, thousands

MAX_POINTS = 400  # a line
NOISE_WINDOW = 0.02  # of a line's points
COLOURS = 6  # --c0 to --c5 of the style: Okabe and Ito's, told apart with any colour vision


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
    return [(tick, thousands(f'{tick:.{digits}f}')) for tick in ticks]


def curves_figure(curves: Curves) -> str:
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

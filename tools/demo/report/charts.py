"""Curves as inline SVG, drawn by matplotlib; the page's style gives the colours, so that they follow its light and dark."""

from __future__ import annotations

import io
import math
import re
from itertools import chain
from typing import List, Sequence

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from run_folders import Point

from .model import Curves
from .text import number

NOISE_WINDOW = 0.02  # of a line's points
MARKS = 80  # places of a line that say their value
# what is drawn -> what the style gives; Okabe and Ito's lines, told apart with any colour vision
_COLOURS = {
    '#0072b2': 'c0', '#d55e00': 'c1', '#009e73': 'c2', '#b5578e': 'c3', '#b57f00': 'c4', '#3a9bd0': 'c5',
    '#59636e': 'soft', '#d8dde2': 'rule',
}  # fmt: skip
_LINES, _SOFT, _RULE = list(_COLOURS)[:6], '#59636e', '#d8dde2'
_STYLE = {
    'svg.fonttype': 'none', 'svg.hashsalt': 'geomim', 'text.parse_math': False, 'path.simplify_threshold': 0.5,
    'text.color': _SOFT, 'axes.labelcolor': _SOFT, 'axes.edgecolor': _SOFT, 'xtick.color': _SOFT, 'ytick.color': _SOFT,
    'axes.grid': True, 'grid.color': _RULE, 'axes.spines.top': False, 'axes.spines.right': False,
    'legend.frameon': False, 'font.size': 11,
}  # fmt: skip


def drawable(points: Sequence[Point], log_y: bool) -> List[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)]


def window(count: int) -> int:
    """Over how many of a line's points its mean moves; 1 below 100 of them."""
    return 2 * (round(NOISE_WINDOW * count) // 2) + 1


def smoothed(values: Sequence[float]) -> np.ndarray:
    """Moving average over about 2 % of the values, centred, over fewer at the ends."""
    kernel = np.ones(window(len(values)))
    return np.asarray(np.convolve(values, kernel, 'same') / np.convolve(np.ones(len(values)), kernel, 'same'))


def line_chart(curves: Curves) -> Markup:
    """Inline SVG of the curves with a legend, or '' where they hold no point. What is under the pointer says its name and value."""
    lines = {name: drawable(points, curves.log_y) for name, points in curves.series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return Markup('')
    levels = {name: y for name, y in curves.baselines.items() if drawable([(0, y)], curves.log_y)}
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(5.2, 3.6), layout='constrained')
        axes = canvas.add_subplot(xlabel=curves.x_label, ylabel=curves.y_label + (' (log)' if curves.log_y else ''))
        for index, (name, points) in enumerate(lines.items()):
            x, y = np.asarray(points, dtype=float).T
            mean = smoothed(y)
            look = {'color': _LINES[index % 6], 'linestyle': '-' if index < 6 else ':'}
            if window(len(y)) > 1:
                axes.plot(x, y, **look, linewidth=0.8, alpha=0.3)
            axes.plot(x, mean, **look, label=name, gid=f'tip:{name}')
            few, step = len(x) <= MARKS // 2, -(-len(x) // MARKS)
            for place, value in zip(x[::step], mean[::step]):
                text = f'tip:{name}, {curves.x_label} {place:g}: {number(float(value))}'
                axes.plot(place, value, 'o', color=look['color'], markersize=4, alpha=1.0 if few else 0.0, gid=text)
        for index, (name, level) in enumerate(levels.items(), len(lines)):
            text = f'{name}: {number(level)}'
            axes.axhline(
                level, color=_LINES[index % 6], linestyle='--' if index < 6 else '-.', label=text, gid=f'tip:{text}'
            )
        whole = all(float(x).is_integer() for x, _ in chain(*lines.values()))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole))
        if curves.log_y:
            axes.set_yscale('log')
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:.6g}'))
        if len(lines) + len(levels) > 1:
            canvas.legend(loc='outside lower center', ncols=2)
        for artist in canvas.findobj():
            artist.set_clip_on(False)  # by an address, which the page has none of
        buffer = io.StringIO()
        canvas.savefig(
            buffer, format='svg', transparent=True, metadata=dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
        )
    return _inline(buffer.getvalue(), f'{curves.title}: {curves.y_label} over {curves.x_label}')


def _inline(text: str, label: str) -> Markup:
    """matplotlib's file as an element of a page: no addresses, no identifiers that two charts share, colours by name."""
    text = re.sub(r'<g id="tip:([^"]*)">', r'<g><title>\1</title>', text[text.index('<svg') :])
    text = re.sub(r'<g id="[^"]*">', '<g>', text)
    head = f'<svg class="chart" viewBox="\\1" role="img" aria-label="{escape(label)}">'
    text = re.sub(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', lambda found: head.replace('\\1', found[1]), text, count=1)
    for colour, name in _COLOURS.items():
        text = text.replace(colour, f'var(--{name})')
    return Markup(text)


def caption(curves: Curves) -> str:
    widest = max(window(len(drawable(points, curves.log_y))) for points in curves.series.values())
    bold = f'Faint: as logged; bold: moving average over {widest} points.' if widest > 1 else ''
    return f'{curves.caption} {bold}'.strip()

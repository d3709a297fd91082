"""Words and numbers as the page spells them."""

from __future__ import annotations

import math
import numbers
import re

from markupsafe import Markup, escape

from .model import Cell

NO_VALUE = '\N{EN DASH}'


def prose(text: str) -> Markup:
    """Escaped text, with `` `code` `` in a fixed pitch."""
    return Markup(re.sub(r'`([^`]+)`', r'<code>\1</code>', str(escape(text))))


def number(value: Cell) -> str:
    """A value as readers compare it: three decimals for usual sizes, thousands apart, a dash for what is missing or not finite."""
    if value is None or isinstance(value, str):
        return value or NO_VALUE
    if not math.isfinite(value):
        return NO_VALUE
    if isinstance(value, numbers.Integral):
        return str(value) if abs(value) < 10000 else f'{value:,}'.replace(',', '\N{NARROW NO-BREAK SPACE}')
    return f'{value:.3f}' if value == 0 or 1e-3 <= abs(value) < 1e4 else f'{value:.3g}'


def percent(share: float, digits: int = 1) -> str:
    """0.381 -> '38.1 %'."""
    return f'{100 * share:.{digits}f} %' if math.isfinite(share) else NO_VALUE

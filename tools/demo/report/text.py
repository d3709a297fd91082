"""Words and numbers as the page spells them."""

from __future__ import annotations

import html
import math
import numbers
import re

from .model import Cell

NO_VALUE = '\N{EN DASH}'


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
        return thousands(str(int(value)))
    return f'{value:.3f}' if value == 0 or 1e-3 <= abs(value) < 1e4 else f'{value:.3g}'


def thousands(digits: str) -> str:
    """12345.6 -> 12 345.6; four digits are read without help."""
    whole, point, rest = digits.partition('.')
    apart = f'{int(whole):,}'.replace(',', '\N{NARROW NO-BREAK SPACE}')
    return digits if len(whole.lstrip('-')) < 5 else apart + point + rest


def percent(share: float, digits: int = 1) -> str:
    """0.381 -> '38.1 %'."""
    return f'{100 * share:.{digits}f} %' if math.isfinite(share) else NO_VALUE

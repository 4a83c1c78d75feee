"""Axes of a small chart as SVG: scales, ticks, numbers for people, frame and grid.

Drawn by hand rather than by matplotlib: a panel is a few kilobytes, its letters are the page's own,
and its colours are the page's CSS variables, so that one drawing serves light and dark.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from beit.draw.numbers import short_number

INK = "var(--ink, #1d2127)"
FAINT = "var(--faint, #667080)"
RULE = "var(--rule, #dfe3e8)"
LETTER = 6.4  # mean width of a letter at 11.5 px: only to leave room for it
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"


class Scale(NamedTuple):
    """A span of values laid out on [0, 1], evenly or by logarithm."""

    low: float
    high: float
    log: bool = False

    def position(self, value: float) -> float:
        """Place a value: 0 at the low end, 1 at the high end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, wanted: int = 4) -> list[float]:
        """Choose round values inside the scale, in order: 1, 2 or 5 times a power of ten."""
        if self.log:
            return self._log_ticks(wanted)
        step = _round_step((self.high - self.low) / wanted)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def _log_ticks(self, wanted: int) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        stride = max(1, math.ceil((len(decades) - 1) / (wanted + 1)))
        factors = (1, 2, 5) if len(decades) <= 3 else (1,)
        found = [f * 10.0**decade for decade in decades[::stride] for f in factors]
        inside = [tick for tick in found if self.low * 0.999 <= tick <= self.high * 1.001]
        return inside if len(inside) > 1 else [self.low, self.high]


def scale_over(values: Iterable[float], log: bool = False, rounded: bool = True) -> Scale:
    """Span finite values; rounded: ends fall on round numbers. A single value gets room around it.

    With log, the values must be positive.
    """
    known = list(values)
    if not known:
        return Scale(1.0, 10.0, True) if log else Scale(0.0, 1.0)
    low, high = min(known), max(known)
    if log:
        if low <= 0:
            raise ValueError(f"a logarithmic scale needs positive values, got {low}")
        if high / low < 1.01:
            low, high = low / 2, high * 2
        return Scale(low / 1.1, high * 1.1, True) if rounded else Scale(low, high, True)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(low) / 10 or 1.0
        low, high = low - room, high + room
    if rounded:
        step = _round_step((high - low) / 4)
        low, high = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
    return Scale(low, high)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def tick_labels(ticks: Sequence[float], log: bool = False) -> list[str]:
    """Write the ticks of one axis alike and exactly: 0, 5k, 10k or 0.0005, 0.0010."""
    largest = max(map(abs, ticks))
    if log or not 1e-4 <= largest < 1e13:
        return [short_number(tick) for tick in ticks]
    step = min((b - a for a, b in pairwise(ticks)), default=largest)
    scales = ((1e10, 1e9, "G"), (1e7, 1e6, "M"), (1e4, 1e3, "k"))
    power, unit = next(
        ((p, u) for limit, p, u in scales if largest >= limit and step >= p / 10), (1.0, "")
    )
    decimals = next(d for d in range(12) if d == 11 or _round_to(step / power, d))
    return [f"{tick / power:.{decimals}f}{unit}" if tick else "0" for tick in ticks]


def _round_to(value: float, decimals: int) -> bool:
    return abs(round(value, decimals) - value) <= 1e-6 * value


class Frame(NamedTuple):
    """Where the data lie inside a drawing, and on which scales."""

    x: Scale
    y: Scale
    left: float
    top: float
    width: float
    height: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Turn data into drawing coordinates."""
        return (
            self.left + self.width * self.x.position(x),
            self.top + self.height * (1 - self.y.position(y)),
        )

    def drawing(self, x_label: str) -> str:
        """Draw grid lines, tick labels and the name of the x axis as an SVG fragment."""
        right, bottom = self.left + self.width, self.top + self.height
        parts = []
        ticks = self.y.ticks()
        for tick, label in zip(ticks, tick_labels(ticks, self.y.log), strict=True):
            y = self.at(self.x.low, tick)[1]
            parts.append(line(self.left, y, right, y, RULE))
            parts.append(text(self.left - 6, y + 3.8, label, anchor="end", colour=FAINT))
        ticks = self.x.ticks(6)
        for tick, label in zip(ticks, tick_labels(ticks), strict=True):
            x = self.at(tick, self.y.low)[0]
            room = len(label) * LETTER / 2
            parts.append(line(x, bottom, x, bottom + 4, FAINT))
            anchored = min(max(x, self.left - 6 + room), right + 10 - room)
            parts.append(text(anchored, bottom + 16, label, anchor="middle", colour=FAINT))
        parts.append(line(self.left, bottom, right, bottom, FAINT))
        parts.append(text(right, bottom + 31, x_label, anchor="end", colour=FAINT))
        return "".join(parts)


def label_room(scale: Scale) -> float:
    """Give the width that the tick labels of a y axis take."""
    return 12 + LETTER * max(map(len, tick_labels(scale.ticks(), scale.log)))


def line(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> str:
    """Draw a hairline."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'style="stroke:{colour}"{dashes}/>'
    )


def text(
    x: float, y: float, words: str, *, anchor: str = "start", colour: str = INK, bold: bool = False
) -> str:
    """Set words, escaped, on their baseline."""
    weight = ";font-weight:600" if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
        f'style="fill:{colour}{weight}">{escape(words)}</text>'
    )


def document(width: float, height: float, body: str) -> bytes:
    """Wrap fragments into an SVG that stands alone or inside a page."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'font-family="{FONT}" font-size="11.5" fill="none">{body}</svg>'
    ).encode()

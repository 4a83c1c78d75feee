"""Numbers formatted for people: about four digits, with equal decimals in a column or an axis."""

import math
import re
from collections.abc import Sequence
from itertools import pairwise


def short_number(value: float) -> str:
    """Format a number with about four digits: 0.3125, 1.5e-4, 8192, 12.5M."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 99_999.5:
        power, unit = next(
            (p, u) for p, u in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if size >= p
        )
        return f"{value / power:.4g}{unit}" if size < 1e16 else f"{value:.3e}"
    if size >= 1000:
        return f"{value:.5g}"
    if 0 < size < 0.001:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def aligned_numbers(values: Sequence[float], most: int = 4) -> list[str]:
    """Format numbers of one column with equal decimals, as many as any of them needs."""
    words = [short_number(value) for value in values]
    if all(re.fullmatch(r"-?\d+(\.\d+)?", word) for word in words):
        decimals = max((len(word.partition(".")[2]) for word in words), default=0)
        if decimals <= most:
            return [f"{value:.{decimals}f}" for value in values]
    return words


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Format the ticks of a linear axis, 1, 2 or 5 times a power of ten apart, with equal decimals.

    Examples: 0, 5k, 10k; 0.0005, 0.0010.
    """
    largest = max(map(abs, ticks), default=0.0)
    if len(ticks) < 2 or not 1e-4 <= largest < 1e13:
        return [short_number(tick) for tick in ticks]
    step = min(b - a for a, b in pairwise(ticks))
    units = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
    power, unit = next(
        ((p, u) for p, u in units if largest >= max(p, 1e4) and step >= p / 10), (1.0, "")
    )
    decimals = max(0, -math.floor(math.log10(step / power) + 1e-9))
    return [f"{tick / power:.{decimals}f}{unit}" if tick else "0" for tick in ticks]


def cosine_words(values: Sequence[float]) -> list[str]:
    """Format cosines with two to six decimals: enough to tell them from each other and from 1."""
    extent = max(values, default=0.0) - min(values, default=0.0)
    below_one = min((1 - value for value in values if 1 - value > 1e-6), default=1.0)
    decimals = 2 if extent == 0 else max(2, 1 + math.ceil(-math.log10(extent)))
    decimals = min(6, max(decimals, math.ceil(-math.log10(below_one))))
    return [f"{value:.{decimals}f}" for value in values]

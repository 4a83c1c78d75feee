"""Numbers as people read them: about four digits, and alike in a column."""

import math
import re
from collections.abc import Sequence


def short_number(value: float) -> str:
    """Write a number with about four digits, for people: 0.3125, 1.5e-4, 8192, 12.5M."""
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
    """Write numbers of one column with the same decimals, as many as any of them needs."""
    words = [short_number(value) for value in values]
    if all(re.fullmatch(r"-?\d+(\.\d+)?", word) for word in words):
        decimals = max((len(word.partition(".")[2]) for word in words), default=0)
        if decimals <= most:
            return [f"{value:.{decimals}f}" for value in values]
    return words

"""Curves of a metrics log: one chart for each group of metrics."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from beit.draw.charts import Line, line_chart
from beit.draw.numbers import short_number
from beit.draw.report import Gallery, Picture


def curves(
    records: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]],
    caption: str,
    *,
    x: str = "step",
    log: Collection[str] = (),
) -> Gallery:
    """Draw a chart for each title of `panels`, with a curve for each of its keys.

    Records without a key leave no gap in its curve. Values that are not finite leave a gap and are
    counted below the legend. Titles in `log` get a logarithmic y axis.
    """
    if unknown := set(log) - set(panels):
        raise ValueError(f"log names {sorted(unknown)}, which are not panels: {list(panels)}")
    for record in records:
        if x not in record:
            raise ValueError(f"a record has no {x!r}, the x axis; its keys are {list(record)}")
    pictures = [_chart(records, title, keys, x, title in log) for title, keys in panels.items()]
    return Gallery(caption, pictures)


def _chart(
    records: Sequence[Mapping[str, Any]], title: str, keys: Sequence[str], x: str, log: bool
) -> Picture:
    lines, ranges, notes = [], [], []
    for key in keys:
        logged = [r for r in records if r.get(key) is not None]
        points = [(float(r[x]), _drawable(float(r[key]), log)) for r in logged]
        known = [y for _, y in points if not math.isnan(y)]
        if known:
            last = short_number(known[-1])
            lines.append(Line(f"{key.replace('_', ' ')} {last}", points))
            ranges.append(f"{key} from {short_number(known[0])} to {last}")
        if num_missing := len(points) - len(known):
            notes.append(f"{key}: {num_missing} not {'positive' if log else 'finite'}")
    alt = f"{title} against {x}: {'; '.join(ranges) or 'nothing logged'}"
    data = line_chart(title + " (log)" * log, lines, x, notes=notes, log=log)
    return Picture("", alt, data, "image/svg+xml")


def _drawable(value: float, log: bool) -> float:
    return value if math.isfinite(value) and (value > 0 or not log) else math.nan

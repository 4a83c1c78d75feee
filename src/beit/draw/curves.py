"""Curves of a metrics log: one chart for each group of metrics."""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from beit.draw.charts import Line, line_chart, worded
from beit.draw.names import is_share, name_of
from beit.draw.report import Cell, Gallery, Item, Picture, Table

WHOLE = 0.75  # a window with this share of the longest one's steps is long enough for a mean

Records = Sequence[Mapping[str, Any]]


def whole_windows(records: Records) -> Records:
    """Keep only step, epoch and rate of training records that cover few steps.

    A record holds means since the one before. Over few steps, as before a checkpoint or at the end,
    the perplexity and the use of a codebook are smaller, and a loss is noise.
    """
    ends = [int(record["step"]) for record in records if "rate" in record]
    steps = {end: end - before for before, end in pairwise([0, *ends])}
    least = WHOLE * max(steps.values(), default=0)
    kept = []
    for record in records:
        if "rate" in record and steps[record["step"]] < least:
            record = {key: record[key] for key in ("step", "epoch", "rate") if key in record}
        kept.append(record)
    return kept


def curves(
    records: Records,
    panels: Mapping[str, Sequence[str]],
    caption: str,
    *,
    x: str = "step",
    log: Collection[str] = (),
    percent: Collection[str] = (),
) -> list[Item]:
    """Draw a chart for each title of `panels`, with a curve for each of its keys.

    Panels with values at one x only become rows of a table, panels without values are left out.
    Records without a key leave no gap in its curve. Values that are not finite leave a gap and are
    counted below the legend. Titles in `log` get a logarithmic y axis. Shares (`beit.draw.names`)
    are shown in percent; titles in `percent` are in percent already.
    """
    for option, titles in (("log", log), ("percent", percent)):
        if unknown := set(titles) - set(panels):
            raise ValueError(
                f"{option} names {sorted(unknown)}, which are not panels: {list(panels)}"
            )
    for record in records:
        if x not in record:
            raise ValueError(f"a record has no {x!r}, the x axis; its keys are {list(record)}")
    pictures: list[Picture] = []
    rows: list[list[Cell]] = []
    whole = whole_windows(records) if x == "step" else records
    for title, keys in panels.items():
        logged = {key: [r for r in whole if r.get(key) is not None] for key in keys}
        places = {float(record[x]) for some in logged.values() for record in some}
        if len(places) > 1:
            pictures.append(_chart(logged, title, x, title in log, title in percent))
            continue
        for key, some in logged.items():
            if some:
                value, unit = _scaled(key, float(some[-1][key]), title in percent)
                rows.append([title, name_of(key), worded(value, unit), some[-1][x]])
    items: list[Item] = [Gallery(caption, pictures)] if pictures else []
    if rows:
        items.append(Table("Measured once", ["", "figure", "value", x], rows))
    return items


def _scaled(key: str, value: float, percent: bool) -> tuple[float, str]:
    """Return a value as drawn, and its unit."""
    if is_share(key):
        return 100 * value, "%"
    return value, "%" if percent else ""


def _chart(logged: Mapping[str, Records], title: str, x: str, log: bool, percent: bool) -> Picture:
    lines, ranges, notes, unit = [], [], [], ""
    for key, records in logged.items():
        scaled = [_scaled(key, float(record[key]), percent) for record in records]
        unit = max((one for _, one in scaled), default=unit)
        points = [
            (float(r[x]), _drawable(y, log)) for r, (y, _) in zip(records, scaled, strict=True)
        ]
        known = [y for _, y in points if not math.isnan(y)]
        if known:
            name, last = name_of(key), worded(known[-1], unit)
            lines.append(Line(f"{name} {last}", points, name=name))
            ranges.append(f"{name} from {worded(known[0], unit)} to {last}")
        if num_missing := len(points) - len(known):
            notes.append(f"{name_of(key)}: {num_missing} not {'positive' if log else 'finite'}")
    alt = f"{title} against {x}: {'; '.join(ranges)}"
    above = f"{title} (log)" if log else title
    data = line_chart(above, lines, x, notes=notes, log=log, unit=unit)
    return Picture("", alt, data, "image/svg+xml")


def _drawable(value: float, log: bool) -> float:
    return value if math.isfinite(value) and (value > 0 or not log) else math.nan

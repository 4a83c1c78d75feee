"""Curves of a metrics log: one small SVG panel for each group of figures."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from beit.draw.axes import FAINT, LETTER, Frame, document, label_room, scale_over, text
from beit.draw.colours import SERIES
from beit.draw.numbers import short_number
from beit.draw.report import Gallery, Picture

WIDTH, PLOT_HEIGHT, RIGHT = 330, 150, 12
COLUMNS = 300  # a curve is thinned to the extremes of this many pieces
MARKED = 30  # curves of so few points show each of them


class Series(NamedTuple):
    """The points of one figure, in order of x; not_shown counts those without a place."""

    key: str
    points: list[tuple[float, float]]
    not_shown: int


def curves(
    records: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]],
    caption: str,
    *,
    x: str = "step",
    log: Collection[str] = (),
) -> Gallery:
    """Draw a panel for each title of `panels`, with a curve for each of its keys.

    Records that lack a key leave no gap in its curve; values that are not finite do, and are
    counted below the legend. Titles in `log` get a logarithmic y axis.
    """
    if strange := set(log) - set(panels):
        raise ValueError(f"log names {sorted(strange)}, which are not panels: {list(panels)}")
    for record in records:
        if x not in record:
            raise ValueError(f"a record has no {x!r}, the x axis; its keys are {list(record)}")
    pictures = [
        _panel(title, [_series(records, x, key, title in log) for key in keys], x, title in log)
        for title, keys in panels.items()
    ]
    return Gallery(caption, pictures)


def _series(records: Sequence[Mapping[str, Any]], x: str, key: str, log: bool) -> Series:
    points: list[tuple[float, float]] = []
    not_shown = 0
    for record in records:
        if record.get(key) is None:
            continue
        value = float(record[key])
        if not math.isfinite(value) or (log and value <= 0):
            not_shown += 1
            value = math.nan
        points.append((float(record[x]), value))
    return Series(key, points, not_shown)


def _panel(title: str, series: list[Series], x: str, log: bool) -> Picture:
    drawn = [s for s in series if any(not math.isnan(y) for _, y in s.points)]
    known = [point for s in drawn for point in s.points if not math.isnan(point[1])]
    scale_x = scale_over((px for px, _ in known), rounded=False)
    scale_y = scale_over((py for _, py in known), log=log)
    left = label_room(scale_y)
    legend, top = _legend(drawn, 34)
    lost = [
        f"{s.key}: {s.not_shown} not {'positive' if log else 'finite'}"
        for s in series
        if s.not_shown
    ]
    for note in lost:
        legend += text(0, top, note, colour=FAINT)
        top += 15
    frame = Frame(scale_x, scale_y, left, top, WIDTH - left - RIGHT, PLOT_HEIGHT)
    title_line = text(0, 13, title + (" (log)" if log else ""), bold=True)
    body = [title_line, legend]
    if known:
        body.append(frame.drawing(x))
    else:
        body.append(text(WIDTH / 2, top + 80, "nothing logged", anchor="middle", colour=FAINT))
    body += [_curve(s, index, frame) for index, s in enumerate(drawn)]
    told = "; ".join(
        f"{s.key} from {short_number(first)} to {short_number(last)}"
        for s in drawn
        for first, last in [_ends(s.points)]
    )
    alt = f"{title} against {x}: {told or 'nothing logged'}"
    data = document(WIDTH, top + PLOT_HEIGHT + 36, "".join(body))
    return Picture("", alt, data, "image/svg+xml")


def _legend(series: list[Series], top: float) -> tuple[str, float]:
    """Set the names with their last values, wrapped; returns also where the plot may begin."""
    parts: list[str] = []
    x = 0.0
    for index, s in enumerate(series):
        words = f"{s.key.replace('_', ' ')} {short_number(_ends(s.points)[1])}"
        room = 20 + LETTER * len(words)
        if x > 0 and x + room > WIDTH:
            x, top = 0.0, top + 15
        parts.append(
            f'<path d="M{x:.1f} {top - 4:.1f}h14" stroke-width="2.5" style="{_stroke(index)}"/>'
        )
        parts.append(text(x + 19, top, words, colour=FAINT))
        x += room + 10
    return "".join(parts), top + 14


def _curve(series: Series, index: int, frame: Frame) -> str:
    parts: list[str] = []
    single = []
    for run in _runs(series.points):
        places = [frame.at(*point) for point in _thinned(run)]
        if len(places) == 1:
            single += places
        parts.append("M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places))
    marks = single
    if len(series.points) <= MARKED:
        marks = [frame.at(*point) for point in series.points if not math.isnan(point[1])]
    dots = "".join(f"M{px:.1f} {py:.1f}h0" for px, py in marks)
    style = _stroke(index)
    joined = 'stroke-linejoin="round" stroke-linecap="round"'
    return (
        f'<path d="{"".join(parts)}" stroke-width="1.6" {joined} style="{style}"/>'
        f'<path d="{dots}" stroke-width="4.5" {joined} style="{style}"/>'
    )


def _stroke(index: int) -> str:
    dash = ";stroke-dasharray:5 3" if index >= len(SERIES) else ""
    return f"stroke:{SERIES[index % len(SERIES)]}{dash}"


def _runs(points: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Split at values that are not there."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if math.isnan(point[1]):
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep both ends, and the lowest and highest point of every piece: a spike stays a spike."""
    if len(points) <= 2 * COLUMNS:
        return points
    kept = {0, len(points) - 1}
    for column in range(COLUMNS):
        piece = range(column * len(points) // COLUMNS, (column + 1) * len(points) // COLUMNS)
        kept.add(min(piece, key=lambda index: points[index][1]))
        kept.add(max(piece, key=lambda index: points[index][1]))
    return [points[index] for index in sorted(kept)]


def _ends(points: list[tuple[float, float]]) -> tuple[float, float]:
    known = [y for _, y in points if not math.isnan(y)]
    return known[0], known[-1]

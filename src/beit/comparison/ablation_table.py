"""What an ablation found: one table of means and deviations over seeds, and a plot of each column.

A column whose title ends in % holds shares, which are shown times a hundred.
"""

import csv
import io
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from beit.draw.axes import FAINT, LETTER, RULE, document, line, scale_over, text, tick_labels
from beit.draw.colours import SERIES
from beit.draw.numbers import aligned_numbers, short_number
from beit.draw.report import Cell, Gallery, Picture, Table

WIDTH, ROW, RIGHT = 440, 22, 16
LONGEST = 30  # letters of a cell's name in a plot


class Measured(NamedTuple):
    """One cell of the plan, as far as its runs are complete.

    Attributes:
        name: of the cell
        values: by column and seed
        settings: what is not alike in all cells, by dotted name; "–" where the cell has none
        paper: what a publication reports, by column or by a name of its own
    """

    name: str
    values: Mapping[str, Mapping[int, float]]
    settings: Mapping[str, str]
    paper: Mapping[str, str]


class Spread(NamedTuple):
    """Mean over seeds, and the sample standard deviation (n - 1); None of a single value."""

    mean: float
    deviation: float | None


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and deviation of values, None where there are none."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation)


def shown(cell: Measured, column: str) -> list[float]:
    """Return a cell's values of a column as they are shown, by rising seed."""
    factor = 100 if column.endswith("%") else 1
    return [factor * value for _, value in sorted(cell.values.get(column, {}).items())]


def ablation_table(cells: Sequence[Measured], columns: Sequence[str], seeds: int) -> Table:
    """Set mean ± deviation over seeds of each column beside what a publication reports.

    A cell with figures of fewer seeds than there are says so.
    """
    names, written = ["Cell"], [[cell.name for cell in cells]]
    for column in columns:
        names.append(column)
        written.append(_written(column, [spread(shown(cell, column)) for cell in cells]))
        reported = [cell.paper.get(column) for cell in cells]
        if any(reported):
            names.append(f"{column}: paper")
            written.append([value or "–" for value in reported])
    others = dict.fromkeys(name for cell in cells for name in cell.paper if name not in columns)
    for name in others:
        names.append(f"Paper: {name}")
        written.append([cell.paper.get(name, "–") for cell in cells])
    names.append("Seeds")
    counts = [min((len(shown(cell, c)) for c in _measured(cell)), default=0) for cell in cells]
    written.append([str(n) if n == seeds else f"{n} of {seeds}" for n in counts])
    caption = "Mean ± standard deviation over seeds" if seeds > 1 else "One seed, no deviation"
    rows: list[list[Cell]] = [list(row) for row in zip(*written, strict=True)]
    return Table(caption, names, rows)


def settings_table(cells: Sequence[Measured]) -> Table:
    """List the settings that are not alike in all cells: given ones and defaults of presets."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.settings))
    rows: list[list[Cell]] = [
        [cell.name, *(cell.settings.get(name, "–") for name in names)] for cell in cells
    ]
    return Table("Settings that differ between cells", ["Cell", *names], rows)


def ablation_csv(cells: Sequence[Measured], columns: Sequence[str]) -> str:
    """Write a line for each cell: figures unrounded, then the settings that differ."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.settings))
    head = ["cell"]
    for column in columns:
        head += [column, f"{column} sd", f"{column} n"]
    lines: list[list[str]] = [[*head, *names]]
    for cell in cells:
        words = [cell.name]
        for column in columns:
            values = shown(cell, column)
            found = spread(values)
            words.append("" if found is None else repr(found.mean))
            lone = found is None or found.deviation is None
            words.append("" if lone or found is None else repr(found.deviation))
            words.append(str(len(values)))
        lines.append([*words, *(cell.settings.get(name, "") for name in names)])
    return as_csv(lines)


def as_csv(lines: Sequence[Sequence[str]]) -> str:
    """Write lines of words as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()


def as_markdown(table: Table) -> str:
    """Write a table as Markdown, its caption below."""
    lines = [list(map(_escaped, row)) for row in (table.columns, *table.rows)]
    lines.insert(1, ["---"] + ["---:"] * (len(table.columns) - 1))
    rows = [f"| {' | '.join(words)} |" for words in lines]
    return "\n".join([*rows, "", f"{table.caption}."])


def ablation_plots(cells: Sequence[Measured], columns: Sequence[str]) -> Gallery:
    """Draw each column: a row for each cell, its mean as a dot, deviation as a bar, seeds faint."""
    pictures = [_panel(cells, column) for column in columns]
    return Gallery("Mean (dot) and standard deviation (bar) over seeds (rings)", pictures)


def _panel(cells: Sequence[Measured], column: str) -> Picture:
    values = {cell.name: shown(cell, column) for cell in cells}
    ends = [value for several in values.values() for value in several]
    for several in values.values():
        found = spread(several)
        if found is not None and found.deviation is not None:
            ends += [found.mean - found.deviation, found.mean + found.deviation]
    scale = scale_over(ends)
    left = 10 + LETTER * min(LONGEST, max(len(name) for name in values))
    width, top = WIDTH - left - RIGHT, 30
    bottom = top + ROW * len(values)

    def across(value: float) -> float:
        return left + width * scale.position(value)

    parts = [text(0, 13, column, bold=True)]
    ticks = scale.ticks()
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        parts.append(line(across(tick), top, across(tick), bottom, RULE))
        parts.append(text(across(tick), bottom + 15, label, anchor="middle", colour=FAINT))
    told = []
    for place, (name, several) in enumerate(values.items()):
        y = top + ROW * (place + 0.5)
        short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
        parts.append(text(left - 8, y + 4, short, anchor="end"))
        found = spread(several)
        if found is None:
            told.append(f"{name} not measured")
            continue
        for value in several:
            parts.append(
                f'<circle cx="{across(value):.1f}" cy="{y:.1f}" r="3" style="stroke:{FAINT}"/>'
            )
        if found.deviation is not None:
            low, high = across(found.mean - found.deviation), across(found.mean + found.deviation)
            parts.append(line(low, y, high, y, SERIES[0]))
        parts.append(
            f'<circle cx="{across(found.mean):.1f}" cy="{y:.1f}" r="4" style="fill:{SERIES[0]}"/>'
        )
        told.append(f"{name} {short_number(found.mean)}")
    data = document(WIDTH, bottom + 24, "".join(parts))
    return Picture("", f"{column}: {'; '.join(told)}", data, "image/svg+xml")


def _measured(cell: Measured) -> list[str]:
    """Name the columns that a cell has any figure for."""
    return [column for column, values in cell.values.items() if values]


def _written(column: str, found: Sequence[Spread | None]) -> list[str]:
    """Write one column with as many decimals as give its largest deviation two digits."""
    known = [one for one in found if one is not None]
    largest = max((one.deviation or 0.0 for one in known), default=0.0)
    means = aligned_numbers([one.mean for one in known])
    plain = all(re.fullmatch(r"-?\d+(\.\d+)?", mean) for mean in means)
    if column.endswith("%") or (plain and largest > 0):
        digits = 2 if column.endswith("%") else max(0, 1 - math.floor(math.log10(largest)))
        means = [f"{one.mean:.{digits}f}" for one in known]
        deviations = [f"{one.deviation or 0.0:.{digits}f}" for one in known]
    else:
        deviations = [short_number(one.deviation or 0.0) for one in known]
    words = iter(
        mean if one.deviation is None else f"{mean} ± {deviation}"
        for mean, deviation, one in zip(means, deviations, known, strict=True)
    )
    return ["–" if one is None else next(words) for one in found]


def _escaped(word: Cell) -> str:
    return str(word).replace("|", "\\|")

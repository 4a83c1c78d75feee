"""Results of an ablation: a table of means and deviations over seeds, and a plot of each column.

A column whose title ends in % holds shares, which are shown multiplied by 100.
"""

import csv
import io
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from beit.draw.charts import (
    LETTER,
    label_ticks,
    new_chart,
    place_axes,
    shortened,
    styled,
    themed_svg,
)
from beit.draw.colours import FAINT, INK, SERIES
from beit.draw.numbers import aligned_numbers, short_number
from beit.draw.report import Cell, Gallery, Picture, Table

WIDTH, ROW, RIGHT = 360, 22, 18  # pixels of a plot
LONGEST = 22  # letters of a cell's name in a plot, at most


class Measured(NamedTuple):
    """The results of one cell of the plan, from its complete runs.

    Attributes:
        name: of the cell
        values: by column and seed
        settings: those that differ between cells, by dotted name; "–" if the cell lacks it
        paper: published results, by column or by another name
    """

    name: str
    values: Mapping[str, Mapping[int, float]]
    settings: Mapping[str, str]
    paper: Mapping[str, str]


class Spread(NamedTuple):
    """Mean over seeds, and the sample standard deviation (n - 1), None for a single value."""

    mean: float
    deviation: float | None


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and deviation of values; None if there are none."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation)


def shown(cell: Measured, column: str) -> list[float]:
    """Return a cell's values of a column in the unit of the table, sorted by seed."""
    factor = 100 if column.endswith("%") else 1
    return [factor * value for _, value in sorted(cell.values.get(column, {}).items())]


def ablation_table(cells: Sequence[Measured], columns: Sequence[str], seeds: int) -> Table:
    """List mean ± deviation over seeds of each column, beside published results.

    The last column counts the seeds that a cell has results for.
    """
    names, written = ["Cell"], [[cell.name for cell in cells]]
    for column in columns:
        names.append(column)
        written.append(_formatted(column, [spread(shown(cell, column)) for cell in cells]))
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
    """List the settings that differ between cells, defaults of presets included."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.settings))
    rows: list[list[Cell]] = [
        [cell.name, *(cell.settings.get(name, "–") for name in names)] for cell in cells
    ]
    return Table("Settings that differ between cells", ["Cell", *names], rows)


def ablation_csv(cells: Sequence[Measured], columns: Sequence[str]) -> str:
    """Write a line for each cell: unrounded results, then the settings that differ."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.settings))
    head = ["cell"]
    for column in columns:
        head += [column, f"{column} sd", f"{column} n"]
    lines: list[list[str]] = [[*head, *names]]
    for cell in cells:
        words = [cell.name]
        for column in columns:
            values = shown(cell, column)
            mean, deviation = spread(values) or (None, None)
            words += ["" if value is None else repr(value) for value in (mean, deviation)]
            words.append(str(len(values)))
        lines.append([*words, *(cell.settings.get(name, "") for name in names)])
    return as_csv(lines)


def as_csv(lines: Sequence[Sequence[str]]) -> str:
    """Format lines of words as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()


def as_markdown(table: Table) -> str:
    """Format a table as Markdown, with its caption below."""
    lines = [list(map(_escaped, row)) for row in (table.columns, *table.rows)]
    lines.insert(1, ["---"] + ["---:"] * (len(table.columns) - 1))
    rows = [f"| {' | '.join(words)} |" for words in lines]
    return "\n".join([*rows, "", f"{table.caption}."])


def ablation_plots(cells: Sequence[Measured], columns: Sequence[str]) -> Gallery:
    """Draw each column: a row for each cell with its mean, standard deviation and seeds."""
    pictures = [_chart(cells, column) for column in columns]
    return Gallery("Mean (dot) and standard deviation (bar) over seeds (rings)", pictures)


def _chart(cells: Sequence[Measured], column: str) -> Picture:
    descriptions = []
    labels = [shortened(cell.name, LONGEST) for cell in cells]
    top = 26
    with styled():
        figure = new_chart(column, top + ROW * len(cells) + 24, WIDTH)
        axes = figure.add_axes((0, 0, 1, 1))
        for row, cell in enumerate(cells):
            values = shown(cell, column)
            result = spread(values)
            if result is None:
                descriptions.append(f"{cell.name} not measured")
                continue
            seeds: dict[str, Any] = {"markersize": 6, "markerfacecolor": "none"}
            axes.plot(values, [row] * len(values), "o", color=FAINT, clip_on=False, **seeds)
            axes.errorbar(
                result.mean,
                row,
                xerr=result.deviation,
                fmt="o",
                color=SERIES[0],
                markersize=8,
                markeredgewidth=0,
                elinewidth=1.4,
            )
            descriptions.append(f"{cell.name} {short_number(result.mean)}")
        left = 18 + LETTER * max(map(len, labels))
        place_axes(axes, left, top, RIGHT, 24)
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.set_yticks(range(len(cells)), labels, color=INK)
        label_ticks(axes, "x", 4)
        axes.tick_params(length=0)
        axes.tick_params(axis="y", pad=12)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x")
        data = themed_svg(figure)
    return Picture("", f"{column}: {'; '.join(descriptions)}", data, "image/svg+xml")


def _measured(cell: Measured) -> list[str]:
    """List the columns for which a cell has results."""
    return [column for column, values in cell.values.items() if values]


def _formatted(column: str, spreads: Sequence[Spread | None]) -> list[str]:
    """Format one column, with decimals such that its largest deviation has two digits."""
    known = [one for one in spreads if one is not None]
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
    return ["–" if one is None else next(words) for one in spreads]


def _escaped(word: Cell) -> str:
    return str(word).replace("|", "\\|")

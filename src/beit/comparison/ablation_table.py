"""Results of an ablation: means and deviations over seeds as tables, plots, CSV and a report.

A column whose title ends in % holds shares, which are shown multiplied by 100.
"""

import csv
import io
import math
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from beit.comparison.plan import Plan
from beit.comparison.planned_runs import Chain
from beit.comparison.records import ENVIRONMENT, Record
from beit.draw.charts import (
    label_ticks,
    new_chart,
    place_axes,
    shortened,
    styled,
    themed_svg,
    widest,
)
from beit.draw.colours import FAINT, INK, SERIES
from beit.draw.numbers import aligned_numbers, short_number
from beit.draw.report import Cell, Gallery, Picture, Section, Table, write_report
from beit.files import write_text

WIDTH, TOP, ROW, BOTTOM, RIGHT = 360, 26, 22, 24, 18  # pixels of a plot
LONGEST = 22  # letters of a cell's name in a plot, at most
Spread = tuple[float, float | None]  # mean and standard deviation


class Measured(NamedTuple):
    """The results of one cell of the plan, from its complete runs."""

    name: str  # of the cell
    values: Mapping[str, Mapping[int, float]]  # by column and seed
    settings: Mapping[str, str]  # those that differ between cells, by dotted name
    paper: Mapping[str, str]  # published results, by column or by another name
    hours: Mapping[int, float] = {}  # of the trainings of its chain, by seed
    once: Collection[str] = ()  # columns whose value is that of one run for all seeds


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and sample standard deviation (n - 1; None for one value); None for no values."""
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def shown(cell: Measured, column: str) -> list[float]:
    """Return a cell's values of a column in the unit of the table, of each run, sorted by seed."""
    factor = 100 if column.endswith("%") else 1
    values = [factor * value for _, value in sorted(cell.values.get(column, {}).items())]
    return values[:1] if column in cell.once else values


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


def ablation_table(cells: Sequence[Measured], columns: Sequence[str], seeds: int) -> Table:
    """List mean ± deviation over seeds of each column, beside published results.

    The last columns are the mean hours of a cell's trainings, those that it shares included, and
    the number of seeds that it has results for.
    """
    table = [("Cell", [cell.name for cell in cells])]
    for column in columns:
        table.append((column, _formatted(column, [spread(shown(cell, column)) for cell in cells])))
        if any(cell.paper.get(column) for cell in cells):
            table.append((f"{column}: paper", [cell.paper.get(column) or "–" for cell in cells]))
    others = dict.fromkeys(name for cell in cells for name in cell.paper if name not in columns)
    for name in others:
        table.append((f"Paper: {name}", [cell.paper.get(name, "–") for cell in cells]))
    if any(cell.hours for cell in cells):
        hours = [spread([*cell.hours.values()]) for cell in cells]
        words = ["–" if mean is None else f"{mean[0]:.2f}" for mean in hours]
        table.append(("Hours of training", words))
    counts = [min((len(v) for v in cell.values.values() if v), default=0) for cell in cells]
    table.append(("Seeds", [str(n) if n == seeds else f"{n} of {seeds}" for n in counts]))
    caption = "Mean ± standard deviation over seeds" if seeds > 1 else "One seed, no deviation"
    rows: list[list[Cell]] = [list(row) for row in zip(*(words for _, words in table), strict=True)]
    return Table(caption, [name for name, _ in table], rows)


def _formatted(column: str, spreads: Sequence[Spread | None]) -> list[str]:
    """Format one column, with decimals such that its largest deviation has two digits."""
    known = [one for one in spreads if one is not None]
    largest = max((deviation or 0.0 for _, deviation in known), default=0.0)
    means = aligned_numbers([mean for mean, _ in known])
    deviations = [short_number(deviation or 0.0) for _, deviation in known]
    plain = all(re.fullmatch(r"-?\d+(\.\d+)?", mean) for mean in means)
    if column.endswith("%") or (plain and largest > 0):
        digits = 1 if column.endswith("%") else max(0, 1 - math.floor(math.log10(largest)))
        means = [f"{mean:.{digits}f}" for mean, _ in known]
        deviations = [f"{deviation or 0.0:.{digits}f}" for _, deviation in known]
    words = iter(
        mean if exact is None else f"{mean} ± {deviation}"
        for mean, deviation, (_, exact) in zip(means, deviations, known, strict=True)
    )
    return ["–" if one is None else next(words) for one in spreads]


def difference_table(cells: Sequence[Measured], columns: Sequence[str], reference: str) -> Table:
    """Compare each cell with the reference, over the seeds that both have.

    A difference has half the 95% interval of a paired t-test, and its p; the mean alone if there is
    one seed, or if all seeds differ by the same.
    """
    base = next(cell for cell in cells if cell.name == reference)
    rows: list[list[Cell]] = [
        [cell.name, *(_difference(cell, base, column) for column in columns)]
        for cell in cells
        if cell is not base
    ]
    caption = f"Differences from {reference} over the same seeds: mean ± half the 95% interval"
    return Table(f"{caption} of a paired t-test, and its p", ["Cell", *columns], rows)


def _difference(cell: Measured, base: Measured, column: str) -> str:
    ones, others = cell.values.get(column, {}), base.values.get(column, {})
    factor = 100 if column.endswith("%") else 1
    seeds = sorted(set(ones) & set(others))
    # Rounded: a test would find differences that vary in the last bit only significant.
    by_seed = [round(factor * (ones[seed] - others[seed]), 9) for seed in seeds]
    if not by_seed:
        return "–"
    mean, digits = statistics.fmean(by_seed), 1 if factor == 100 else 3
    if len({*by_seed}) == 1:
        return f"{mean:+.{digits}f}"
    test = stats.ttest_1samp(by_seed, 0)
    low, high = test.confidence_interval(0.95)
    return f"{mean:+.{digits}f} ± {(high - low) / 2:.{digits}f}, p {test.pvalue:.2g}"


def settings_table(cells: Sequence[Measured]) -> Table:
    """List the settings that differ between cells, defaults of presets included."""
    names = _setting_names(cells)
    rows = [[cell.name, *(cell.settings.get(name, "–") for name in names)] for cell in cells]
    return Table("Settings that differ between cells", ["Cell", *names], rows)


def _setting_names(cells: Iterable[Measured]) -> list[str]:
    return list(dict.fromkeys(name for cell in cells for name in cell.settings))


def as_markdown(table: Table) -> str:
    """Format a table as Markdown, with its caption below."""
    lines = [
        [str(word).replace("|", "\\|") for word in row] for row in (table.columns, *table.rows)
    ]
    lines.insert(1, ["---"] + ["---:"] * (len(table.columns) - 1))
    return "\n".join([*(f"| {' | '.join(words)} |" for words in lines), "", f"{table.caption}."])


def ablation_csv(cells: Sequence[Measured], columns: Sequence[str]) -> str:
    """Write a line for each cell: unrounded results, then the settings that differ."""
    names = _setting_names(cells)
    results = [f"{column}{part}" for column in columns for part in ("", " sd", " n")]
    lines = [["cell", *results, *names]]
    for cell in cells:
        words = [cell.name]
        for column in columns:
            values = shown(cell, column)
            words += [*map(_exact, spread(values) or (None, None)), str(len(values))]
        lines.append([*words, *(cell.settings.get(name, "") for name in names)])
    return _as_csv(lines)


def runs_csv(plan: Plan, chains: Sequence[Chain], cells: Sequence[Measured]) -> str:
    """List cells and seeds, each with its unscaled metrics and the names of its runs."""
    stages = list(dict.fromkeys(name for chain in chains for name in chain.runs))
    values = {cell.name: cell.values for cell in cells}
    lines = [["cell", "seed", *plan.columns, *stages]]
    for chain in chains:
        metrics = [_exact(values[chain.cell][column].get(chain.seed)) for column in plan.columns]
        names = [chain.runs[stage].name if stage in chain.runs else "" for stage in stages]
        lines.append([chain.cell, str(chain.seed), *metrics, *names])
    return _as_csv(lines)


def _exact(value: float | None) -> str:
    return "" if value is None else repr(value)


def _as_csv(lines: Iterable[Iterable[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()


# ── plots ───────────────────────────────────────────────────────────────────────────────────────


def ablation_plots(cells: Sequence[Measured], columns: Sequence[str]) -> Gallery:
    """Draw each column: a row for each cell with its mean, standard deviation and seeds."""
    pictures = [_chart(cells, column) for column in columns]
    return Gallery("Mean (dot) and standard deviation (bar) over seeds (rings)", pictures)


def _chart(cells: Sequence[Measured], column: str) -> Picture:
    descriptions = []
    labels = [shortened(cell.name, LONGEST) for cell in cells]
    rings: dict[str, Any] = {"markersize": 6, "markerfacecolor": "none", "clip_on": False}
    dot: dict[str, Any] = {"markersize": 8, "markeredgewidth": 0, "elinewidth": 1.4}
    with styled():
        figure = new_chart(column, TOP + ROW * len(cells) + BOTTOM, WIDTH)
        axes = figure.add_axes((0, 0, 1, 1))
        for row, cell in enumerate(cells):
            values = shown(cell, column)
            result = spread(values)
            if result is None:
                descriptions.append(f"{cell.name} not measured")
                continue
            axes.plot(values, [row] * len(values), "o", color=FAINT, **rings)
            mean, deviation = result
            axes.errorbar(mean, row, xerr=deviation, fmt="o", color=SERIES[0], **dot)
            descriptions.append(f"{cell.name} {short_number(mean)}")
        place_axes(axes, 18 + widest(labels), TOP, RIGHT, BOTTOM)
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


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def write_results(
    plan: Plan,
    chains: list[Chain],
    output: Path,
    records: Mapping[str, Record],
    cells: list[Measured],
    failures: Mapping[str, str],
) -> Table:
    """Write table.md, table.csv, runs.csv, the plots and report.html; return the table."""
    table = ablation_table(cells, list(plan.columns), len(plan.seeds))
    differences = []
    if plan.reference:
        differences = [difference_table(cells, list(plan.columns), plan.reference)]
    settings = [settings_table(cells)] if any(cell.settings for cell in cells) else []
    plots = ablation_plots(cells, list(plan.columns))
    facts = _facts(plan, chains, records)
    reasons = "\n\n".join(f"`{name}`: {reason}" for name, reason in failures.items())
    parts = [f"# {plan.title}", plan.text.strip(), *map(as_markdown, [table, *differences])]
    for number, plot in enumerate(plots.pictures, start=1):
        write_text(output / f"plot-{number}.svg", plot.data.decode())
        parts.append(f"![{plot.alt}](plot-{number}.svg)")
    parts += map(as_markdown, settings)
    parts += [f"## What failed\n\n{reasons}"] if reasons else []
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    write_text(output / "table.csv", ablation_csv(cells, list(plan.columns)))
    write_text(output / "runs.csv", runs_csv(plan, chains, cells))
    write_text(output / "table.md", "\n\n".join(part for part in parts if part) + "\n")
    sections = [Section("Results", items=[table, *differences, plots])]
    sections += [Section("Settings", items=settings)] if settings else []
    sections += [Section("What failed", reasons)] if reasons else []
    write_report(output / "report.html", plan.title, sections, facts, summary=plan.text)
    return table


def _facts(plan: Plan, chains: Sequence[Chain], records: Mapping[str, Record]) -> dict[str, str]:
    """Describe the complete runs: seeds, number, and every environment among them."""
    names = {run.name for chain in chains for run in chain.runs.values()}
    environments = [record.environment for name, record in records.items() if name in names]
    facts = {"Seeds": ", ".join(map(str, plan.seeds)), "Runs": f"{len(environments)} complete"}
    for name in ENVIRONMENT:
        values = dict.fromkeys(_one_line(environment.get(name)) for environment in environments)
        facts[name.capitalize()] = ", ".join(values) or "unknown"
    return facts


def _one_line(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)

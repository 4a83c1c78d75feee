"""Several runs side by side: curves, settings that differ, last metrics; tables in Markdown."""

import html
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from beit.comparison.ablation_table import as_markdown
from beit.draw.charts import MARKED, shortened, styled
from beit.draw.numbers import aligned_numbers, short_number
from beit.draw.panels import DPI, POINTS, PRINTED, Drawing, rendered
from beit.draw.report import Cell, Picture, Table

# Okabe and Ito's colours, which suit colour blindness; the dashes differ in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")
WIDTH, HEIGHT, LEGEND_LINE = 3.4, 2.1, 0.14  # inches: one column of a page
LONGEST = 46  # letters of a run's name in a figure, at most
PLACES = ("step", "epoch")
IGNORED = ("run.output",)  # settings that always differ


@dataclass(frozen=True)
class Run:
    """One run, finished or not.

    Attributes:
        name: unique among the runs
        records: of its metrics log
        settings: by dotted name
        facts: progress, code version and machine
        pictures: samples from its own report
    """

    name: str
    records: Sequence[Mapping[str, Any]]
    settings: Mapping[str, str]
    facts: Mapping[str, Cell]
    pictures: Sequence[Picture]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name each path by its last parts, as few as make all names different."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def flat_settings(settings: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Return nested settings by their dotted names."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{above}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[f"{above}{name}"] = text
    return flat


def settings_table(runs: Sequence[Run]) -> Table:
    """List the settings that differ between runs; all settings of a single run."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in IGNORED)
    rows: list[list[Cell]] = []
    for name in names:
        values = [run.settings.get(name) for run in runs]
        if len(runs) == 1 or len(set(values)) > 1:
            rows.append([name, *values])
    caption = "Settings of the run" if len(runs) == 1 else "Settings that differ"
    return Table(caption, ["Setting", *(run.name for run in runs)], rows)


def facts_table(runs: Sequence[Run]) -> Table:
    """List the facts of each run."""
    names = list(dict.fromkeys(name for run in runs for name in run.facts))
    rows = [[run.name, *(run.facts.get(name) for name in names)] for run in runs]
    return Table("Runs and their progress", ["Run", *names], rows)


def last_table(runs: Sequence[Run], keys: Sequence[str]) -> Table:
    """List the last value of each metric in each run."""
    rows: list[list[Cell]] = []
    for key in keys:
        ends = [curve[-1][1] if (curve := points(run, key, "step")) else None for run in runs]
        words = iter(aligned_numbers([end for end in ends if end is not None]))
        rows.append([key, *(None if end is None else next(words) for end in ends)])
    return Table("The last value of each metric", ["Metric", *(run.name for run in runs)], rows)


def figure_keys(runs: Sequence[Run]) -> list[str]:
    """List all metrics that any run has logged, in the order of the logs."""
    keys: dict[str, None] = {}
    for run in runs:
        for record in run.records:
            keys |= {k: None for k, v in record.items() if _number(v) and k not in PLACES}
    return list(keys)


def points(run: Run, key: str, x: str) -> list[tuple[float, float]]:
    """Collect the finite points of a curve, in the order of the log."""
    curve = []
    for record in run.records:
        place, value = record.get(x), record.get(key)
        if _number(place) and _number(value) and math.isfinite(value):
            curve.append((float(place), float(value)))
    return curve


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def curve_figure(runs: Sequence[Run], key: str, x: str, log: Collection[str] = ()) -> Drawing:
    """Draw one metric over the steps or epochs, a curve for each run; a run keeps its colour.

    Args:
        key: the metric
        x: step or epoch
        log: metrics with a logarithmic axis; values that are not positive are left out
    """
    from matplotlib.figure import Figure

    drawn = []
    for index, run in enumerate(runs):
        curve = [(a, b) for a, b in points(run, key, x) if b > 0 or key not in log]
        if curve:
            drawn.append((index, run, curve))
    height = HEIGHT + LEGEND_LINE * len(drawn)
    with styled(PRINTED):
        chart = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
        axes = chart.add_axes((0.15, 0.36 / height, 0.82, (HEIGHT - 0.62) / height))
        for index, run, curve in drawn:
            last = short_number(curve[-1][1])
            axes.plot(
                *zip(*curve, strict=True),
                color=COLOURS[index % len(COLOURS)],
                linestyle=DASHES[index % len(DASHES)],
                linewidth=1.2,
                marker="o" if len(curve) <= MARKED else None,
                markersize=2.4,
                label=f"{index + 1}: {shortened(run.name, LONGEST)}, last {last}",
            )
        if key in log:
            axes.set_yscale("log")
        axes.set_xlabel(f"{x}s")
        axes.grid(color="0.88", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        title = shortened(key.replace("_", " "), LONGEST) + (" (log)" if key in log else "")
        chart.text(0.03, 1 - 0.14 / height, title, size=POINTS + 1, weight="bold")
        if drawn:
            chart.legend(
                loc="upper left",
                bbox_to_anchor=(0.015, 1 - 0.19 / height),
                frameon=False,
                borderaxespad=0,
                borderpad=0,
                labelspacing=0.25,
            )
        else:
            axes.text(0.5, 0.5, "nothing logged", ha="center", transform=axes.transAxes)
        return rendered(chart)


def file_name(key: str) -> str:
    """Turn a metric's name into a file name of letters, digits, - and _."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", key).strip("-") or "figure"


# ── Markdown ────────────────────────────────────────────────────────────────────────────────────


def markdown_table(table: Table) -> str:
    """Format a table as Markdown, with every name escaped."""
    cells = [
        [markdown_text("–" if cell is None else str(cell)) for cell in row] for row in table.rows
    ]
    columns = [markdown_text(name) for name in table.columns]
    return as_markdown(Table(markdown_text(table.caption), columns, cells))


def markdown_text(words: str) -> str:
    """Escape the special characters of Markdown and HTML, except |, and join lines."""
    escaped = re.sub(r"([\\`*_\[\]#~$!])", r"\\\1", " ".join(words.split()))
    return html.escape(escaped, quote=False)

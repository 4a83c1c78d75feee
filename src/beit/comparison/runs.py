"""Several runs side by side: curves overlaid, settings that differ, last figures; Markdown too."""

import html
import io
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from beit.comparison.ablation_table import as_markdown
from beit.draw.numbers import aligned_numbers, short_number
from beit.draw.panels import DPI, LETTERS, POINTS, Drawing
from beit.draw.report import Cell, Picture, Table

# Okabe and Ito's colours, told apart by every eye; the dashes tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")
WIDTH, HEIGHT, LEGEND_LINE = 3.4, 2.1, 0.14  # inches: one column of a page
LONGEST = 46  # letters of a run's name in a figure
MARKED = 30  # curves of so few points show each of them
PLACES = ("step", "epoch")
IGNORED = ("run.output",)  # a setting that always differs


@dataclass(frozen=True)
class Run:
    """One run, as far as it has come.

    Attributes:
        name: what it is called, different from the others'
        records: of its metrics log
        settings: by dotted name
        facts: what else it depends on, and how far it is
        pictures: samples out of its own report
    """

    name: str
    records: Sequence[Mapping[str, Any]]
    settings: Mapping[str, str]
    facts: Mapping[str, Cell]
    pictures: Sequence[Picture]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Call each path by as many of its last parts as it takes to tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def flat_settings(settings: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Write nested settings by their dotted names."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat_settings(value, f"{above}{name}.")
        else:
            plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            found[f"{above}{name}"] = plain
    return found


def settings_table(runs: Sequence[Run]) -> Table:
    """List the settings that are not alike in all runs; of a single run all of them."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in IGNORED)
    rows: list[list[Cell]] = []
    for name in names:
        values = [run.settings.get(name) for run in runs]
        if len(runs) == 1 or len(set(values)) > 1:
            rows.append([name, *values])
    caption = "Settings of the run" if len(runs) == 1 else "Settings that differ"
    return Table(caption, ["Setting", *(run.name for run in runs)], rows)


def facts_table(runs: Sequence[Run]) -> Table:
    """List what else is known of each run."""
    names = list(dict.fromkeys(name for run in runs for name in run.facts))
    rows = [[run.name, *(run.facts.get(name) for name in names)] for run in runs]
    return Table("The runs, as far as they have come", ["Run", *names], rows)


def last_table(runs: Sequence[Run], keys: Sequence[str]) -> Table:
    """List the last value of each figure in each run."""
    rows: list[list[Cell]] = []
    for key in keys:
        ends = [curve[-1][1] if (curve := points(run, key, "step")) else None for run in runs]
        words = iter(aligned_numbers([end for end in ends if end is not None]))
        rows.append([key, *(None if end is None else next(words) for end in ends)])
    return Table("The last value of each figure", ["Figure", *(run.name for run in runs)], rows)


def figure_keys(runs: Sequence[Run]) -> list[str]:
    """Name all figures that any run has logged, in the order of the logs."""
    keys: dict[str, None] = {}
    for run in runs:
        for record in run.records:
            keys |= {k: None for k, v in record.items() if _number(v) and k not in PLACES}
    return list(keys)


def points(run: Run, key: str, x: str) -> list[tuple[float, float]]:
    """Collect the finite points of a curve, by rising x as logged."""
    found = []
    for record in run.records:
        place, value = record.get(x), record.get(key)
        if _number(place) and _number(value) and math.isfinite(value):
            found.append((float(place), float(value)))
    return found


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def curve_figure(runs: Sequence[Run], key: str, x: str, log: Collection[str] = ()) -> Drawing:
    """Draw one figure over the steps or epochs, a curve a run; each keeps its colour everywhere.

    Args:
        key: the figure
        x: step or epoch
        log: figures with a logarithmic axis, on which values that are not positive are left out
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawn = [(i, run, points(run, key, x)) for i, run in enumerate(runs)]
    if key in log:
        drawn = [(i, run, [(a, b) for a, b in curve if b > 0]) for i, run, curve in drawn]
    drawn = [(i, run, curve) for i, run, curve in drawn if curve]
    height = HEIGHT + LEGEND_LINE * len(drawn)
    with rc_context(LETTERS):
        chart = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
        axes = chart.add_axes((0.15, 0.36 / height, 0.82, (HEIGHT - 0.62) / height))
        for index, run, curve in drawn:
            axes.plot(
                *zip(*curve, strict=True),
                color=COLOURS[index % len(COLOURS)],
                linestyle=DASHES[index % len(DASHES)],
                linewidth=1.2,
                marker="o" if len(curve) <= MARKED else None,
                markersize=2.4,
                label=f"{index + 1}: {drawable(run.name)}, last {short_number(curve[-1][1])}",
            )
        if key in log:
            axes.set_yscale("log")
        axes.set_xlabel(f"{x}s")
        axes.grid(color="0.88", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        title = drawable(key.replace("_", " ")) + (" (log)" if key in log else "")
        top = 1 - 0.14 / height
        chart.text(0.03, top, title, size=POINTS + 1, weight="bold", parse_math=False)
        if drawn:
            legend = chart.legend(
                loc="upper left",
                bbox_to_anchor=(0.015, 1 - 0.19 / height),
                frameon=False,
                borderaxespad=0,
                borderpad=0,
                labelspacing=0.25,
            )
            for words in legend.get_texts():
                words.set_parse_math(False)
        else:
            axes.text(0.5, 0.5, "nothing logged", ha="center", transform=axes.transAxes)
        files = io.BytesIO(), io.BytesIO()
        chart.savefig(files[0], format="png", metadata={"Software": None})
        chart.savefig(files[1], format="svg", metadata={"Date": None, "Creator": None})
    return Drawing(files[0].getvalue(), files[1].getvalue())


def drawable(name: str) -> str:
    """Write a name with the letters that the figures' font has, others as boxes; cut long ones."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    known = FT2Font(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf").get_charmap()
    name = " ".join(name.split())
    letters = "".join(letter if ord(letter) in known else "□" for letter in name)
    return letters if len(letters) <= LONGEST else f"…{letters[1 - LONGEST :]}"


def file_name(key: str) -> str:
    """Make a file name of a figure's: letters, digits, - and _ only."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", key).strip("-") or "figure"


# ── Markdown ────────────────────────────────────────────────────────────────────────────────────


def markdown_table(table: Table) -> str:
    """Write a table as Markdown in which every name is text."""
    cells = [
        [markdown_text("–" if cell is None else str(cell)) for cell in row] for row in table.rows
    ]
    columns = [markdown_text(name) for name in table.columns]
    return as_markdown(Table(markdown_text(table.caption), columns, cells))


def markdown_text(words: str) -> str:
    """Escape what Markdown or HTML would take for more than letters; one line. | is left alone."""
    escaped = re.sub(r"([\\`*_\[\]#~$!])", r"\\\1", " ".join(words.split()))
    return html.escape(escaped, quote=False)

"""A report that compares runs: overlaid curves, differing settings, last metrics, samples.

One HTML file, and Markdown with its figures beside it. Unfinished runs are shown as far as they
have come; a repeated command updates its report.
"""

import html
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from beit.command.ending import Ending, opened
from beit.comparison.ablation_table import as_markdown
from beit.comparison.runs import Run, figure_keys, own_pictures, points, read_run, short_names
from beit.draw.charts import MARKED, Line, shortened, styled, with_hover, worded
from beit.draw.colours import RULE, SERIES
from beit.draw.names import is_share, name_of, percent
from beit.draw.numbers import aligned_numbers
from beit.draw.panels import DPI, POINTS, PRINTED, Drawing, rendered
from beit.draw.report import Cell, Gallery, Link, Section, Table, link_to, write_report
from beit.files import write_text
from beit.wording import amount

MARK = "<!-- written by beit report -->"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)))  # differ in grey; with five, 30 runs look different
WIDTH, HEIGHT, LEGEND_LINE = 3.4, 2.1, 0.14  # inches: one column of a page
LONGEST = 46  # letters of a run's name in a figure, at most
IGNORED = ("run.output",)  # settings that always differ


@dataclass(frozen=True)
class Config:
    """Settings of `beit report`.

    Attributes:
        runs: run directories
        output: folder for report.html, report.md and figures; new, or an earlier report
        metrics: to draw, as named in metrics.jsonl; empty for all
        x: horizontal axis of the curves
        log: metrics with a logarithmic axis
        samples: number of pictures to copy from each run's own report; 0 for none
    """

    runs: list[str]
    output: str = "report"
    metrics: tuple[str, ...] = ()
    x: Literal["step", "epoch"] = "step"
    log: tuple[str, ...] = ()
    samples: int = 4

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("no run given; name one or more run directories")
        if self.samples < 0:
            raise ValueError(f"samples is {self.samples}; expected 0 (none) or more")


class Result(NamedTuple):
    """The HTML and Markdown files, and the number of metrics drawn."""

    report: Path
    markdown: Path
    curves: int


def run(config: Config) -> Result:
    """Read the runs, and write or update their report."""
    output, paths = Path(config.output), list(map(Path, config.runs))
    _check_output(output)
    if twice := [path for path in config.runs if config.runs.count(path) > 1]:
        raise ValueError(f"{twice[0]} is named twice; name each run once")
    names = short_names(paths)
    runs = [read_run(path, name) for path, name in zip(paths, names, strict=True)]
    keys = _chosen_metrics(config, figure_keys(runs))
    samples = [own_pictures(path, config.samples) if config.samples else [] for path in paths]
    galleries = [
        Gallery(f"Out of the report of {run.name}", pictures)
        for run, pictures in zip(runs, samples, strict=True)
        if pictures
    ]

    (output / "figures").mkdir(parents=True, exist_ok=True)
    title = f"Run {names[0]}" if len(runs) == 1 else f"{len(runs)} runs side by side"
    about, settings, last = facts_table(runs), settings_table(runs), last_table(runs, keys)
    no_difference = "All settings are alike." if len(runs) > 1 and not settings.rows else ""
    curves, images = [], []
    for key in [key for key in keys if _is_curve(runs, key, config.x)]:
        drawing, file = curve_figure(runs, key, config.x, config.log), f"figures/{file_name(key)}"
        drawing.save(output, file)
        alt = f"{name_of(key)} over {config.x}s, a curve for each of {len(runs)} runs"
        curves.append(drawing.picture(f"{file}.png, .svg", alt))
        images.append(f"![{markdown_text(alt)}]({file}.png)")

    text = "A run has the same colour in each. What was measured once is in the table above."
    sections = [Section("Samples", items=galleries)] if galleries else []
    sections += [
        Section("Last figures", items=[last]),
        Section("Curves", items=[Gallery(text, curves)]),
        Section("The runs", items=[about]),
        Section("Settings", no_difference, [] if no_difference else [settings]),
    ]
    parts = [
        f"{MARK}\n# {markdown_text(title)}",
        markdown_table(about),
        "## Curves\n\n" + "\n".join(images),
        f"## Last figures\n\n{markdown_table(last)}",
        f"## Settings\n\n{no_difference or markdown_table(settings)}",
    ]
    if galleries:
        parts.append("## Samples\n\n" + "\n\n".join(_write_samples(galleries, output)))
    page = output / "report.html"
    facts: dict[str, str | Link] = {}
    for number, (path, name) in enumerate(zip(config.runs, names, strict=True), 1):
        link = link_to(path, page)
        facts[f"run {number}"] = link._replace(words=name) if isinstance(link, Link) else name
    facts["not finished"] = str(sum(run.facts["state"] != "finished" for run in runs))
    facts["curves over"] = f"{config.x}s"
    report = write_report(page, title, sections, facts)
    markdown = output / "report.md"
    write_text(markdown, "\n\n".join(parts) + "\n")
    return Result(report, markdown, len(keys))


def ending(config: Config, result: Result) -> Ending:
    """Say what is compared; the page is next."""
    figure = f"{amount(len(config.runs), 'run')}, {amount(result.curves, 'curve')}"
    return Ending(f"{result.report} and {result.markdown}", figure, opened(result.report))


def _check_output(output: Path) -> None:
    """Refuse an existing folder unless it is empty or holds an earlier report."""
    if output == Path():
        raise ValueError("no output given; name a folder, as in --output report")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    page = output / "report.md"
    if not page.is_file() or not page.read_text("utf-8", errors="replace").startswith(MARK):
        advice = "it is not overwritten, name another folder"
        raise FileExistsError(f"{output} exists and is no earlier report of runs; {advice}")


def _chosen_metrics(config: Config, logged: list[str]) -> list[str]:
    """Return the metrics to draw; refuse names that no run has logged."""
    if not logged:
        where = f"{', '.join(config.runs)}: nothing is logged yet in metrics.jsonl"
        raise ValueError(f"{where}; wait for the first line, after run.log_every steps")
    for option, names in (("metrics", config.metrics), ("log", config.log)):
        if unknown := [name for name in names if name not in logged]:
            expected = f"expected names among {', '.join(logged)}"
            raise ValueError(f"{option} names {unknown[0]}, which no run has logged; {expected}")
    return list(config.metrics) or logged


def _write_samples(galleries: Sequence[Gallery], output: Path) -> list[str]:
    """Write the samples beside the Markdown file; return its lines."""
    (output / "samples").mkdir(exist_ok=True)
    lines = []
    for number, gallery in enumerate(galleries, 1):
        lines.append(f"{markdown_text(gallery.caption)}:")
        for index, picture in enumerate(gallery.pictures, 1):
            file = f"samples/run{number}-{index}.png"
            (output / file).write_bytes(picture.data)
            lines.append(f"![{markdown_text(picture.alt)}]({file})")
    return lines


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


def settings_table(runs: Sequence[Run]) -> Table:
    """List the settings that differ between runs; all settings of a single run."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in IGNORED)
    rows: list[list[Cell]] = [[name, *(run.settings.get(name) for run in runs)] for name in names]
    caption = "Settings of the run"
    if len(runs) > 1:
        caption, rows = "Settings that differ", [row for row in rows if len(set(row[1:])) > 1]
    return Table(caption, ["Setting", *(run.name for run in runs)], rows)


def facts_table(runs: Sequence[Run]) -> Table:
    """List the facts of each run."""
    names = list(dict.fromkeys(name for run in runs for name in run.facts))
    rows = [[run.name, *(run.facts.get(name) for name in names)] for run in runs]
    return Table("Runs and their progress", ["Run", *names], rows)


def last_table(runs: Sequence[Run], keys: Sequence[str]) -> Table:
    """List the last value of each metric in each run, or that of the best weights if kept."""
    rows: list[list[Cell]] = []
    for key in keys:
        curves = [points(run, key, "step") for run in runs]
        last = [curve[-1][1] if curve else None for curve in curves]
        ends = [run.kept.get(key, end) for run, end in zip(runs, last, strict=True)]
        known = [end for end in ends if end is not None]
        words = iter(map(percent, known) if is_share(key) else aligned_numbers(known))
        rows.append([name_of(key), *(None if end is None else next(words) for end in ends)])
    caption = "The last value of each metric"
    if best := [run.name for run in runs if run.kept]:
        caption += f"; the validation is that of the best weights, which {', '.join(best)} kept"
    return Table(caption, ["Metric", *(run.name for run in runs)], rows)


def _is_curve(runs: Sequence[Run], key: str, x: str) -> bool:
    """Tell whether any run has a metric at several steps or epochs."""
    return any(len({place for place, _ in points(run, key, x)}) > 1 for run in runs)


def markdown_table(table: Table) -> str:
    """Format a table as Markdown, with every name escaped."""
    rows = [["–" if cell is None else markdown_text(str(cell)) for cell in r] for r in table.rows]
    columns = [markdown_text(name) for name in table.columns]
    return as_markdown(Table(markdown_text(table.caption), columns, rows))


def markdown_text(words: str) -> str:
    """Escape the special characters of Markdown and HTML, except |, and join lines."""
    escaped = re.sub(r"([\\`*_\[\]#~$!])", r"\\\1", " ".join(words.split()))
    return html.escape(escaped, quote=False)


# ── curves ──────────────────────────────────────────────────────────────────────────────────────


def curve_figure(runs: Sequence[Run], key: str, x: str, log: Collection[str] = ()) -> Drawing:
    """Draw one metric over the steps or epochs, a curve for each run; a run keeps its colour.

    Args:
        x: step or epoch
        log: metrics with a logarithmic axis; values that are not positive are left out
    """
    from matplotlib.figure import Figure

    factor, unit = (100, "%") if is_share(key) else (1, "")
    curves = [
        [(a, factor * b) for a, b in points(run, key, x) if b > 0 or key not in log] for run in runs
    ]
    height = HEIGHT + LEGEND_LINE * sum(map(bool, curves))
    with styled(PRINTED):
        chart = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
        axes = chart.add_axes((0.15, 0.36 / height, 0.82, (HEIGHT - 0.62) / height))
        for index, (run, curve) in enumerate(zip(runs, curves, strict=True)):
            if curve:
                last = f"last {worded(curve[-1][1], unit)}"
                axes.plot(
                    *zip(*curve, strict=True),
                    color=SERIES[index % len(SERIES)],
                    linestyle=DASHES[index % len(DASHES)],
                    linewidth=1.2,
                    marker="o" if len(curve) <= MARKED else None,
                    markersize=2.4,
                    label=f"{index + 1}: {shortened(run.name, LONGEST)}, {last}",
                )
        if key in log:
            axes.set_yscale("log")
        axes.set_xlabel(f"{x}s")
        axes.grid(color=RULE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        title = shortened(name_of(key) + (unit and ", %"), LONGEST) + (
            " (log)" if key in log else ""
        )
        chart.text(0.03, 1 - 0.14 / height, title, size=POINTS + 1, weight="bold")
        if any(curves):
            bare: dict[str, Any] = {"frameon": False, "borderaxespad": 0, "borderpad": 0}
            place = (0.015, 1 - 0.19 / height)
            chart.legend(loc="upper left", bbox_to_anchor=place, labelspacing=0.25, **bare)
        else:
            axes.text(0.5, 0.5, "nothing logged", ha="center", transform=axes.transAxes)
        drawing = rendered(chart)
        named = [
            Line("", c, name=shortened(r.name, LONGEST)) for r, c in zip(runs, curves, strict=True)
        ]
        colours = [SERIES[index % len(SERIES)] for index in range(len(runs))]
        return drawing._replace(page=with_hover(drawing.page, axes, named, colours, x, unit))


def file_name(key: str) -> str:
    """Turn a metric's name into a file name of letters, digits, - and _."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", key).strip("-") or "figure"

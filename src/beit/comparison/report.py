"""A report that compares runs: overlaid curves, differing settings, last metrics, samples.

One HTML file, and Markdown with its figures beside it. Unfinished runs are shown as far as they
have come; a repeated command updates its report.
"""

import base64
import binascii
import json
import logging
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from beit.command.messages import one_line
from beit.command.modules import module_of_run
from beit.comparison.runs import (
    Run,
    curve_figure,
    facts_table,
    figure_keys,
    file_name,
    flat_settings,
    last_table,
    markdown_table,
    markdown_text,
    settings_table,
    short_names,
)
from beit.draw.numbers import short_number
from beit.draw.report import Cell, Gallery, Picture, Section, write_report
from beit.files import write_text
from beit.run.directory import RunDirectory
from beit.run.log import read_log
from beit.run.resume import redraw

_log = logging.getLogger(__name__)

MARK = "<!-- written by beit report -->"
MAX_REPORT_BYTES = 1 << 27  # larger reports of runs are not read for samples
SAMPLE_PREFIX, PNG_START = "data:image/png;base64,", b"\x89PNG\r\n\x1a\n"


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
    """The HTML and Markdown files."""

    report: Path
    markdown: Path


def run(config: Config) -> Result:
    """Read the runs, and write or update their report."""
    output = Path(config.output)
    _check_output(output)
    paths = [Path(path) for path in config.runs]
    names = short_names(paths)
    if twice := [path for path in config.runs if config.runs.count(path) > 1]:
        raise ValueError(f"{twice[0]} is named twice; name each run once")
    runs = [read_run(path, name) for path, name in zip(paths, names, strict=True)]
    keys = _chosen_metrics(config, figure_keys(runs))
    if config.samples:
        runs = [
            replace(run, pictures=own_pictures(path, config.samples))
            for run, path in zip(runs, paths, strict=True)
        ]

    (output / "figures").mkdir(parents=True, exist_ok=True)
    title = f"Run {names[0]}" if len(runs) == 1 else f"{len(runs)} runs side by side"
    about, settings, last = facts_table(runs), settings_table(runs), last_table(runs, keys)
    curves = [_draw_curve(runs, key, config, output / "figures") for key in keys]
    sampled = [run for run in runs if run.pictures]
    no_difference = "All settings are alike." if len(runs) > 1 and not settings.rows else ""

    sections = [
        Section("The runs", items=[about]),
        Section("Curves", items=[Gallery("A run has the same colour in each.", curves)]),
        Section("Last figures", items=[last]),
        Section("Settings", no_difference, [] if no_difference else [settings]),
    ]
    if sampled:
        galleries = [Gallery(f"Out of the report of {run.name}", run.pictures) for run in sampled]
        sections.append(Section("Samples", items=galleries))
    report = write_report(output / "report.html", title, sections, _facts(config, runs))

    images = [
        f"![{markdown_text(curve.alt)}](figures/{file_name(key)}.png)"
        for key, curve in zip(keys, curves, strict=True)
    ]
    parts = [
        f"{MARK}\n# {markdown_text(title)}",
        markdown_table(about),
        "## Curves\n\n" + "\n".join(images),
        f"## Last figures\n\n{markdown_table(last)}",
        f"## Settings\n\n{no_difference or markdown_table(settings)}",
    ]
    if sampled:
        parts.append("## Samples\n\n" + "\n\n".join(_write_samples(sampled, output)))
    markdown = output / "report.md"
    write_text(markdown, "\n\n".join(parts) + "\n")
    print(f"{len(runs)} runs, {len(keys)} curves; open {report} or {markdown}")
    return Result(report, markdown)


def _draw_curve(runs: list[Run], key: str, config: Config, folder: Path) -> Picture:
    drawing, file = curve_figure(runs, key, config.x, config.log), file_name(key)
    drawing.save(folder, file)
    alt = f"{key} over {config.x}s, a curve for each of {len(runs)} runs"
    return Picture(f"figures/{file}.png, .svg", alt, drawing.png, "image/png")


def _chosen_metrics(config: Config, logged: list[str]) -> list[str]:
    """Return the metrics to draw; refuse names that no run has logged."""
    if not logged:
        raise ValueError(
            f"{', '.join(config.runs)}: nothing is logged yet in metrics.jsonl; wait for the first "
            "line, after run.log_every steps"
        )
    for option, names in (("metrics", config.metrics), ("log", config.log)):
        if unknown := [name for name in names if name not in logged]:
            raise ValueError(
                f"{option} names {unknown[0]}, which no run has logged; expected names among "
                + ", ".join(logged)
            )
    return list(config.metrics) or logged


def read_run(path: Path, name: str) -> Run:
    """Read a run directory, without pictures.

    Raises:
        FileNotFoundError, ValueError: not a run directory, no metrics, or a damaged file, which is
            named.
    """
    directory = RunDirectory(path)
    if directory.environment_file.is_file():
        _environment(directory)  # refuses a damaged file by name
    directory = RunDirectory.open(path)
    if not directory.metrics_file.is_file():
        raise ValueError(
            f"{path} has no {directory.metrics_file.name}, so it has no curves to draw; expected "
            "a run of train-tokenizer, pretrain, finetune or segment"
        )
    try:
        records = read_log(directory.metrics_file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{directory.metrics_file} is not text: {error}") from error
    settings = flat_settings(directory.config())
    text = name.encode(errors="replace").decode()  # a path may hold bytes that are no text
    return Run(text, records, settings, _run_facts(directory, records), [])


def _run_facts(directory: RunDirectory, records: list[dict[str, Any]]) -> dict[str, Cell]:
    """Describe a run's progress and environment."""
    last = records[-1] if records else {}
    epoch = last.get("epoch")
    facts: dict[str, Cell] = {
        "state": "finished" if directory.weights_file.is_file() else "not finished",
        "step": last.get("step"),
        "epoch": None if epoch is None else short_number(float(epoch)),
    }
    environment = _environment(directory)
    for key in ("verb", "started", "commit", "torch"):
        value = environment.get(key)
        facts[key] = None if value is None else str(value)[:19]
    gpus = ", ".join(map(str, environment.get("gpus") or []))
    facts["machine"] = gpus or f"{environment.get('cpus')} CPU cores"
    return facts


def _environment(directory: RunDirectory) -> dict[str, Any]:
    """Read a run's environment.json; refuse a damaged one."""
    file = directory.environment_file
    try:
        environment = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(environment, dict) or "verb" not in environment:
        raise ValueError(f"{file} is damaged: it does not name the verb that made the run")
    return environment


def own_pictures(path: Path, most: int) -> list[Picture]:
    """Read samples from a run's own report; draw that of a finished run first if it is missing."""
    directory = RunDirectory(path)
    if directory.weights_file.is_file() and not directory.report_file.exists():
        try:
            redraw(import_module(module_of_run(directory.verb(), path)), path)
        except (ValueError, OSError) as error:
            _log.warning(
                "%s: no samples, its report cannot be drawn again: %s", path, one_line(error)
            )
    return sample_pictures(directory.report_file, most)


def sample_pictures(report: Path, most: int) -> list[Picture]:
    """Read the first PNG images of a run's own report, with their alt texts; none if no report."""
    if not report.is_file() or report.stat().st_size > MAX_REPORT_BYTES:
        return []
    reader = _Pictures(most)
    reader.feed(report.read_text(encoding="utf-8", errors="replace"))
    return reader.pictures


class _Pictures(HTMLParser):
    """Collects embedded PNGs and ignores everything else in the page."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.pictures = most, list[Picture]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        source = attributes.get("src") or ""
        full = len(self.pictures) >= self.most
        if tag != "img" or full or not source.startswith(SAMPLE_PREFIX):
            return
        try:
            data = base64.b64decode(source.removeprefix(SAMPLE_PREFIX), validate=True)
        except binascii.Error:
            return
        if data.startswith(PNG_START) and len(data) >= 24:
            alt = attributes.get("alt") or "a picture of the run"
            self.pictures.append(Picture(alt, alt, data, "image/png"))


def _write_samples(runs: list[Run], output: Path) -> list[str]:
    """Write the samples beside the Markdown file; return its lines."""
    folder = output / "samples"
    folder.mkdir(exist_ok=True)
    lines = []
    for number, run in enumerate(runs, 1):
        lines.append(f"Out of the report of {markdown_text(run.name)}:")
        for index, picture in enumerate(run.pictures, 1):
            file = f"run{number}-{index}.png"
            (folder / file).write_bytes(picture.data)
            lines.append(f"![{markdown_text(picture.alt)}](samples/{file})")
    return lines


def _facts(config: Config, runs: list[Run]) -> dict[str, str]:
    paths = ", ".join(config.runs).encode(errors="replace").decode()
    unfinished = sum(run.facts["state"] != "finished" for run in runs)
    return {"runs": paths, "not finished": str(unfinished), "curves over": f"{config.x}s"}


def _check_output(output: Path) -> None:
    """Refuse an existing folder unless it is empty or holds an earlier report."""
    if not str(output) or str(output) == ".":
        raise ValueError("no output given; name a folder, as in --output report")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    page = output / "report.md"
    if not page.is_file() or not page.read_text("utf-8", errors="replace").startswith(MARK):
        raise FileExistsError(
            f"{output} exists and is no earlier report of runs; it is not overwritten, name "
            "another folder"
        )

"""A report of runs: their curves overlaid, the settings that differ, last figures, samples.

HTML in one file and Markdown with the figures beside it. Runs that are still going are shown as far
as they have come; the command may be repeated, and renews what it wrote.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal, NamedTuple

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

MARK = "<!-- written by beit report -->"
MAX_REPORT_BYTES = 1 << 27  # a run's own report is read for samples up to this size
SAMPLE_PREFIX, PNG_START = "data:image/png;base64,", b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Config:
    """Which runs are reported, and where.

    Attributes:
        runs: run directories
        output: folder of report.html, report.md and figures; new, or one that this command wrote
        metrics: figures to draw, as named in metrics.jsonl; empty for all
        x: what the curves run over
        log: figures with a logarithmic axis
        samples: pictures taken from each run's own report; 0 for none
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
    """The page, and the same as Markdown."""

    report: Path
    markdown: Path


def run(config: Config) -> Result:
    """Read the runs, and write or renew their report."""
    output = Path(config.output)
    _check_output(output)
    paths = [Path(path) for path in config.runs]
    names = short_names(paths)
    if twice := [path for path in config.runs if config.runs.count(path) > 1]:
        raise ValueError(f"{twice[0]} is named twice; name each run once")
    runs = [read_run(path, name, config.samples) for path, name in zip(paths, names, strict=True)]
    known = figure_keys(runs)
    if not known:
        raise ValueError(
            f"{', '.join(config.runs)}: nothing is logged yet in metrics.jsonl; wait for the first "
            "line, which comes after run.log_every steps"
        )
    for option, chosen in (("metrics", config.metrics), ("log", config.log)):
        if strange := [key for key in chosen if key not in known]:
            raise ValueError(
                f"{option} names {strange[0]}, which no run has logged; there are "
                + ", ".join(known)
            )
    keys = list(config.metrics) or known

    (output / "figures").mkdir(parents=True, exist_ok=True)
    title = f"Run {names[0]}" if len(runs) == 1 else f"{len(runs)} runs side by side"
    tables = [facts_table(runs), settings_table(runs), last_table(runs, keys)]
    curves, lines = [], []
    for key in keys:
        drawing = curve_figure(runs, key, config.x, config.log)
        file = file_name(key)
        drawing.save(output / "figures", file)
        alt = f"{key} over {config.x}s, a curve for each of {len(runs)} runs"
        curves.append(Picture(f"figures/{file}.png, .svg", alt, drawing.png, "image/png"))
        lines.append(f"![{markdown_text(alt)}](figures/{file}.png)")
    about, settings, last = tables
    sections = [
        Section("The runs", items=[about]),
        Section("Curves", items=[Gallery("A run has the same colour in each.", curves)]),
        Section("Last figures", items=[last]),
    ]
    alike = len(runs) > 1 and not settings.rows
    words = "All settings are alike." if alike else ""
    sections.append(Section("Settings", words, [] if alike else [settings]))
    samples = [r for r in runs if r.pictures]
    if samples:
        galleries = [Gallery(f"Out of the report of {r.name}", r.pictures) for r in samples]
        sections.append(Section("Samples", items=galleries))
    report = write_report(output / "report.html", title, sections, _facts(config, runs))

    chapters = [
        f"{MARK}\n# {markdown_text(title)}",
        markdown_table(about),
        "## Curves\n\n" + "\n".join(lines),
        f"## Last figures\n\n{markdown_table(last)}",
        f"## Settings\n\n{words or markdown_table(settings)}",
    ]
    if samples:
        chapters.append("## Samples\n\n" + "\n\n".join(_sample_lines(samples, output)))
    markdown = output / "report.md"
    write_text(markdown, "\n\n".join(chapters) + "\n")
    print(f"{len(runs)} runs, {len(keys)} curves; open {report} or {markdown}")
    return Result(report, markdown)


def read_run(path: Path, name: str, num_samples: int) -> Run:
    """Read a run directory.

    Raises:
        FileNotFoundError, ValueError: it is none, has no metrics, or a file in it is damaged; names
            the file.
    """
    directory = RunDirectory(path)
    if directory.environment_file.is_file():
        _environment(directory)  # damaged, it is named
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
    pictures = sample_pictures(directory.report_file, num_samples) if num_samples else []
    settings = flat_settings(directory.config())
    clean = name.encode(errors="replace").decode()  # bytes of a path that are no letters
    return Run(clean, records, settings, _run_facts(directory, records), pictures)


def _run_facts(directory: RunDirectory, records: list[dict[str, Any]]) -> dict[str, Cell]:
    """Say how far a run is, and what it depends on beside its settings."""
    last = records[-1] if records else {}
    state = "finished" if directory.weights_file.is_file() else "not finished"
    epoch = last.get("epoch")
    facts: dict[str, Cell] = {
        "state": state,
        "step": last.get("step"),
        "epoch": None if epoch is None else short_number(float(epoch)),
    }
    known = _environment(directory)
    told = {key: known.get(key) for key in ("verb", "started", "commit", "torch")}
    facts |= {key: None if value is None else str(value)[:19] for key, value in told.items()}
    gpus = ", ".join(map(str, known.get("gpus") or []))
    facts["machine"] = gpus or f"{known.get('cpus')} CPU cores"
    return facts


def _environment(directory: RunDirectory) -> dict[str, Any]:
    """Read what the run was made by.

    Raises:
        ValueError: the file is damaged.
    """
    file = directory.environment_file
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(known, dict) or "verb" not in known:
        raise ValueError(f"{file} is damaged: it does not say which verb made the run")
    return known


def sample_pictures(report: Path, most: int) -> list[Picture]:
    """Take the first PNG pictures, with their descriptions, out of a run's own report, if any."""
    if not report.is_file() or report.stat().st_size > MAX_REPORT_BYTES:
        return []
    reader = _Pictures(most)
    reader.feed(report.read_text(encoding="utf-8", errors="replace"))
    return reader.found


class _Pictures(HTMLParser):
    """Collects embedded PNGs; anything else in the page is passed over."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.found = most, list[Picture]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        source = given.get("src") or ""
        if tag != "img" or len(self.found) >= self.most or not source.startswith(SAMPLE_PREFIX):
            return
        try:
            data = base64.b64decode(source.removeprefix(SAMPLE_PREFIX), validate=True)
        except binascii.Error:
            return
        if data.startswith(PNG_START) and len(data) >= 24:
            words = given.get("alt") or "a picture of the run"
            self.found.append(Picture(words, words, data, "image/png"))


def _sample_lines(runs: list[Run], output: Path) -> list[str]:
    """Write the samples beside the Markdown. Returns: its lines."""
    folder = output / "samples"
    folder.mkdir(exist_ok=True)
    lines = []
    for number, shown in enumerate(runs, 1):
        lines.append(f"Out of the report of {markdown_text(shown.name)}:")
        for place, picture in enumerate(shown.pictures, 1):
            file = f"run{number}-{place}.png"
            (folder / file).write_bytes(picture.data)
            lines.append(f"![{markdown_text(picture.alt)}](samples/{file})")
    return lines


def _facts(config: Config, runs: list[Run]) -> dict[str, str]:
    given = [path.encode(errors="replace").decode() for path in config.runs]
    going = sum(run.facts["state"] != "finished" for run in runs)
    return {"runs": ", ".join(given), "not finished": str(going), "curves over": f"{config.x}s"}


def _check_output(output: Path) -> None:
    """Refuse a folder that is something else than an earlier report."""
    if not str(output) or str(output) == ".":
        raise ValueError("no output given; name a folder, as in --output report")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    page = output / "report.md"
    if not page.is_file() or not page.read_text("utf-8", errors="replace").startswith(MARK):
        raise FileExistsError(
            f"{output} exists and is no earlier report of runs, so it is not overwritten; name "
            "another folder"
        )

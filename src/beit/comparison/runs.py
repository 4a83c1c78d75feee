"""Read run directories, to compare them: metrics, settings, progress, samples of their reports."""

import base64
import html
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeGuard

from beit.command.messages import one_line
from beit.command.modules import module_of_run
from beit.comparison.plan import flat
from beit.draw.curves import whole_windows
from beit.draw.numbers import short_number
from beit.draw.report import Cell, Picture
from beit.run.directory import RunDirectory
from beit.run.finished import last_validation
from beit.run.log import read_log
from beit.run.resume import redraw

MAX_REPORT_BYTES = 1 << 27  # larger reports of runs are not read for samples
IMAGE = re.compile(r'<img\b([^>]*) src="data:image/png;base64,([^">]*)"')
PNG_START = b"\x89PNG\r\n\x1a\n"
PLACES = ("step", "epoch")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run, finished or not."""

    name: str  # unique among the runs
    records: Sequence[Mapping[str, Any]]  # of its metrics log
    settings: Mapping[str, str]  # by dotted name
    facts: Mapping[str, Cell]  # progress, code version and machine
    kept: Mapping[str, float]  # metrics of the best weights, if they are those of a finished run


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name each path by its last parts, as few as make all names different."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def read_run(path: Path, name: str) -> Run:
    """Read a run directory.

    Raises:
        FileNotFoundError, ValueError: not a run directory, no metrics, or a damaged file, which is
            named.
    """
    directory = RunDirectory(path)
    file = directory.environment_file
    try:
        RunDirectory.open(path)  # refuses a directory without the files of a run
        environment = json.loads(file.read_text(encoding="utf-8"))
        file = directory.metrics_file
        if not file.is_file():
            expected = "expected a run of train-tokenizer, pretrain, finetune or segment"
            raise ValueError(f"{path} has no {file.name}, so it has no curves to draw; {expected}")
        records = read_log(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text: {error}") from error
    last, settings = records[-1] if records else {}, directory.config()
    finished = directory.weights_file.is_file()
    best = finished and settings.get("keep") == "best"
    facts: dict[str, Cell] = {
        "state": "finished" if finished else "not finished",
        "step": last.get("step"),
        "epoch": None if last.get("epoch") is None else short_number(float(last["epoch"])),
    }
    for key in ("verb", "started", "commit", "torch"):
        facts[key] = None if environment.get(key) is None else str(environment[key])[:19]
    gpus = ", ".join(map(str, environment.get("gpus") or []))
    facts["machine"] = gpus or f"{environment.get('cpus')} CPU cores"
    text = name.encode(errors="replace").decode()  # a path may hold bytes that are no text
    kept = last_validation(directory.metrics_file, "best") if best else {}
    return Run(text, records, flat_settings(settings), facts, kept)


def flat_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return nested settings by their dotted names."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in flat(settings).items()
    }


def own_pictures(path: Path, most: int) -> list[Picture]:
    """Read samples from a run's own report; draw that of a finished run first if it is missing."""
    directory = RunDirectory(path)
    if directory.weights_file.is_file() and not directory.report_file.exists():
        try:
            redraw(import_module(module_of_run(directory.verb(), path)), path)
        except (ValueError, OSError) as error:
            reason = f"its report cannot be drawn again: {one_line(error)}"
            _log.warning("%s: no samples, %s", path, reason)
    return sample_pictures(directory.report_file, most)


def sample_pictures(report: Path, most: int) -> list[Picture]:
    """Read the first PNG images of a run's own report, with their alt texts; none if no report."""
    pictures: list[Picture] = []
    if not report.is_file() or report.stat().st_size > MAX_REPORT_BYTES:
        return pictures
    for image in IMAGE.finditer(report.read_text(encoding="utf-8", errors="replace")):
        if len(pictures) == most:
            break
        try:
            data = base64.b64decode(image[2], validate=True)
        except ValueError:  # binascii.Error, or characters that are not ASCII
            continue
        if data.startswith(PNG_START) and len(data) >= 24:
            described = re.search(r' alt="([^"]+)"', image[1])
            alt = html.unescape(described[1]) if described else "a picture of the run"
            pictures.append(Picture(alt, alt, data, "image/png"))
    return pictures


def figure_keys(runs: Sequence[Run]) -> list[str]:
    """List all metrics that any run has logged, in the order of the logs."""
    logged = (item for run in runs for record in run.records for item in record.items())
    return list(dict.fromkeys(k for k, value in logged if _number(value) and k not in PLACES))


def points(run: Run, key: str, x: str) -> list[tuple[float, float]]:
    """Collect the finite points of a curve, in the order of the log."""
    pairs = ((record.get(x), record.get(key)) for record in whole_windows(run.records))
    return [
        (float(a), float(b)) for a, b in pairs if _number(a) and _number(b) and math.isfinite(b)
    ]


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)

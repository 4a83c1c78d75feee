"""What complete runs of an ablation have measured, kept when their directories are gone.

`measured.jsonl` has a line for each complete run. It is small, and lets another machine continue: a
listed run whose directory is gone is repeated only if a missing run needs its weights.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from beit.comparison.plan import MEASURES
from beit.comparison.planned_runs import PlannedRun
from beit.files import write_text
from beit.run.finished import kept_metrics
from beit.run.log import read_log

RECORDS = "measured.jsonl"
ENVIRONMENT = ("commit", "torch", "python", "machine", "cpus", "gpus")


class Record(NamedTuple):
    """A complete run."""

    metrics: Mapping[str, float]
    hours: float  # of its training steps; 0 for a measurement
    environment: Mapping[str, Any]  # the names of ENVIRONMENT


def read_records(output: Path, runs: Collection[PlannedRun]) -> dict[str, Record]:
    """Return by name what is known of runs: from their directories, if gone from measured.jsonl.

    Raises:
        ValueError: measured.jsonl has a line that is no record.
    """
    kept = _kept(output / RECORDS)
    for run in runs:
        if run.is_complete(output):
            kept[run.name] = _record(run.directory(output), run.trains)
        elif run.directory(output).exists():
            kept.pop(run.name, None)
    return kept


def write_records(output: Path, runs: Collection[PlannedRun]) -> dict[str, Record]:
    """Add the complete runs to measured.jsonl; return what it has."""
    records = read_records(output, runs)
    lines = [json.dumps({"run": name, **record._asdict()}) for name, record in records.items()]
    write_text(output / RECORDS, "".join(f"{line}\n" for line in sorted(lines)))
    return records


def runs_to_do(
    runs: Iterable[PlannedRun], output: Path, records: Collection[str]
) -> list[PlannedRun]:
    """Return the runs without a record, and those whose weights these need and nobody has.

    Args:
        runs: each after those that it refers to
        records: names of the runs that are known
    """
    chosen, needed = list[PlannedRun](), set[str]()
    for run in reversed(list(runs)):
        if run.is_complete(output) or (run.name in records and run.name not in needed):
            continue
        chosen.append(run)
        needed |= set(run.references.values())
    return chosen[::-1]


def _kept(file: Path) -> dict[str, Record]:
    records = {}
    lines = file.read_bytes().splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
            name = content.pop("run")
            metrics, hours, environment = record = Record(**content)
            numbers = all(isinstance(value, int | float) for value in [hours, *metrics.values()])
            if not (numbers and isinstance(name, str) and isinstance(environment, dict)):
                raise ValueError("a value of another type")
            records[name] = record
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            begin = line[:80].decode(errors="replace")
            raise ValueError(
                f"{file}, line {number}: expected a run with metrics, hours and environment, got "
                f"{begin!r}; remove the line, and the run is repeated if its directory is gone"
            ) from error
    return records


def _record(directory: Path, trains: bool) -> Record:
    names = ["environment.json", *MEASURES.values()]
    file = next(directory / name for name in names if (directory / name).is_file())
    environment = json.loads(file.read_text(encoding="utf-8"))
    environment = environment.get("environment", environment)
    known = {name: environment.get(name) for name in ENVIRONMENT}
    return Record(read_metrics(directory), hours_of_training(directory) if trains else 0.0, known)


def hours_of_training(directory: Path) -> float:
    """Return the hours that the steps of a run took, from its speed.jsonl: no validations."""
    settings = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    before, seconds = 0, 0.0
    for record in read_log(directory / "speed.jsonl"):
        images = (record["step"] - before) * settings["optim"]["batch_size"]
        before, seconds = int(record["step"]), seconds + images / record["images_per_second"]
    return seconds / 3600


def read_metrics(directory: Path) -> dict[str, float]:
    """Read the metrics of a complete run.

    A probe has linear.cls, knn.mean and so on, linear.paper for the row of the paper's protocol,
    and attentive. An evaluation has top1, mean_corruption_error and so on. A training has the last
    value of each name in metrics.jsonl; if it kept the best weights, the values of the best
    validation.
    """
    metrics: dict[str, Any] = {}
    if (directory / MEASURES["probe"]).is_file():
        record = json.loads((directory / MEASURES["probe"]).read_text(encoding="utf-8"))
        for row, score in product(record["rows"], ("linear", "knn")):
            metrics[f"{score}.{row['features']}"] = row[score]
            if row["paper"]:
                metrics[f"{score}.paper"] = row[score]
        metrics |= {row["features"]: row["attentive"] for row in record["attentive"]}
    elif (directory / MEASURES["evaluate"]).is_file():
        record = json.loads((directory / MEASURES["evaluate"]).read_text(encoding="utf-8"))
        metrics |= record["figures"]
    else:
        settings = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
        kept = kept_metrics(directory / "metrics.jsonl", settings)
        metrics |= {name: value for name, (value, _) in kept.items()}
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}

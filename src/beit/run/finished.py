"""Whether a run is finished, and what it has logged of the weights that it has kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit.run.directory import RunDirectory
from beit.run.log import read_log

CHOOSES = ("val_top1", "val_miou")  # the metrics that choose the best weights


def is_finished(run: RunDirectory) -> bool:
    """Whether a run has its weights, and no later checkpoint."""
    if not run.weights_file.is_file():
        return False
    ended = run.weights_file.stat().st_mtime_ns
    return all(file.stat().st_mtime_ns <= ended for file in run.saved_steps().values())


def last_validation(path: Path, kept: str = "last") -> dict[str, float]:
    """Read the metrics `val_...` of the last validation; empty without one.

    Args:
        kept: best for those of the best weights, which a finished run has kept
    """
    records = read_log(path)
    best = [_best(records, metric) for metric in CHOOSES if kept == "best"]
    for record in [*best, *reversed(records)]:
        metrics = {name: value for name, value in record.items() if name.startswith("val_")}
        if metrics:
            return metrics
    return {}


def kept_step(path: Path, metric: str | None) -> int:
    """Return the step of the weights that a finished run has kept.

    Args:
        metric: the step of its first highest value; None for the last step
    """
    records = read_log(path)
    best = _best(records, metric) if metric else {}
    return int((best or records[-1])["step"])


def kept_metrics(path: Path, config: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
    """Return the last value of each metric of a finished run, and the step of its record.

    If the run has kept its best weights, metrics of the validation are theirs.
    """
    records = read_log(path)
    if config.get("keep") == "best":
        records += filter(None, (_best(records, metric) for metric in CHOOSES))
    return {
        name: (value, record["step"])
        for record in records
        for name, value in record.items()
        if isinstance(value, int | float)  # a warning is a text
    }


def _best(records: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Return the first record with the highest value of a metric; empty if none has it."""
    having = [record for record in records if record.get(metric) is not None]  # null: not finite
    return max(having, key=lambda record: record[metric], default={})

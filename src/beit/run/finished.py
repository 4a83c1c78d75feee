"""What a finished run has logged, for its report drawn again."""

from pathlib import Path

from beit.run.log import read_log


def last_validation(path: Path) -> dict[str, float]:
    """Read the metrics `val_...` of the last validation; empty without one."""
    for record in reversed(read_log(path)):
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
    best = records[-1]
    if metric is not None:
        validated = [record for record in records if metric in record]
        best = max(validated, key=lambda record: record[metric], default=best)
    return int(best["step"])

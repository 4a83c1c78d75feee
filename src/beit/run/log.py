"""The metrics log: JSON lines, valid after a kill and bit-identical after a resume."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from beit.files import write_text


class MetricsLog:
    """Appends records to a file of JSON lines.

    Floats are written with full precision; a float that is not finite is written as null.
    """

    def __init__(self, path: Path | None, resume_step: int | None = None) -> None:
        """Open the log.

        Args:
            path: None writes nothing, for processes other than the first
            resume_step: step of the checkpoint that the run resumes from; lines that were written
                after this checkpoint are removed. None starts a new file
        """
        self._file: TextIO | None = None
        if path is None:
            return
        if resume_step is not None and path.exists():
            _drop_after(path, resume_step)
        elif path.exists() and path.stat().st_size:
            raise FileExistsError(f"{path} has lines of another run; a new log needs a new file")
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record of plain values, among them `step`, an int."""
        if self._file is None:
            return
        if not isinstance(record.get("step"), int):
            raise ValueError(f"a record needs an integer 'step', got {record.get('step')!r}")
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        self._file.write(json.dumps(plain, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the records of a log; skip an incomplete last line."""
    return [record for _, record in _lines(path)]


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read the complete lines and their records."""
    try:
        *lines, _incomplete = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text: {error}") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f"{path} line {number} is not a record with an integer 'step'")
        records.append((line, record))
    return records


def _drop_after(path: Path, step: int) -> None:
    """Remove the lines that were written after the checkpoint of a step.

    A step is logged, with its rate, before its checkpoint; validations come after it.
    """
    before = [line + "\n" for line, record in _lines(path) if _precedes(record, step)]
    write_text(path, "".join(before))


def _precedes(record: Mapping[str, Any], step: int) -> bool:
    of_validation = "epoch" in record and "rate" not in record
    return bool(record["step"] < step or (record["step"] == step and not of_validation))

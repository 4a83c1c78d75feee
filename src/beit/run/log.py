"""The metrics log: JSON lines, valid after a kill and bit-identical after a resume."""

import json
import logging
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, Self

from beit.files import write_text

logger = logging.getLogger(__name__)


class MetricsLog:
    """Appends records to a file of JSON lines; a context manager, which closes it.

    Floats are written with full precision; a float that is not finite is written as null. Lines
    that cannot be written are kept, and written with the next ones.
    """

    def __init__(self, path: Path | None, resume_step: int | None = None) -> None:
        """Open the log.

        Args:
            path: None writes nothing, for processes other than the first
            resume_step: step of the checkpoint that the run resumes from; lines that were written
                after this checkpoint are removed. None starts a new file
        """
        self._path, self._failed = path, False
        self._file: FileIO | None = None
        if path is None:
            return
        if resume_step is not None and path.exists():
            _drop_after(path, resume_step)
        elif path.exists() and path.stat().st_size:
            raise FileExistsError(f"{path} has lines of another run; a new log needs a new file")
        self._file = file = path.open("ab", buffering=0)
        # Lines that may not be on the disk, how much of them is in the file, and where they begin.
        self._lines, self._written, self._start = b"", 0, file.tell()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record of plain values, among them `step`, an int."""
        if self._path is None:
            return
        if not isinstance(record.get("step"), int):
            raise ValueError(f"a record needs an integer 'step', got {record.get('step')!r}")
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        self._lines += json.dumps(plain, allow_nan=False).encode() + b"\n"
        try:
            self._append()
        except OSError as error:
            if not self._failed:
                text = "%s: %s; its lines are kept, and written as soon as possible"
                logger.warning(text, self._path, error.strerror)
            self._failed = True

    def flush(self) -> None:
        """Write all lines to the disk itself, not only to its cache; OSError if that fails."""
        if self._path is not None:
            self._append(to_disk=True)
            self._start += len(self._lines)
            self._lines, self._written, self._failed = b"", 0, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Close the file; OSError if lines cannot be written, unless another error is raised."""
        try:
            self.flush()
        except OSError:
            if kind is None:
                raise
        finally:
            self._close()

    def _append(self, to_disk: bool = False) -> None:
        """Write what is not yet in the file, after a failure from where the disk may lack it."""
        assert self._path is not None
        try:
            if self._file is None:
                self._file, self._written = self._path.open("ab", buffering=0), 0
                self._file.truncate(min(self._start, self._file.tell()))
            while self._written < len(self._lines):
                self._written += self._file.write(self._lines[self._written :])
            if to_disk:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._close()
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # it is closed whatever it says
                file.close()


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

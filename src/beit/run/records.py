"""The records of a run, its logs and checkpoints: a disk that fails does not stop a training.

The first process writes them. A callback of lightning-fabric gives them to the journal, so that
loops need not know files.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import torch

from beit.files import PARTIAL_SUFFIX, replacing
from beit.run.directory import RunDirectory
from beit.run.journal import Journal
from beit.run.log import MetricsLog
from beit.wording import an

_PLAIN = (int, float, bool, str, bytes, type(None))


class Opener:
    """The callback that gives a journal its records."""

    def on_directory(self, journal: Journal, resume_step: int | None) -> None:
        """Open them in the run directory."""
        journal.records = Records(journal, resume_step)


class Records:
    """Writes logs and checkpoints of a run; a context manager, which ends what it writes.

    A checkpoint that cannot be written is warned of, and the next one is tried at its interval. The
    first one of a run has to be written: without any, nothing would be kept.
    """

    def __init__(self, journal: Journal, resume_step: int | None) -> None:
        """Open the logs.

        Args:
            resume_step: see `beit.run.log`
        """
        self._journal, self._first = journal, journal.fabric.is_global_zero
        self._logs = {
            file: MetricsLog(file if self._first else None, resume_step)
            for file in (journal.directory.metrics_file, journal.directory.speed_file)
        }
        self._good = journal.saved_step  # of the last good checkpoint; -1 for none
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Write a line of the metrics log."""
        self._logs[self._journal.directory.metrics_file].write(record)

    def speed(self, record: Mapping[str, Any]) -> None:
        """Write a line of the log of speeds."""
        self._logs[self._journal.directory.speed_file].write(record)

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint of the step, after the lines of the logs that precede it."""
        if not self._first:
            return
        self.wait()
        step = self._journal.step
        with self._surviving(step):
            for log in self._logs.values():
                log.flush()
            if self._journal.config.run.save_async and self._good >= 0:
                self._writing = self._thread.submit(self._write_beside, step, _copied(state))
            else:
                self._write(step, state)

    def wait(self) -> None:
        """Wait for the checkpoint that a thread is writing."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, state: dict[str, Any]) -> None:
        run = self._journal.config.run
        save(self._journal.directory, step, state, run.keep_last, run.keep_every)
        self._good = step

    def _write_beside(self, step: int, state: dict[str, Any]) -> None:
        with self._surviving(step):
            self._write(step, state)

    @contextmanager
    def _surviving(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._good < 0:
                self.__exit__(type(error), error, None)
                if error.strerror is not None:
                    error.strerror += "; without a first checkpoint nothing would be kept: see to "
                    error.strerror += "the disk, then go on with --resume"
                raise
            reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            self._journal.message(
                f"no checkpoint of step {step}: {reason}. The run goes on; the checkpoint of step "
                f"{self._good} is kept, and the next one is tried as usual"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        """Wait for the last checkpoint, and close the logs."""
        with ExitStack() as stack:
            stack.callback(self._thread.shutdown)
            for log in self._logs.values():
                stack.callback(log.__exit__, *error)
            stack.callback(self.wait)


def save(
    run: RunDirectory, step: int, state: dict[str, Any], keep_last: int = 2, keep_every: int = 0
) -> Path:
    """Write the state after `step` steps, whole or not at all, then remove older checkpoints.

    Args:
        state: nested dicts, lists and tuples of tensors and plain values
        keep_last: number of newest checkpoints to keep, including this one
        keep_every: also keep checkpoints at multiples of this many steps; 0 for none
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; expected 1 or more")
    _check_loadable(state, "state")
    path = run.checkpoints / f"step-{step:09d}.pt"
    run.checkpoints.mkdir(exist_ok=True)  # people remove it to make room
    with replacing(path) as temporary, temporary.open("wb") as opened:
        torch.save({"step": step, "state": state}, opened)
    with suppress(OSError):  # what cannot be removed now is removed after the next checkpoint
        _remove_others(run, step, keep_last, keep_every)
    return path


def _remove_others(run: RunDirectory, step: int, keep_last: int, keep_every: int) -> None:
    for leftover in run.checkpoints.glob(f".*{PARTIAL_SUFFIX}"):  # left by a killed process
        leftover.unlink(missing_ok=True)
    saved = run.saved_steps()
    # A newer checkpoint is damaged, since the run was resumed from an older one: remove it.
    past = sorted(other for other in saved if other <= step)
    kept = {step for step in past if keep_every and step and step % keep_every == 0}
    kept |= set(past[-keep_last:])
    for other, file in saved.items():
        if other not in kept:
            file.unlink()


def _check_loadable(value: Any, name: str) -> None:
    """Refuse to save what a safe load would refuse to read."""
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN:
        return
    if type(value) in (dict, OrderedDict):
        for key, entry in value.items():
            if type(key) not in (str, int):
                raise ValueError(f"{name} has the key {key!r}; expected a string or an int")
            _check_loadable(entry, f"{name}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, entry in enumerate(value):
            _check_loadable(entry, f"{name}[{index}]")
    else:
        raise ValueError(f"{name} is {an(type(value).__name__)}; expected tensors and plain values")


def _copied(value: Any) -> Any:
    """Copy the tensors of a state into the host's memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, _copied(entry)) for key, entry in value.items())
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value

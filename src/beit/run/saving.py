"""Write checkpoints: in the step, or in a thread beside it; a run survives one that fails.

A callback of lightning-fabric, so that loops need not know it: the journal calls it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from beit.files import PARTIAL_SUFFIX, replacing
from beit.run.checkpoint import saved_steps
from beit.run.directory import RunConfig, RunDirectory

_PLAIN = (int, float, bool, str, bytes, type(None))


class Config(Protocol):
    """The settings of a training that matter here."""

    @property
    def run(self) -> RunConfig: ...


class Log(Protocol):
    """A log, whose lines up to a checkpoint must be on the disk before it."""

    def flush(self) -> None: ...


class Journal(Protocol):
    """What a journal tells about its checkpoint."""

    step: int
    saved_step: int

    @property
    def config(self) -> Config: ...
    @property
    def directory(self) -> RunDirectory: ...
    def message(self, text: str) -> None: ...


class Saver:
    """The callback: one checkpoint at a time.

    One that cannot be written is warned of, and the next one is tried at its interval. The first
    checkpoint of a run has to be written: without any, nothing would be kept.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._good: int | None = None  # step of the last good checkpoint

    def on_checkpoint(self, journal: Journal, state: dict[str, Any], logs: Iterable[Log]) -> None:
        """Write a checkpoint, after the lines of the logs that precede it."""
        self.finish_saving()
        if self._good is None and journal.saved_step >= 0:
            self._good = journal.saved_step
        with self._surviving(journal, journal.step):
            for log in logs:
                log.flush()
            if journal.config.run.save_async and self._good is not None:
                copied = _copied(state)
                self._writing = self._thread.submit(self._write, journal, journal.step, copied)
            else:
                self._write(journal, journal.step, state)

    def finish_saving(self) -> None:
        """Wait for the checkpoint that a thread is writing."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, journal: Journal, step: int, state: dict[str, Any]) -> None:
        run = journal.config.run
        with self._surviving(journal, step):
            save(journal.directory, step, state, run.keep_last, run.keep_every)
            self._good = step

    @contextmanager
    def _surviving(self, journal: Journal, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._good is None:
                raise
            reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            journal.message(
                f"no checkpoint of step {step}: {reason}. The run goes on; the checkpoint of step "
                f"{self._good} is kept, and the next one is tried as usual"
            )


def callbacks() -> list[Any]:
    """Return the callback of a training that begins now."""
    return [Saver()]


def save(
    run: RunDirectory, step: int, state: dict[str, Any], keep_last: int = 2, keep_every: int = 0
) -> Path:
    """Write the state after `step` steps, then remove older checkpoints.

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
    saved = saved_steps(run)
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
        raise ValueError(f"{name} is a {type(value).__name__}; expected tensors and plain values")


def _copied(value: Any) -> Any:
    """Copy the tensors of a state into the host's memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, _copied(entry)) for key, entry in value.items())
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value

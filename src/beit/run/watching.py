"""A function of the caller that is called after each step of a training: `on_step`.

A callback of lightning-fabric, so that loops need not know it: the journal calls it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from beit.run.journal import Journal

OnStep = Callable[[int, dict[str, float]], object]

_watching: ContextVar[OnStep | None] = ContextVar("watching", default=None)
_measuring: ContextVar[Any] = ContextVar("measuring", default=None)


@contextmanager
def watched_by(on_step: OnStep | None) -> Iterator[None]:
    """Call `on_step(step, figures)` after each step of the trainings that begin in this context.

    `figures` are those that the run has logged in this step, its validation included: empty between
    two log lines, so that no step waits for the device. Only the first process calls. If the
    function returns False, the next step is the last one, as with `run.stop_after`: it is logged,
    saved, validated and reported. Several processes agree on that at their next log line.
    """
    token = _watching.set(on_step)
    try:
        yield
    finally:
        _watching.reset(token)


@contextmanager
def measured_by(callback: object) -> Iterator[None]:
    """Give a callback of lightning-fabric to the trainings that begin in this context."""
    token = _measuring.set(callback)
    try:
        yield
    finally:
        _measuring.reset(token)


def watchers() -> list[Any]:
    """Return the callbacks of a training that begins now."""
    on_step, callback = _watching.get(), _measuring.get()
    others = [] if callback is None else [callback]
    return others if on_step is None else [*others, _Watcher(on_step)]


class _Watcher:
    def __init__(self, on_step: OnStep) -> None:
        self._on_step, self._stops = on_step, False

    def after_step(self, journal: Journal) -> None:
        """Call the function, and shorten the run if it has asked for that."""
        if journal.fabric.is_global_zero and not self._stops:
            self._stops = self._on_step(journal.step, dict(journal.recorded)) is False
        stops = self._stops
        if journal.fabric.world_size > 1:
            stops = journal.logs and journal.fabric.broadcast(self._stops)
        if stops and journal.step + 1 < journal.last_step:
            journal.last_step = journal.step + 1
            journal.message(f"on_step returned False: step {journal.last_step} is the last one")

"""Preemption: SIGTERM, SIGUSR1 and Ctrl-C stop a training after its step, with a checkpoint.

A callback of lightning-fabric, so that loops need not know it: the journal calls it.
"""

from __future__ import annotations

import _thread
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from beit.run.directory import RunDirectory
from beit.run.finished import is_finished

if TYPE_CHECKING:
    from beit.run.agreement import Agreement
    from beit.run.journal import Journal

RETRY = 75  # exit code, EX_TEMPFAIL of sysexits.h: start me again
INTERRUPTED = 130  # exit code, as shells have it
SIGNALS = [getattr(signal, n) for n in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, n)]
ONE_PRESS = 1.0  # seconds; one Ctrl-C comes from the terminal and again from torchrun
AGAIN = 0.1  # seconds after which a signal is sent again
HINT = b"\nbeit: stops after this step, with a checkpoint; Ctrl-C again stops at once\n"


class Preempted(SystemExit):
    """SIGTERM or SIGUSR1 stopped a command; uncaught it ends the process with its exit code."""

    def __init__(self, message: str, exit_code: int = RETRY) -> None:
        super().__init__(message)
        self.code = self.exit_code = exit_code


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped a command, a training after a checkpoint."""

    def __init__(self, message: str, exit_code: int = INTERRUPTED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def stoppable(advice: str = "") -> Iterator[None]:
    """Let signals stop what runs in this context, trainings after a step and a checkpoint.

    Only in the main thread, which alone gets signals. Those that are ignored stay so. A second one
    of the same kind stops at once.

    Args:
        advice: what to do after a stop; if empty, resume the training that was stopped
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or _stop.get() is not None:
        yield
        return
    stop = _Stop(advice)
    caught = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop.handle) for number in caught}
    token, hook = _stop.set(stop), sys.unraisablehook
    sys.unraisablehook, stop.active = partial(stop.unraised, hook), True
    try:
        yield
    except (Preempted, Interrupted):
        raise
    except BaseException as error:
        if stop.raised is None:
            raise
        # It took its place, as in code that is not Python, or came up in clearing up.
        raise stop.raised from error
    finally:
        sys.unraisablehook, stop.active = hook, False
        _stop.reset(token)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def ignore_signals() -> None:
    """Let no further signal change how this process ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def without_checkpoint() -> Iterator[None]:
    """Stop trainings in this context at once: those of a trial, which are thrown away."""
    token = _stop.set(None)
    try:
        yield
    finally:
        _stop.reset(token)


def of_run(run: Path) -> None:
    """Name the run directory of the training that begins, for the last line of a stop."""
    if (stop := _stop.get()) is not None:
        stop.run, stop.training = run, None


def callbacks() -> list[Any]:
    """Return the callbacks of a training that begins now."""
    stop = _stop.get()
    if stop is None:
        return []
    stop.training = _Training(stop)
    return [stop.training]


class _Stop:
    """The signals of a command.

    Attributes:
        asked: number of the signal that asked to stop; 0 for none
        run: directory of the training, also before it exists; None outside one
        training: that has begun
        raised: by the last signal that stopped at once
        active: signals may be sent again
    """

    def __init__(self, advice: str) -> None:
        self._advice, self._process = advice, os.getpid()
        self._first: dict[int, float] = {}  # seconds, by signal
        self._again = False  # the next signal is one that was sent again
        self.raised: BaseException | None = None
        self.active = False
        self.asked = 0
        self.run: Path | None = None
        self.training: _Training | None = None

    def handle(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:  # a forked worker: its parent ends it
            return
        again, self._again = self._again, False
        if again:
            if not self._underway():
                self._raise(number)
            return
        now, first = time.monotonic(), self._first.get(number)
        self._first.setdefault(number, now)
        if first is not None and now - first <= ONE_PRESS:
            return
        if first is not None or self.training is None or self.training.may_stop_at_once():
            self._raise(number)
        if number == signal.SIGINT and not self.asked:
            with suppress(OSError, ValueError, AttributeError):  # print() may be what it interrupts
                os.write(sys.stderr.fileno(), HINT)
        self.asked = max(self.asked, number)

    def _raise(self, number: int) -> NoReturn:
        """Raise an error where the program is now, and again as long as such a place loses it.

        A finalizer lets no error out, a library may catch it or raise its own instead.
        """
        self.raised = self.error(number)
        # Not threading.Thread, whose locks the program may hold here.
        _thread.start_new_thread(self._send_again, (number,))
        raise self.raised

    def _send_again(self, number: int) -> None:
        time.sleep(AGAIN)
        main = threading.main_thread().ident
        if self.active and main is not None:
            self._again = True
            signal.pthread_kill(main, number)

    def _underway(self) -> bool:
        """Whether the program is ending by the error that was raised."""
        error = sys.exc_info()[1]
        while error is not None and error is not self.raised:
            error = error.__context__
        return error is not None

    def unraised(self, hook: Callable[[Any], object], lost: Any) -> None:
        """Show an error that a finalizer has lost, but not that of a signal."""
        if self.raised is None or lost.exc_value is not self.raised:
            hook(lost)

    def error(self, number: int, together: bool = False) -> Preempted | Interrupted:
        """Return the exception that says what was saved, and the command that goes on.

        Args:
            together: all processes stop; then those that Fabric started end without an error, for
                which it would kill the first one
        """
        name = signal.Signals(number).name
        text = f"stopped by {name}{' (Ctrl-C)' * (number == signal.SIGINT)}{self._state()}"
        code = INTERRUPTED if number == signal.SIGINT else RETRY
        by_fabric = "TORCHELASTIC_RUN_ID" not in os.environ
        if together and by_fabric and os.environ.get("LOCAL_RANK", "0") != "0":
            code = 0
        return (Interrupted if number == signal.SIGINT else Preempted)(text, code)

    def _state(self) -> str:
        if self.run is None or is_finished(run := RunDirectory(self.run)):
            return f"; {self._advice}" if self._advice else ""
        if not run.config_file.exists():
            return f" before {run.path} began; {self._advice or 'start it again'}"
        step = run.saved_step()
        state = "no checkpoint yet" if step is None else f"the checkpoint of step {step} is saved"
        command = shlex.join([*_launcher(), "beit", run.verb(), "--resume", str(run.path)])
        return f"; {state}; {self._advice or f'go on with: {command}'}"


def _launcher() -> list[str]:
    """Return the words before `beit` that start as many processes again."""
    of_elastic = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if of_elastic.startswith("slurm-"):  # `beit.command.slurm`
        return ["srun"]
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return ["torchrun", "--nproc_per_node", count, "-m"] if of_elastic else []


class _Training:
    """The callback: stops after a step, in all processes after the same one."""

    def __init__(self, stop: _Stop) -> None:
        self._stop, self._in_step = stop, False
        self._journal: Journal | None = None  # after the first step
        self._agreement: Agreement | None = None

    def may_stop_at_once(self) -> bool:
        """Whether nothing is lost, and no other process waits for this one."""
        journal = self._journal
        if self._in_step or journal is None:
            return not self._in_step
        return journal.fabric.world_size == 1 and journal.saved_step == journal.step

    def on_step_start(self, stream: object) -> None:
        """Note that a step begins."""
        self._in_step = True

    def on_step_saved(self, journal: Journal) -> None:
        """Save and stop if a signal, in any of the processes, has asked for it."""
        self._journal, number = journal, self._stop.asked
        if journal.fabric.world_size > 1:
            from beit.run.agreement import Agreement  # imports torch

            self._agreement = self._agreement or Agreement(journal.fabric.device)
            number = self._agreement.highest(number, journal.step < journal.last_step)
        if number:
            journal.save()
            journal.records.wait()  # the message tells of this checkpoint
            journal.fabric.barrier()  # when one process ends, torchrun kills the others
            raise self._stop.error(number, together=True)
        self._in_step = False


_stop: ContextVar[_Stop | None] = ContextVar("stop", default=None)

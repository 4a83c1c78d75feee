"""Faults that a process brings upon itself: `child.py` calls them by name, before its command."""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from beit.run.watching import watched_by

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
_kept: list[Any] = []


def signal_before(operation: int, number: int) -> None:
    """Send the process a signal before the n-th operation that changes a file of the run."""
    on_operation(lambda counted: counted == operation and os.kill(os.getpid(), number))


def count_operations(file: str) -> None:
    """Keep the number of operations that `signal_before` counts in a file of that size."""
    size = os.open(file, os.O_WRONLY | os.O_CREAT)
    on_operation(lambda counted: os.posix_fallocate(size, 0, counted))


def on_operation(act: Callable[[int], object]) -> None:
    numbers, fsync, process = count(1), os.fsync, os.getpid()

    def operation() -> None:
        if os.getpid() == process:  # not in loader workers
            act(next(numbers))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and (arguments[2] or 0) & os.O_ACCMODE):
            if isinstance(arguments[0], str | Path) and "runs/" in str(arguments[0]):
                operation()

    def flush(handle: int) -> None:
        operation()
        fsync(handle)

    sys.addaudithook(hook)
    os.fsync = flush


def handles(number: int) -> None:
    """Allow so many open files."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


_actions: dict[int, list[tuple[Callable[..., object], list[Any]]]] = defaultdict(list)


def after(step: int, name: str, *arguments: Any) -> None:
    """Do something after a step and the checkpoint and validation that belong to it."""
    _actions[step].append((globals()[name], list(arguments)))
    if not _kept:
        _kept.append(watched_by(act))
        _kept[0].__enter__()


def act(step: int, figures: dict[str, float]) -> None:
    for function, arguments in _actions.pop(step, ()):
        function(*arguments)


# ── what `after` does ───────────────────────────────────────────────────────────────────────────


def fill(folder: str) -> None:
    """Fill the disk of a folder to the last byte."""
    with open(f"{folder}/filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(2**12))
        except OSError:
            pass


def free(folder: str) -> None:
    os.unlink(f"{folder}/filler")


def read_only(folder: str) -> None:
    """Let nothing be opened for writing below a folder; what is open already stays so."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)


def writable(folder: str) -> None:
    subprocess.run(["umount", folder], check=True)


def failing(number: int) -> None:
    """Let whatever is flushed to disk fail with an error number."""
    _kept.append(os.fsync)

    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    os.fsync = fail


def sound() -> None:
    os.fsync = _kept.pop()


def kill_workers(number: int) -> None:
    for worker in multiprocessing.active_children()[:number]:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)


def remove(path: str) -> None:
    shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def rename(path: str, other: str) -> None:
    os.rename(path, other)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

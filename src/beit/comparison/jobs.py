"""Commands run side by side, each in a process of its own that ends when this one does."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

LOOK_EVERY = 0.1  # seconds
PATIENCE = 10.0  # seconds that a process gets to end before it is killed
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


class Job(NamedTuple):
    """A command, the names of the jobs that it needs, and the file that its output goes to."""

    name: str
    command: Sequence[str]
    needs: Collection[str]
    log: Path


class Running(NamedTuple):
    """A job that was started, in one of the places."""

    job: Job
    process: subprocess.Popen[bytes]
    place: int


def run_jobs(
    jobs: Sequence[Job],
    places: Sequence[Mapping[str, str]],
    started: Callable[[Job], None],
    ended: Callable[[Job, str | None], None],
    keep_open: Collection[int] = (),
) -> dict[str, str]:
    """Run jobs in their order, as many at a time as there are places.

    A job whose needs failed is not started. Needs that are no jobs count as met. The processes are
    ended with this one: by Ctrl-C or an error in order, and on Linux even when it is killed.

    Args:
        places: for each, what it adds to the environment of a process
        started, ended: called with the job, and with what went wrong or None
        keep_open: file descriptors that the processes hold open too

    Returns: what went wrong, by the name of the job.
    """
    failures: dict[str, str] = {}
    names = {job.name for job in jobs}
    waiting, running, done = list(jobs), list[Running](), set[str]()
    try:
        while waiting or running:
            for one in list(running):
                status = one.process.poll()
                if status is not None:
                    running.remove(one)
                    done.add(one.job.name)
                    if status:
                        failures[one.job.name] = _reason(one.job.log, status)
                    ended(one.job, failures.get(one.job.name))
            taken = {one.place for one in running}
            free = [number for number in range(len(places)) if number not in taken]
            for job in list(waiting):
                lost = [name for name in job.needs if name in failures]
                if lost:
                    waiting.remove(job)
                    failures[job.name] = f"needs {lost[0]}, which failed"
                    ended(job, failures[job.name])
                elif free and all(name in done or name not in names for name in job.needs):
                    waiting.remove(job)
                    started(job)
                    place = free.pop(0)
                    running.append(Running(job, _start(job, places[place], keep_open), place))
            if running:
                time.sleep(LOOK_EVERY)
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            with suppress(subprocess.TimeoutExpired):
                one.process.wait(PATIENCE)
            one.process.kill()
            one.process.wait()
    return failures


def _start(
    job: Job, environment: Mapping[str, str], keep_open: Collection[int]
) -> subprocess.Popen[bytes]:
    with job.log.open("ab") as log:
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            pass_fds=tuple(keep_open),
            preexec_fn=_bound_to(os.getpid()),
        )


def _bound_to(parent: int) -> Callable[[], None] | None:
    """Return what a new process calls first, so that it does not outlive its parent."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def bind() -> None:
        libc.prctl(DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it went before the request was made
            os._exit(1)

    return bind


def _reason(log: Path, status: int) -> str:
    """Say in a line why a process failed: the last one that it wrote."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    how = f"killed by signal {-status}" if status < 0 else f"exit code {status}"
    return f"{how}: {last.removeprefix('beit: error: ')}"

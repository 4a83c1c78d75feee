"""Running commands in parallel, each in a process that ends with this one."""

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

POLL_SECONDS = 0.1
TERMINATE_SECONDS = 10.0  # for a process to end before it is killed
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


class Job(NamedTuple):
    """A command, the names of the jobs it depends on, and the file for its output."""

    name: str
    command: Sequence[str]
    needs: Collection[str]
    log: Path


class Running(NamedTuple):
    """A started job, and the index of its environment."""

    job: Job
    process: subprocess.Popen[bytes]
    slot: int


def run_jobs(
    jobs: Sequence[Job],
    environments: Sequence[Mapping[str, str]],
    started: Callable[[Job], None],
    ended: Callable[[Job, str | None], None],
    keep_open: Collection[int] = (),
) -> dict[str, str]:
    """Run jobs in order, at most one per environment at a time.

    A job is not started if one that it needs has failed; needs that are no jobs count as met. The
    processes end with this one: on Ctrl-C and errors they are terminated, on Linux they are killed
    even if this process is killed.

    Args:
        environments: variables added to the environment of each simultaneous process
        started, ended: callbacks; `ended` also gets the reason of a failure, or None
        keep_open: file descriptors that the processes inherit

    Returns: the reasons of failures, by the name of the job.
    """
    failures: dict[str, str] = {}
    waiting, running = list(jobs), list[Running]()
    unfinished = {job.name for job in jobs}
    try:
        while waiting or running:
            for item in list(running):
                status = item.process.poll()
                if status is not None:
                    running.remove(item)
                    unfinished.remove(item.job.name)
                    if status:
                        failures[item.job.name] = _reason(item.job.log, status)
                    ended(item.job, failures.get(item.job.name))
            busy = {item.slot for item in running}
            free = [slot for slot in range(len(environments)) if slot not in busy]
            for job in list(waiting):
                failed = [name for name in job.needs if name in failures]
                if failed:
                    waiting.remove(job)
                    failures[job.name] = f"needs {failed[0]}, which failed"
                    ended(job, failures[job.name])
                elif free and unfinished.isdisjoint(job.needs):
                    waiting.remove(job)
                    started(job)
                    slot = free.pop(0)
                    process = _start(job, environments[slot], keep_open)
                    running.append(Running(job, process, slot))
            if running:
                time.sleep(POLL_SECONDS)
    finally:
        for item in running:
            item.process.terminate()
        for item in running:
            with suppress(subprocess.TimeoutExpired):
                item.process.wait(TERMINATE_SECONDS)
            item.process.kill()
            item.process.wait()
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
    """Return a function that makes a new process die with its parent; None if not on Linux."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def bind() -> None:
        libc.prctl(DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the call
            os._exit(1)

    return bind


def _reason(log: Path, status: int) -> str:
    """Return the exit status of a failed process and its last line of output."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    exit_status = f"killed by signal {-status}" if status < 0 else f"exit code {status}"
    return f"{exit_status}: {last.removeprefix('beit: error: ')}"

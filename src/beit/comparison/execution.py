"""Running an ablation: the lock on its directory, and parallel runs that end with this process."""

import ctypes
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch

from beit.command.options import as_spelled
from beit.comparison.planned_runs import Chain, PlannedRun

LOCK_SECONDS = 30.0  # for processes of a killed ablation to end and release the lock
POLL_SECONDS = 0.1
TERMINATE_SECONDS = 120.0  # for a training to end its step and save it before it is killed
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


@contextmanager
def locked(output: Path) -> Iterator[int]:
    """Lock the directory and yield the lock's file descriptor, for the runs to inherit.

    Raises:
        ValueError: another ablation, or a run that one left behind, holds the lock.
    """
    with (output / ".lock").open("w") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"another beit ablate, or a run that one left behind, is running in "
                        f"{output}; wait for it, stop it, or name another directory"
                    ) from None
                time.sleep(0.2)
        yield file.fileno()


def run_all(
    runs: list[PlannedRun],
    chains: list[Chain],
    output: Path,
    jobs: int,
    launcher: str,
    lock: int,
    after_each: Callable[[], object],
) -> dict[str, str]:
    """Start or resume runs, at most `jobs` at a time, and print their progress.

    Args:
        chains: of the plan, to print which rows a run is for
        launcher: replaces `python -m beit` for training
        lock: file descriptor that the runs hold open
        after_each: called when a run has ended

    Returns: the reasons of failures, by the name of the run.
    """
    queue = []
    for run in runs:
        log, needs = output / "logs" / f"{run.name}.log", set(run.references.values())
        users = [c for c in chains if run.name in {other.name for other in c.runs.values()}]
        more = f" and {len(users) - 1} more rows" if len(users) > 1 else ""
        rows = f"{users[0].cell} (seed {users[0].seed}){more}"
        queue.append(Job(run.name, command(run, output, launcher), needs, log, rows))
    return run_jobs(queue, environments(jobs, launcher), [lock], after_each)


def command(run: PlannedRun, output: Path, launcher: str) -> list[str]:
    """Return the command that starts or resumes a run; remove a directory it cannot resume."""
    directory = run.directory(output)
    start = shlex.split(launcher) if launcher and run.trains else [sys.executable, "-m", "beit"]
    if run.trains and (directory / "config.yaml").is_file():
        return [*start, run.stage.verb, f"--resume={directory}"]
    if directory.exists():
        shutil.rmtree(directory)
    references = [f"--{option}={output / 'runs' / name}" for option, name in run.references.items()]
    words = as_spelled(run.stage.verb, [*run.arguments, *references])
    return [*start, run.stage.verb, *words, f"--output={directory}"]


def environments(jobs: int, launcher: str) -> list[dict[str, str]]:
    """Return what each of the simultaneous runs adds to its environment: a GPU, or one thread."""
    num_gpus = torch.cuda.device_count()
    if jobs == 1 or launcher:
        return [{} for _ in range(jobs)]
    if not num_gpus:
        return [{"OMP_NUM_THREADS": "1"} for _ in range(jobs)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else list(map(str, range(num_gpus)))
    return [{"CUDA_VISIBLE_DEVICES": gpus[job % num_gpus]} for job in range(jobs)]


# ── processes ───────────────────────────────────────────────────────────────────────────────────


class Job(NamedTuple):
    """A command."""

    name: str
    command: Sequence[str]
    needs: Collection[str]  # names of the jobs it depends on
    log: Path  # for its output
    purpose: str = ""  # for the line that says that it starts


class Running(NamedTuple):
    """A started job."""

    job: Job
    process: subprocess.Popen[bytes]
    slot: int  # index of its environment
    start: float  # monotonic seconds


def run_jobs(
    jobs: Sequence[Job],
    environments: Sequence[Mapping[str, str]],
    keep_open: Collection[int] = (),
    after_each: Callable[[], object] = lambda: None,
) -> dict[str, str]:
    """Run jobs in order, at most one per environment at a time, and print their progress.

    A job is not started if one that it needs has failed; needs that are no jobs count as met. The
    processes end with this one: on Ctrl-C, SIGTERM and errors they get SIGTERM, on which trainings
    save a checkpoint; on Linux they are killed even if this process is killed.

    Args:
        environments: variables added to the environment of each simultaneous process
        keep_open: file descriptors that the processes inherit
        after_each: called when a job has ended

    Returns: the reasons of failures, by the name of the job.
    """
    failures: dict[str, str] = {}
    waiting, running = list(jobs), list[Running]()
    unfinished, num_started = {job.name for job in jobs}, 0
    try:
        while waiting or running:
            for item in [item for item in running if item.process.poll() is not None]:
                name, outcome = item.job.name, "done"
                running.remove(item)
                unfinished.remove(name)
                if status := item.process.returncode:
                    failures[name] = _reason(item.job.log, status)
                    outcome = f"failed ({failures[name]})"
                minutes = (time.monotonic() - item.start) / 60
                print(f"{name} {outcome} after {minutes:.1f} minutes", flush=True)
                after_each()
            busy = {item.slot for item in running}
            free = [slot for slot in range(len(environments)) if slot not in busy]
            for job in list(waiting):
                if failed := [name for name in job.needs if name in failures]:
                    waiting.remove(job)
                    failures[job.name] = f"needs {failed[0]}, which failed"
                    print(f"{job.name} failed ({failures[job.name]}) after 0.0 minutes", flush=True)
                elif free and unfinished.isdisjoint(job.needs):
                    waiting.remove(job)
                    num_started += 1
                    print(f"{num_started} of {len(jobs)} · {job.name} · {job.purpose}", flush=True)
                    slot, start = free.pop(0), time.monotonic()
                    process = _start(job, environments[slot], keep_open)
                    running.append(Running(job, process, slot, start))
            if running:
                time.sleep(POLL_SECONDS)
    finally:
        if running:
            print("stopping: trainings end their step and save it", flush=True)
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
    lines = log.read_bytes().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    exit_status = f"killed by signal {-status}" if status < 0 else f"exit code {status}"
    return f"{exit_status}: {last.removeprefix('beit: error: ')}"

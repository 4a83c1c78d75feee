"""Running an ablation: a lock on its directory, the command of each run, GPUs or threads."""

import fcntl
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from beit.comparison.planned_runs import Chain, PlannedRun, output_option
from beit.comparison.processes import Job, run_jobs

LOCK_SECONDS = 30.0  # for processes of a killed ablation to end and release the lock


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
    runs: Sequence[PlannedRun],
    chains: Sequence[Chain],
    output: Path,
    jobs: int,
    launcher: str,
    lock: int,
) -> dict[str, str]:
    """Start or resume runs, and print their progress.

    Args:
        chains: of the plan, to print which rows a run is for
        jobs: runs at a time
        launcher: replaces `python -m beit` for training
        lock: file descriptor that the runs hold open

    Returns: the reasons of failures, by the name of the run.
    """
    queue = []
    for run in runs:
        log, needs = output / "logs" / f"{run.name}.log", set(run.references.values())
        queue.append(Job(run.name, command(run, output, launcher), needs, log))
    start_times: dict[str, float] = {}

    def started(job: Job) -> None:
        start_times[job.name] = time.monotonic()
        rows = [
            f"{chain.cell} (seed {chain.seed})"
            for chain in chains
            if any(run.name == job.name for run in chain.runs.values())
        ]
        more = f" and {len(rows) - 1} more rows" if len(rows) > 1 else ""
        print(f"{len(start_times)} of {len(queue)} · {job.name} · {rows[0]}{more}", flush=True)

    def ended(job: Job, failure: str | None) -> None:
        minutes = (time.monotonic() - start_times.get(job.name, time.monotonic())) / 60
        outcome = "done" if failure is None else f"failed ({failure})"
        print(f"{job.name} {outcome} after {minutes:.1f} minutes", flush=True)

    return run_jobs(queue, environments(jobs, launcher), started, ended, keep_open=[lock])


def command(run: PlannedRun, output: Path, launcher: str) -> list[str]:
    """Return the command that starts or resumes a run; remove a directory it cannot resume."""
    directory = run.directory(output)
    start = shlex.split(launcher) if launcher and run.trains else [sys.executable, "-m", "beit"]
    if run.trains and (directory / "config.yaml").is_file():
        return [*start, run.stage.verb, f"--resume={directory}"]
    if directory.exists():
        shutil.rmtree(directory)
    references = [f"--{option}={output / 'runs' / name}" for option, name in run.references.items()]
    target = f"--{output_option(run.stage.verb)}={directory}"
    return [*start, run.stage.verb, *run.arguments, *references, target]


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

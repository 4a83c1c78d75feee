"""Thousands of steps with worker processes: memory, open files and threads do not grow."""

import os
from pathlib import Path

import pytest

import beit

STEPS, SAMPLED = 3000, 100


def used(process: int | str = "self") -> tuple[int, int, int]:
    """Return the resident megabytes, open files and threads of a process."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines()
    )
    files = len(os.listdir(f"/proc/{process}/fd"))
    return int(status["VmRSS"].split()[0]) // 1000, files, int(status["Threads"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc of Linux")
def test_nothing_grows_in_three_thousand_steps(tmp_path: Path) -> None:
    samples: list[tuple[int, ...]] = []

    def sample(step: int, figures: dict[str, float]) -> None:
        if step % SAMPLED == 0:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            workers = [used(child) for child in children]
            samples.append((*used(), len(workers), *map(sum, zip(*workers, strict=True))))

    beit.pretrain(
        preset="shapes-tiny",
        output=tmp_path / "run",
        quiet=True,
        on_step=sample,
        **{
            "target.kind": "pixels",
            "data.num_workers": 2,
            "data.validation": "",
            "check.every": 0,
            "optim.epochs": 1000,
            "run.stop_after": STEPS,
            "run.checkpoint_every": 500,
        },
    )
    assert len(samples) == STEPS // SAMPLED
    early, late = samples[4], samples[-1]
    print(f"megabytes, files, threads; workers and theirs: step 500 {early}, step {STEPS} {late}")
    for place, allowed in enumerate((50, 0, 0, 0, 50, 0, 0)):
        assert late[place] <= early[place] + allowed, (place, early, late)

"""Runs killed by SIGKILL and resumed until done equal those that nobody disturbed, bit for bit.

Real processes, killed at five random points: what a log or a checkpoint holds when its writer
vanishes cannot be had otherwise. Log lines and checkpoints come at steps that are no multiples of
one another, so that a kill falls before, between and after either.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_file_loader

pytestmark = pytest.mark.slow

VERBS = ("train-tokenizer", "pretrain", "finetune")  # each begins where the one before ends
KILLS = 5
STEPS = 60  # 5 epochs of 12 steps of 16 images
SHORT = [
    *("--data.train", "shapes://197?size=32", "--data.validation", "shapes://40?size=32&seed=1"),
    *("--optim.batch_size", "16", "--optim.epochs", "5"),
    *("--run.log_every", "3", "--run.checkpoint_every", "7"),
]


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "beit", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,  # with its loader workers a group of its own
    )


def finish(*arguments: str) -> None:
    process = start(*arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def kill_at(step: int, log: Path, *arguments: str) -> None:
    """Start a run and kill it with its workers once it has logged a step."""
    before = log.stat().st_ino if log.exists() else None  # a resumed run begins a new file
    process = start(*arguments)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.stat().st_ino != before and last_step(log) >= step:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL, errors.decode()


def last_step(log: Path) -> int:
    lines = log.read_text().split("\n")[:-1]  # the last one may be cut short
    return int(json.loads(lines[-1])["step"]) if lines else 0


def moments(seed: int) -> list[int]:
    """Five steps in rising order, early enough for the kill to come before the end."""
    return sorted(random.Random(seed).sample(range(1, STEPS - 6), KILLS))


def killed_run(seed: int, run: Path, verb: str, *options: str) -> None:
    """Begin a run and kill it, five times over, then let it end."""
    command = [verb, "--preset", "shapes-tiny", *SHORT, "--run.output", str(run), *options]
    for step in moments(seed):
        kill_at(step, run / "metrics.jsonl", *command)
        command = [verb, "--resume", str(run)]
    assert not (run / "weights.safetensors").exists()
    finish(*command)


def begun_from(verb: str, runs: dict[str, Path]) -> list[str]:
    """Name the run that a verb goes on from."""
    return {
        "train-tokenizer": [],
        "pretrain": ["--tokenizer", str(runs["train-tokenizer"])],
        "finetune": ["--init", str(runs["pretrain"]), "--average", "0.9"],
    }[verb]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer, a pretrained model, a classifier, without workers and without interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    runs = {verb: folder / verb for verb in VERBS}
    for verb, run in runs.items():
        options = [*SHORT, "--run.output", str(run), *begun_from(verb, runs)]
        finish(verb, "--preset", "shapes-tiny", *options)
        assert last_step(run / "metrics.jsonl") == STEPS
    return runs


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("verb", VERBS)
def test_killed_and_resumed_equals_undisturbed(
    verb: str, num_workers: int, tmp_path: Path, undisturbed: dict[str, Path]
) -> None:
    options = ["--data.num_workers", str(num_workers), *begun_from(verb, undisturbed)]
    tracked = num_workers > 0  # to TensorBoard, by a process that is killed as well
    options += ["--run.track", "tensorboard"] * tracked
    killed_run(num_workers + len(verb), tmp_path / "run", verb, *options)
    run, other = tmp_path / "run", undisturbed[verb]
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    assert not [file.name for file in run.rglob(".*")]  # what a killed writer left half written
    if tracked:
        points = [point for file in (run / "tensorboard").iterdir() for point in scalars(file)]
        assert sorted(points) == sorted(logged(run / "metrics.jsonl"))


def scalars(file: Path) -> list[tuple[int, str, float]]:
    """Read the points of an event file, except those of speed."""
    loader = event_file_loader.LegacyEventFileLoader(str(file))
    values = [(event.step, value) for event in loader.Load() for value in event.summary.value]
    found = [(s, v.tag, v.simple_value) for s, v in values if v.HasField("simple_value")]
    return [point for point in found if not point[1].startswith("speed/")]


def logged(log: Path) -> set[tuple[int, str, float]]:
    """Read the points of a log, rounded to float32."""
    records = map(json.loads, log.read_text().splitlines())
    return {
        (record["step"], name, float(np.float32(value)))
        for record in records
        for name, value in record.items()
        if name != "step" and isinstance(value, float)
    }

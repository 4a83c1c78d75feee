"""A data worker that dies ends a command with one line; no command needs /dev/shm."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from torch import Tensor

from beit.cli import main
from beit.data.shapes import ShapesSource
from beit.run.resume import resume
from beit.tokenizer import vqkd as train_tokenizer

DIED = r"data worker \d of 2 \(process \d+\) died \(SIGKILL\) while it read shapes.* and 5 more; if"


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Kills every worker at its thirtieth image."""
    image, here, shown = ShapesSource.image, os.getpid(), count(1)

    def last(source: ShapesSource, index: int) -> Tensor:
        if os.getpid() != here and next(shown) == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return image(source, index)

    monkeypatch.setattr(ShapesSource, "image", last)
    return monkeypatch


def test_a_training_ends_and_resumes_to_the_same_bits(
    tmp_path, trained_tokenizer, tokenizer_config, same_bits, deadly
):
    config = tokenizer_config(tmp_path / "run")
    config = replace(config, data=replace(config.data, num_workers=2, cache_gigabytes=0.0))
    with pytest.raises(ChildProcessError, match=DIED):
        train_tokenizer.run(config)
    assert multiprocessing.active_children() == []
    deadly.undo()
    resume(train_tokenizer, tmp_path / "run")
    same_bits(tmp_path / "run", trained_tokenizer)


def test_the_command_says_it_in_one_line(tmp_path, trained_tokenizer, deadly, capsys):
    options = ["--model", str(trained_tokenizer), "--data", "shapes://400?size=24"]
    options += ["--output", str(tmp_path / "codes.parquet"), "--batch_size", "10"]
    options += ["--num_workers", "2", "--device.accelerator", "cpu"]
    assert main(["tokenize", *options]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.rpartition("beit: error: ")[2].startswith("data worker ")
    deadly.undo()
    assert main(["tokenize", *options]) == 0  # completes what was begun


@pytest.mark.slow
def test_a_training_needs_no_shared_memory(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=4k tmpfs /dev/shm && exec "$@"'
    within = ["unshare", "-r", "-m", "sh", "-c", script, "sh"]
    if not shutil.which("unshare") or subprocess.run([*within, "true"], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    command = [sys.executable, "-m", "beit", "train-tokenizer", "--preset", "shapes-tiny"]
    command += ["--run.output", str(tmp_path / "run"), "--run.stop_after", "20"]
    subprocess.run([*within, *command, "--data.num_workers", "2"], check=True, timeout=300)

"""Two processes under torchrun compute what one does with the same global batch.

Not to the bit: gradients and the codebook's statistics are float32 sums over the same images in
another order, each a few units in the last place (6e-8 of the value) apart. Over the 18 steps here
figures, weights and codebook were measured to differ by at most 2e-7; the tolerance leaves room for
other processors.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from beit.weights.open import load, load_tokenizer

pytestmark = pytest.mark.slow

ROUNDING = 2e-6
SHORT = [  # 3 epochs of 6 steps; validation images for one of the tokenizer's two processes only
    *("--data", "shapes://101?size=32", "--validation", "shapes://7?size=32&seed=1"),
    *("--device.precision", "32-true"),  # in bfloat16 other sums round by far more
    *("--data.num_workers", "0", "--optim.batch_size", "16", "--optim.epochs", "3"),
    *("--run.log_every", "1", "--run.checkpoint_every", "5"),
]


def train(processes: int, run: Path, verb: str, *options: str) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "beit", verb]
    command += ["--preset", "shapes-tiny", *SHORT, "--output", str(run), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr.decode()


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_figures(one: Path, two: Path) -> None:
    pairs = list(zip(records(one), records(two), strict=True))
    assert pairs[-1][0]["step"] == 18
    for first, second in pairs:
        assert first.keys() == second.keys()
        for name in first:
            expected = pytest.approx(first[name], rel=ROUNDING, abs=ROUNDING)
            assert second[name] == expected, f"{name} at step {first['step']}"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of one process and of two; the preset has the k-means start, revivals at 5, 10 and 15."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for processes, name in ((1, "one"), (2, "two")):
        train(processes, folder / name, "train-tokenizer")
    return folder / "one", folder / "two"


def test_tokenizer(tokenizers: tuple[Path, Path]) -> None:
    assert_same_figures(*tokenizers)
    one, two = map(load_tokenizer, tokenizers)
    torch.testing.assert_close(
        two.quantizer.codebook, one.quantizer.codebook, rtol=0, atol=ROUNDING
    )
    torch.testing.assert_close(two.quantizer.counts, one.quantizer.counts)


def test_pretraining(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    options = ["--tokenizer", str(tokenizers[0]), "--optim.accumulate", "2", "--check.limit", "32"]
    train(1, tmp_path / "one", "pretrain", *options)
    train(2, tmp_path / "two", "pretrain", *options)
    assert_same_figures(tmp_path / "one", tmp_path / "two")
    one, two = load(tmp_path / "one").state_dict(), load(tmp_path / "two").state_dict()
    torch.testing.assert_close(two, one, rtol=ROUNDING, atol=ROUNDING)


def test_finetuning(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    # Without mixing, whose pairs are those of a process, and the drop path of each.
    options = ["--init", str(tokenizers[0]), "--mix.probability", "0", "--drop_path", "0"]
    options += ["--augment.repeats", "2", "--balance", "0.5", "--average", "0.9"]
    train(1, tmp_path / "one", "finetune", *options)
    train(2, tmp_path / "two", "finetune", *options)
    assert_same_figures(tmp_path / "one", tmp_path / "two")
    one, two = load(tmp_path / "one").state_dict(), load(tmp_path / "two").state_dict()
    torch.testing.assert_close(two, one, rtol=ROUNDING, atol=ROUNDING)

"""Two processes under torchrun train the discrete VAE as one does with the same global batch.

Not to the bit: gradients are float32 sums over the same images in another order, a few units in the
last place apart (`test_two_processes.py` has the same tolerance). The noise is that of each image.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from beit.weights.open import load

pytestmark = pytest.mark.slow

ROUNDING = 2e-6
SHORT = [  # 3 epochs of 6 steps; validation images for one of the two processes only
    *("--kind", "dvae", "--data.train", "shapes://101?size=32"),
    *("--data.validation", "shapes://7?size=32&seed=1", "--data.num_workers", "0"),
    *("--model.image_size", "[32,32]", "--model.num_codes", "24", "--model.code_width", "8"),
    *("--model.num_layers", "2", "--model.hidden_width", "12", "--frechet_images", "0"),
    *("--optim.batch_size", "16", "--optim.accumulate", "2", "--optim.epochs", "3"),
    *("--kl_per", "step", "--run.log_every", "1", "--run.checkpoint_every", "5"),
    *("--device.precision", "32-true"),  # in bfloat16 two codes are often equally likely
]


def train(processes: int, run: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "beit"]
    command += ["train-tokenizer", *SHORT, "--run.output", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr.decode()


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "warning" not in record]


def test_discrete_vae(tmp_path: Path) -> None:
    train(1, tmp_path / "one")
    train(2, tmp_path / "two")
    pairs = list(zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True))
    assert pairs[-1][0]["step"] == 18
    for first, second in pairs:
        assert first.keys() == second.keys()
        for name in first:
            expected = pytest.approx(first[name], rel=ROUNDING, abs=ROUNDING)
            assert second[name] == expected, f"{name} at step {first['step']}"
    one, two = (load(tmp_path / name).state_dict() for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=ROUNDING, atol=ROUNDING)

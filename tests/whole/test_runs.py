"""Half-finished trainings, kept in `assets` with what they end in, go on with today's code.

`record.py --assets SRC` wrote them; assets/machine.json names the commit and the machine. On that
kind of machine figures and weights must be the same to 1e-5, on any other they must be close.
"""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import beit
from beit.cli import main

sys.path.insert(0, str(Path(__file__).parent))  # record.py is a script too, so it is no package
from record import ASSETS, described, machine

NAMES = sorted(path.name for path in (ASSETS / "expected").iterdir())


class Tolerance(NamedTuple):
    relative: float
    absolute: float


# Other processors add float32 up in another order. With AVX2 in place of AVX-512 losses and weights
# differed by 4e-6 at most after ten steps; this leaves room for other libraries as well.
ROUNDING = Tolerance(1e-3, 1e-4)
# On the machine of the assets the same formulas may round in another order, as the fused AdamW does
# (5e-6 after ten steps). Recorded runs had AdamW weight by weight.
REORDERED = Tolerance(1e-5, 1e-6)
# Of 20 images or a few hundred codes some lie between two answers: here one more or less may.
COUNTED = Tolerance(0.05, 0.06)
# Metrics that came after the recording: how near predicted codes are, neighbours at step 0, and the
# reconstruction of a constant.
ADDED = (
    *("chance", "rank", "first5", "first5_chance", "wrong_cosine", "random_cosine"),
    "constant",
)
COUNTED_WORDS = (
    *("accuracy", "miou", "top1", "top5", "balanced", "knn"),
    *("usage", "perplexity", "entropy", "dead"),
)
# The biases of the pyramid's deconvolutions are taken away again by the batch norms after them.
# They have no gradient but rounding errors, which Adam scales up to whole steps of 1e-3; the
# running means go with them.
AIMLESS = Tolerance(0.0, 0.05)
AIMLESS_NAMES = re.compile(r"pyramid\.up.*\.bias|.*\.running_mean")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Several threads add up in another order than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_a_half_finished_run_ends_as_recorded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ASSETS / "starts", tmp_path / "starts")
    run = tmp_path / "runs" / name
    shutil.copytree(ASSETS / "runs" / name, run)
    verb = json.loads((run / "environment.json").read_text())["verb"]
    monkeypatch.chdir(tmp_path)
    assert main([verb, "--resume", f"runs/{name}"]) == 0
    assert (run / "report.html").is_file()
    metrics = (run / "metrics.jsonl").read_text()
    assert_as_recorded(name, metrics, described(run / "weights.safetensors"))


@pytest.mark.slow
def test_trainings_begun_anew_end_as_recorded(tmp_path: Path) -> None:
    script = Path(__file__).with_name("record.py")
    source, output = Path(beit.__file__).parents[1], tmp_path / "recorded"
    arguments = [str(script), str(source), str(output), "--only", "trainings"]
    subprocess.run([sys.executable, *arguments], check=True, timeout=600)
    for name in NAMES:
        found = output / "trainings" / name
        metrics, weights = (found / "metrics.jsonl").read_text(), found / "weights.json"
        assert_as_recorded(name, metrics, weights.read_text())


# ── what is compared ────────────────────────────────────────────────────────────────────────────


def assert_as_recorded(name: str, metrics: str, weights: str) -> None:
    folder = ASSETS / "expected" / name
    expected_metrics = (folder / "metrics.jsonl").read_text()
    expected_weights = (folder / "weights.json").read_text()
    found, expected = parsed(metrics), parsed(expected_metrics)
    found = [record for record in found if record["step"]]  # step 0 was not recorded
    rounding = REORDERED if is_machine_of_assets() else ROUNDING
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for one, other in zip(found, expected, strict=True):
        assert_figures(one, other, rounding, f"{name}, step {other['step']}:")
    each = (json.loads(record)["each"] for record in (weights, expected_weights))
    assert_tensors(*each, rounding, name)


def parsed(metrics: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics.splitlines()]


def assert_figures(
    found: dict[str, Any], expected: dict[str, Any], rounding: Tolerance, where: str
) -> None:
    added = [f"val_{name}" for name in ADDED if f"val_{name}" not in expected]
    assert [name for name in found if name not in added] == list(expected), where
    for name, value in expected.items():
        counted = any(word in name for word in COUNTED_WORDS)
        assert_close(found[name], value, COUNTED if counted else rounding, f"{where} {name}")


def assert_tensors(
    found: dict[str, Any], expected: dict[str, Any], rounding: Tolerance, where: str
) -> None:
    added = [f"val_{name}" for name in ADDED if f"val_{name}" not in expected]
    assert [name for name in found if name not in added] == list(expected), where
    for name, numbers in expected.items():
        # The sum of n numbers that are off by a vector of norm e is off by sqrt(n) e at most.
        off = max(rounding.relative * numbers["norm"], rounding.absolute)
        off_sum = off * math.sqrt(math.prod(numbers["shape"]))
        for what, value in numbers.items():
            tolerance = AIMLESS if AIMLESS_NAMES.fullmatch(name) else rounding
            if what == "sum":
                tolerance = tolerance._replace(absolute=max(tolerance.absolute, off_sum))
            assert_close(found[name][what], value, tolerance, f"{where}: {what} of {name}")


def assert_close(found: Any, expected: Any, tolerance: Tolerance, where: str) -> None:
    close = found == expected
    if isinstance(expected, float) and isinstance(found, float):
        close = math.isclose(
            found, expected, rel_tol=tolerance.relative, abs_tol=tolerance.absolute
        )
    assert close, f"{where} is {found}, expected {expected}"


def is_machine_of_assets() -> bool:
    recorded = json.loads((ASSETS / "machine.json").read_text())
    return {name: recorded[name] for name in machine()} == machine()

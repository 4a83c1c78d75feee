import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed import DistError, HashStore

from beit.run import ranks
from beit.run.ranks import _Watch


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[_Watch, _Watch]]:
    """What watches over two processes, in this one."""
    for name, seconds in (("POLL", 0.01), ("ANSWER", 0.1), ("GRACE", 0.3)):
        monkeypatch.setattr(ranks, name, seconds)
    store = HashStore()
    first, second = (_Watch(store, rank, 2, 0.5) for rank in range(2))
    yield first, second
    for watch in (first, second):
        watch.ending.set()
        if watch.is_alive():
            watch.stop()


def test_a_process_that_fails_is_the_cause_of_the_others_errors(
    pair: tuple[_Watch, _Watch],
) -> None:
    first, second = pair
    assert first.reason(KeyError("timed out")) == ""
    assert second.reason(DistError("Connection closed")) == (
        f"{second.own_name} ends because {first.own_name} has failed or hangs"
    )


def test_a_process_that_is_gone_does_not_answer(pair: tuple[_Watch, _Watch]) -> None:
    first, second = pair
    error = RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection reset by peer")
    reason = second.reason(error)
    assert f"ends because {first.own_name} does not answer: it was killed" in reason


def test_an_error_of_the_network_that_no_process_explains_is_ones_own(
    pair: tuple[_Watch, _Watch],
) -> None:
    first, second = pair
    first.ending.set()
    first.start()
    assert second.reason(DistError("no route")) == ""


@pytest.mark.parametrize(
    "error",
    [
        DistError("Timed out waiting 6000ms"),
        RuntimeError("Application timeout caused pair closure"),  # a later collective's
    ],
)
def test_a_process_that_hangs_says_where(
    error: RuntimeError,
    pair: tuple[_Watch, _Watch],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    first, second = pair
    ended = threading.Event()
    monkeypatch.setattr(ranks.os, "_exit", lambda code: ended.set())
    first.start()  # its main thread is this one
    reason = second.reason(error)
    assert ended.wait(5)
    assert reason == f"{second.own_name} ends because {first.own_name} has failed or hangs"
    told = capfd.readouterr().err
    assert told.startswith(f"beit: {first.own_name} is stuck: others waited 0.5 minutes for it")
    assert "test_a_process_that_hangs_says_where" in told


def test_one_process_has_no_name() -> None:
    assert ranks.failed(ValueError("wrong")) is None


# ── real processes ───────────────────────────────────────────────────────────────────────────────

FORKED = Path(__file__).with_name("forked.py")
NAME = r"beit: rank {} of 2 \(.*\)"


def run(tmp_path: Path, trouble: str, rank: int, *options: str, own: bool) -> tuple[str, list[int]]:
    """Run two processes of which one has trouble. Returns: what they write; their exit codes.

    Args:
        own: the first process starts the other, without torchrun
    """
    command = ["pretrain", "--preset", "shapes-tiny", "--data", "shapes://32?size=32"]
    command += ["--target.kind", "pixels", "--optim.batch_size", "16", "--data.num_workers", "0"]
    command += ["--validation", "", "--check.every", "0", "--output", str(tmp_path / "run")]
    command += ["--device.devices", "2" if own else "auto", *options]
    job = {"processes": 2, "command": command, "trouble": trouble, "rank": rank, "step": 2}
    done = subprocess.run(
        [sys.executable, str(FORKED)],
        input=json.dumps([job]),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | ({"JOB": json.dumps(job)} if own else {}),
        timeout=400,
    )
    return done.stderr, [done.returncode] if own else json.loads(done.stdout)[0]


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_other(tmp_path: Path, rank: int, own: bool) -> None:
    told, codes = run(tmp_path, "killed", rank, own=own)
    assert -9 in codes or codes == [1]
    other = 1 - rank
    cause = NAME.format(rank)[6:] + " does not answer: it was killed"
    if own and rank == 0:  # it had what the others ask
        cause = "rank 0 is gone, or its torchrun"
    assert re.search(f"^{NAME.format(other)} ends because {cause}", told, re.MULTILINE), told
    assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_a_process_that_hangs_ends_all(tmp_path: Path, own: bool) -> None:
    told, codes = run(tmp_path, "stuck", 1, "--device.timeout", "2" if own else "0.5", own=own)
    assert 0 not in codes
    stuck = re.search(f"^{NAME.format(1)} is stuck: others waited .* minutes", told, re.MULTILINE)
    line = told.find("time.sleep(600)")
    ends = told.find("ends because rank 1 of 2")
    assert stuck is not None and stuck.start() < line < ends, told


@pytest.mark.slow
def test_a_process_that_fails_is_named_before_its_traceback(tmp_path: Path) -> None:
    told, codes = run(tmp_path, "failed", 1, own=False)
    assert 0 not in codes
    name = re.search(f"^{NAME.format(1)} failed:\nTraceback", told, re.MULTILINE)
    ends = told.find("ends because rank 1 of 2")
    assert name is not None and name.start() < told.find("KeyError: 'a fault") < ends, told
    assert told.count("Traceback") == 1

"""The lock of a run directory, held by real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from beit import cli
from beit.run import launch, lock
from beit.run.directory import RunDirectory, partial_path
from beit.run.lock import hold, releasing, reserve

HOLD = """
import os, sys, time
from pathlib import Path
from beit.run.lock import hold, reserve
{take}(Path(sys.argv[1]))
if {forks} and os.fork() == 0:
    os.write(1, b"forked\\n")
    time.sleep(60)
os.write(1, b"held\\n")
time.sleep(60)
"""


@contextmanager
def holder(path: Path, take: str = "hold", forks: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(take=take, forks=forks), str(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = {process.stdout.readline().strip() for _ in range(1 + forks)}
    assert "held" in lines
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_one_process_at_a_time_and_the_lock_dies_with_it(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(BlockingIOError, match=rf"is in use by process {process.pid} on \S+; "):
            hold(tmp_path)
        (tmp_path / "lock").write_text("process 7 on gpu03\n")
        with pytest.raises(BlockingIOError, match=rf"machine is gone, delete {tmp_path}/lock"):
            hold(tmp_path)
        process.kill()
        process.wait()
        with releasing():
            assert hold(tmp_path) is not None
            assert hold(tmp_path) is None  # this process has it already
        with holder(tmp_path):
            pass


def test_a_worker_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    with holder(tmp_path, forks=True) as process, releasing():
        process.kill()
        process.wait()
        assert hold(tmp_path) is not None


def test_what_a_killed_start_left_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    partial = partial_path(run)
    (partial / "checkpoints").mkdir(parents=True)
    (partial / "config.yaml").write_text("seed: 1")
    with releasing():
        assert reserve(run) is not None
        assert [file.name for file in partial.iterdir()] == ["lock"]
    assert not partial.exists()
    with releasing():
        reserve(run)
        RunDirectory.create(run, {}, {"verb": "pretrain"})
        with pytest.raises(FileExistsError, match="exists and is not overwritten"):
            reserve(run)
    assert {file.name for file in run.parent.iterdir()} == {"a"}
    assert (run / "lock").exists()


def test_of_two_starts_into_one_directory_one_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "a"
    with holder(run, "reserve") as process:
        with pytest.raises(BlockingIOError, match=rf"/a is in use by process {process.pid}"):
            reserve(run)
        assert partial_path(run).exists()


def test_a_directory_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("beit.run.directory.flush_to_disk", killed)
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            RunDirectory.create(tmp_path / "a", {"seed": 1}, {"verb": "pretrain"})
    assert not (tmp_path / "a").exists()
    run = RunDirectory.create(tmp_path / "a", {"seed": 2}, {"verb": "pretrain"})
    assert run.config() == {"seed": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert hold(tmp_path) is None
    assert "cannot be locked ([Errno 38] Function not implemented): see to it" in caplog.text
    assert lock._held == [] or all(held._path.parent != tmp_path for held in lock._held)


def test_a_run_that_is_running_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pretrain_config, interrupt_at
) -> None:
    from beit.pretraining import pretrain
    from beit.pretraining.targets import TargetConfig

    config = pretrain_config(tmp_path / "run", "", target=TargetConfig("pixels"))
    with releasing():
        interrupt_at(pretrain, config, 5)
    with holder(tmp_path / "run") as process:
        before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*.*")}
        capsys.readouterr()
        assert cli.main(["pretrain", "--resume", str(tmp_path / "run")]) == 2
        expected = f"beit: error: {tmp_path}/run is in use by process {process.pid} on "
        assert capsys.readouterr().err.splitlines()[-1].startswith(expected)
        assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*.*")} == before


def test_processes_that_see_different_checkpoints_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(tmp_path / "run", {}, {"verb": "pretrain"})
    (run.checkpoints / "step-000000040.pt").touch()
    fabric = SimpleNamespace(device="cpu")
    for others, named in (
        ([40, 40], ""),
        ([40, 20], "step 20, step 40"),
        ([-1], "no run, step 40"),
    ):
        steps = torch.tensor([40, *others])
        monkeypatch.setattr(launch, "gathered", lambda _, own, steps=steps: steps * (own == 40))
        if not named:
            launch.refuse_late_files(fabric, run)
            continue
        with pytest.raises(ValueError, match=rf"different checkpoints of the run \({named}\)"):
            launch.refuse_late_files(fabric, run)

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from beit.command import presets
from beit.comparison import execution
from beit.comparison.execution import Job, command, environments, run_jobs
from beit.comparison.plan import unfold
from beit.comparison.planned_runs import Chain, planned_chains
from beit.run.preemption import Preempted, stoppable


@pytest.fixture
def chains(plan: Path) -> list[Chain]:
    return planned_chains(unfold(presets.read_yaml(plan), str(plan), {}))


def test_arguments_are_those_of_the_command(chains: list[Chain], tmp_path: Path) -> None:
    run = chains[2].runs["pretrain"]
    tokenizer = run.references["tokenizer"]
    assert command(run, tmp_path, "")[1:] == [
        *("-m", "beit", "pretrain", "--preset=shapes-tiny", "--model.head_layers=0"),
        *("--run.seed=1", f"--tokenizer={tmp_path}/runs/{tokenizer}"),
        f"--output={tmp_path}/runs/{run.name}",
    ]
    launched = command(run, tmp_path, "torchrun --nproc_per_node 2 -m beit")
    assert launched[:5] == ["torchrun", "--nproc_per_node", "2", "-m", "beit"]


def test_interrupted_training_resumes_and_a_probe_restarts(
    chains: list[Chain], tmp_path: Path
) -> None:
    runs = chains[0].runs
    begun, probed = (runs[stage].directory(tmp_path) for stage in ("pretrain", "probe"))
    for directory in (begun, probed):
        directory.mkdir(parents=True)
    command(runs["pretrain"], tmp_path, "")
    assert not begun.exists()  # without a configuration it cannot resume
    begun.mkdir()
    (begun / "config.yaml").write_text("run: {}")
    resumed = command(runs["pretrain"], tmp_path, "")
    assert resumed[1:] == ["-m", "beit", "pretrain", f"--resume={begun}"]
    (probed / "probe.json").write_text("{}")
    assert "--seed=0" in command(runs["probe"], tmp_path, "")
    assert not probed.exists()


def test_runs_share_gpus_or_use_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution.torch.cuda, "device_count", lambda: 0)
    assert environments(1, "") == [{}]
    assert environments(2, "") == [{"OMP_NUM_THREADS": "1"}] * 2
    monkeypatch.setattr(execution.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    gpus = [environment["CUDA_VISIBLE_DEVICES"] for environment in environments(3, "")]
    assert gpus == ["4", "6", "4"]
    assert environments(2, "torchrun") == [{}, {}]


# ── processes: real ones, as small as possible ──────────────────────────────────────────────────


def job(folder: Path, name: str, script: str, *needs: str) -> Job:
    return Job(name, ["sh", "-c", script], needs, folder / f"{name}.log", f"for {name}")


def test_jobs_run_after_what_they_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    jobs = [
        job(tmp_path, "reads", f"cat {file}", "writes", "of another start"),
        job(tmp_path, "writes", f"echo 7 > {file}"),
    ]
    assert run_jobs(jobs, [{}, {}]) == {}
    assert capsys.readouterr().out.splitlines() == [
        "1 of 2 · writes · for writes",
        "writes done after 0.0 minutes",
        "2 of 2 · reads · for reads",
        "reads done after 0.0 minutes",
    ]
    assert (tmp_path / "reads.log").read_text() == "7\n"


def test_a_failure_stops_only_what_needs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        job(tmp_path, "bad", "echo so; echo 'beit: error: no such thing' >&2; exit 3"),
        job(tmp_path, "after", "true", "bad"),
        job(tmp_path, "last", "true", "after"),
        job(tmp_path, "good", "true"),
        job(tmp_path, "shot", "kill -9 $$"),
    ]
    failures = run_jobs(jobs, [{}])
    assert failures == {
        "bad": "exit code 3: no such thing",
        "after": "needs bad, which failed",
        "last": "needs after, which failed",
        "shot": "killed by signal 9: no output",
    }
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if " of 5 " in line] == ["bad", "good", "shot"]
    for name, reason in failures.items():
        assert f"{name} failed ({reason}) after 0.0 minutes" in lines


def test_each_environment_has_one_job_at_a_time(tmp_path: Path) -> None:
    here = f"test ! -e {tmp_path}/$GPU && touch {tmp_path}/$GPU && sleep 0.2 && rm {tmp_path}/$GPU"
    jobs = [job(tmp_path, str(n), f"{here} && echo $GPU") for n in range(4)]
    assert run_jobs(jobs, [{"GPU": "a"}, {"GPU": "b"}]) == {}
    used = sorted((tmp_path / f"{n}.log").read_text().strip() for n in range(4))
    assert (len(used), set(used)) == (4, {"a", "b"})


def test_processes_end_with_an_error(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "first", f"echo $$ > {tmp_path}/pid; exec sleep 60")]
    jobs.append(job(tmp_path / "none", "second", "true"))  # its log cannot be written
    with pytest.raises(FileNotFoundError):
        run_jobs(jobs, [{}, {}])
    pid = tmp_path / "pid"
    assert not pid.exists() or not alive(int(pid.read_text()))


def test_a_signal_lets_trainings_save_before_they_end(tmp_path: Path) -> None:
    script = (
        "trap 'sleep 0.2; touch saved; exit 75' TERM; touch begun; while :; do sleep 0.01; done"
    )
    jobs = [job(tmp_path, "training", f"cd {tmp_path}; {script}")]

    def signalled() -> None:
        until((tmp_path / "begun").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=signalled)
    thread.start()
    with pytest.raises(Preempted, match=r"^stopped by SIGTERM; again$"), stoppable("again"):
        run_jobs(jobs, [{}])
    thread.join()
    assert (tmp_path / "saved").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a parent's death")
def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from beit.comparison.execution import Job, run_jobs;"
        f"run_jobs([Job('j', ['sh', '-c', 'echo $$ > {tmp_path}/pid; exec sleep 60'], (), "
        f"Path('{tmp_path}/log'))], [{{}}])"
    )
    paths = os.pathsep.join(sys.path)
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
    )
    pid = tmp_path / "pid"
    until(lambda: pid.exists() and bool(pid.read_text().strip()))
    child = int(pid.read_text())
    assert alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not alive(child))


def until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

"""Real processes, as small as possible: Python without site packages, or a shell."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from beit.comparison.processes import Job, run_jobs


def job(folder: Path, name: str, script: str, *needs: str) -> Job:
    return Job(name, ["sh", "-c", script], needs, folder / f"{name}.log")


def run(jobs: list[Job], environments: list[dict[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Return the failures, and the callbacks in order."""
    events: list[str] = []
    failures = run_jobs(
        jobs,
        environments,
        lambda job: events.append(f"+{job.name}"),
        lambda job, why: events.append(f"-{job.name}"),
    )
    return failures, events


def test_jobs_run_after_what_they_need(tmp_path: Path) -> None:
    file = tmp_path / "file"
    jobs = [
        job(tmp_path, "reads", f"cat {file}", "writes", "of another start"),
        job(tmp_path, "writes", f"echo 7 > {file}"),
    ]
    failures, events = run(jobs, [{}, {}])
    assert (failures, events) == ({}, ["+writes", "-writes", "+reads", "-reads"])
    assert (tmp_path / "reads.log").read_text() == "7\n"


def test_a_failure_stops_only_what_needs_it(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "bad", "echo so; echo 'beit: error: no such thing' >&2; exit 3"),
        job(tmp_path, "after", "true", "bad"),
        job(tmp_path, "last", "true", "after"),
        job(tmp_path, "good", "true"),
        job(tmp_path, "shot", "kill -9 $$"),
    ]
    failures, events = run(jobs, [{}])
    assert failures == {
        "bad": "exit code 3: no such thing",
        "after": "needs bad, which failed",
        "last": "needs after, which failed",
        "shot": "killed by signal 9: no output",
    }
    assert [word for word in events if word.startswith("+")] == ["+bad", "+good", "+shot"]


def test_each_environment_has_one_job_at_a_time(tmp_path: Path) -> None:
    here = f"test ! -e {tmp_path}/$GPU && touch {tmp_path}/$GPU && sleep 0.2 && rm {tmp_path}/$GPU"
    jobs = [job(tmp_path, str(n), f"{here} && echo $GPU") for n in range(4)]
    assert run(jobs, [{"GPU": "a"}, {"GPU": "b"}])[0] == {}
    used = sorted((tmp_path / f"{n}.log").read_text().strip() for n in range(4))
    assert (len(used), set(used)) == (4, {"a", "b"})


def test_processes_end_with_an_error(tmp_path: Path) -> None:
    def interrupt(_: Job) -> None:
        raise KeyboardInterrupt

    jobs = [job(tmp_path, "first", f"echo $$ > {tmp_path}/pid; exec sleep 60")]
    jobs.append(job(tmp_path, "second", "true"))
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, [{}, {}], lambda job: None if job.name == "first" else interrupt(job), print)
    pid = tmp_path / "pid"
    assert not pid.exists() or not alive(int(pid.read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a parent's death")
def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from beit.comparison.processes import Job, run_jobs;"
        f"run_jobs([Job('j', ['sh', '-c', 'echo $$ > {tmp_path}/pid; exec sleep 60'], (), "
        f"Path('{tmp_path}/log'))], [{{}}], print, print)"
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

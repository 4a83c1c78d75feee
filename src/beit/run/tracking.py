"""Mirror a run to trackers, for `run.track`: TensorBoard, Weights & Biases, MLflow, trackio.

A process of its own, `beit.run.mirror`, reads the logs and the report from the run directory and
passes them on, so that no tracker can stop or slow a training. The callback of lightning-fabric
here starts it and says how far the run is; loops need not know it.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import beit
from beit.run.directory import RunDirectory
from beit.run.journal import Journal
from beit.wording import nearest

# The package to import and the one to install, by tracker.
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "trackio": ("trackio", "trackio"),
}
END_SECONDS = 120  # for what is left to pass on at the end of a run
LOG_FILE = "tracking.log"  # what the trackers print


def tracking(track: str) -> list[Any]:
    """Return the callbacks of a training; none without a tracker.

    Args:
        track: names with commas, `run.track`

    Raises:
        ValueError: a name is unknown, or its package is not installed.
    """
    names = list(dict.fromkeys(name.strip() for name in track.split(",") if name.strip()))
    for name in names:
        if name not in PACKAGES:
            known = ", ".join(PACKAGES) + nearest(name, [*PACKAGES])
            raise ValueError(f"run.track names {name!r}; expected some of {known}")
        package, distribution = PACKAGES[name]
        if find_spec(package) is None:
            raise ValueError(
                f"run.track names {name}, whose package is not installed: pip install "
                f"{distribution} (or beit[track] for all trackers), or leave {name} out"
            )
    return [Tracking(names)] if names else []


class Tracking:
    """Starts the process of the trackers at the first log line, and tells it each logged step."""

    def __init__(self, names: list[str]) -> None:
        self._names, self._failed = names, False
        self._process: subprocess.Popen[bytes] | None = None

    def after_step(self, journal: Journal) -> None:
        """Pass on what was logged in this step."""
        if journal.fabric.is_global_zero and journal.recorded:
            self._tell(journal, f"{journal.step}\n")

    def after_finish(self, journal: Journal) -> None:
        """Pass on the rest and the report, and wait for that."""
        if not journal.fabric.is_global_zero:
            return
        self._tell(journal, "end\n")
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return
        process.stdin.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self._warn(journal, f"they were not done {END_SECONDS} seconds after the run")
        self._show_messages(journal)
        self._check(journal)
        process.stdout.close()

    def _tell(self, journal: Journal, line: str) -> None:
        """Write a line to the process; never wait for it."""
        if self._failed:
            return
        try:
            if self._process is None:
                self._process = self._start(journal.directory)
            self._show_messages(journal)
            assert self._process.stdin is not None
            os.write(self._process.stdin.fileno(), line.encode())
        except BlockingIOError:  # the process is far behind; a later line says it all
            pass
        except BrokenPipeError:  # it has died
            if self._process is not None:
                self._process.wait()
                self._check(journal)
        except OSError as error:
            self._warn(journal, str(error))

    def _start(self, directory: RunDirectory) -> "subprocess.Popen[bytes]":
        """Start the process; writing to it and reading from it never waits."""
        path = [str(Path(beit.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
        command = [sys.executable, "-P", "-m", "beit.run.mirror", str(directory.path)]
        with (directory.path / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                [*command, *self._names],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        return process

    def _show_messages(self, journal: Journal) -> None:
        """Show the lines that the process has written for the user."""
        assert self._process is not None and self._process.stdout is not None
        try:
            lines = os.read(self._process.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return
        for line in lines.decode(errors="replace").splitlines():
            journal.message(line)

    def _check(self, journal: Journal) -> None:
        assert self._process is not None
        if self._process.returncode:
            self._warn(journal, f"their process ended with exit code {self._process.returncode}")

    def _warn(self, journal: Journal, reason: str) -> None:
        """Say once that there will be no more tracking."""
        if not self._failed:
            journal.message(
                f"warning: {', '.join(self._names)} left out from now on: {reason}; "
                f"see {journal.directory.path / LOG_FILE}"
            )
        self._failed = True

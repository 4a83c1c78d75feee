"""Runs opened again: to resume them, or to draw their report."""

from pathlib import Path
from typing import Any, Protocol

from beit.run.directory import RunDirectory
from beit.run.journal import Result
from beit.run.settings import from_plain


class Training(Protocol):
    """A module that trains: its verb, the class of its settings, its `run`, and its report."""

    VERB: str
    Config: type

    def run(self, config: Any, directory: RunDirectory | None = None) -> Result: ...

    def redraw(self, config: Any, directory: RunDirectory) -> list[Any]: ...


def opened(training: Training, path: str | Path) -> tuple[Any, RunDirectory]:
    """Open the run in a directory. Returns: its settings, of the training's Config; its directory.

    Raises:
        FileNotFoundError, ValueError: the directory is none, or of another verb or kind.
    """
    directory = RunDirectory.open(path, training.VERB)
    config = from_plain(training.Config, directory.config(), str(directory.config_file))
    return config, directory


def resume(training: Training, path: str | Path) -> Result:
    """Resume the run in a directory from its last checkpoint."""
    return training.run(*opened(training, path))


def redraw(training: Training, path: str | Path) -> list[Any]:
    """Draw report.html of a finished run again, from its directory. Returns: its sections.

    The settings, the log and the weights come from the directory, images from where the settings
    say.
    """
    return training.redraw(*opened(training, path))

"""Open an existing run, to resume it or to draw its report again."""

from pathlib import Path
from typing import Any, Protocol

from beit.run.changes import check_settings
from beit.run.directory import RunDirectory
from beit.run.found import with_found_paths
from beit.run.journal import Result
from beit.run.settings import from_plain


class Training(Protocol):
    """A training module: its verb, Config, `run`, and `redraw` of its report."""

    VERB: str
    Config: type

    def run(
        self, config: Any, directory: RunDirectory | None = None, changed_ok: bool = False
    ) -> Result: ...

    def redraw(self, config: Any, directory: RunDirectory) -> list[Any]: ...


def open_run(training: Training, path: str | Path) -> tuple[Any, RunDirectory]:
    """Open a run directory. Returns: its settings, as the training's Config; the directory.

    Raises:
        FileNotFoundError, ValueError: it is not a run directory, or of another verb or kind.
    """
    directory = RunDirectory.open(path, training.VERB)
    settings = with_found_paths(directory, directory.config())
    config = from_plain(training.Config, settings, str(directory.config_file))
    return config, directory


def to_resume(
    training: Training, path: str | Path, changed_ok: bool = False
) -> tuple[Any, RunDirectory]:
    """Open a run whose settings are those that its checkpoints were trained with.

    With `changed_ok` files may have other places. Returns: as `open_run`.
    """
    config, directory = open_run(training, path)
    check_settings(training.Config, directory, changed_ok)
    return config, directory


def resume(training: Training, path: str | Path, changed_ok: bool = False) -> Result:
    """Resume a run from its last checkpoint; if its images have changed, only with `changed_ok`."""
    return training.run(*to_resume(training, path, changed_ok), changed_ok)


def redraw(training: Training, path: str | Path) -> list[Any]:
    """Draw report.html of a finished run again. Returns: its sections.

    Settings, log and weights are read from the directory, images from the paths in the settings.
    """
    return training.redraw(*open_run(training, path))

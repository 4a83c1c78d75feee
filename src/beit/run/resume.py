"""Open an existing run, to resume it or to draw its report again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from beit.data.own_code import refuse_unnamed
from beit.run.changes import check_settings
from beit.run.directory import RunDirectory
from beit.run.extension import ExtendedRun
from beit.run.found import with_found_paths
from beit.run.journal import Result
from beit.run.settings import flat, from_plain


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
    try:
        return from_plain(training.Config, settings, str(directory.config_file)), directory
    except (ValueError, ArithmeticError) as error:
        if str(directory.config_file) in str(error):
            raise
        raise ValueError(f"{directory.config_file}: {error}") from error


def to_resume(
    training: Training,
    path: str | Path,
    changed_ok: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> tuple[Any, RunDirectory]:
    """Open a run whose settings are those that its checkpoints were trained with.

    Args:
        changed_ok: files may have other places
        changes: settings that change now, by dotted name

    Returns: as `open_run`

    Raises:
        ValueError: its settings were changed elsewhere, one of `changes` cannot be, or they name
            code that the user does not.
    """
    config, directory = open_run(training, path)
    refuse_unnamed(map(str, flat(directory.config()).values()))  # before anything is written
    check_settings(training.Config, directory, changed_ok, intended=changes or ())
    if not changes:
        return config, directory
    extended, name = ExtendedRun(directory.path, changes), str(directory.config_file)
    new = from_plain(training.Config, with_found_paths(directory, extended.settings), name)
    extended.check(from_plain(training.Config, extended.trained, name), new)
    return new, extended


def resume(
    training: Training,
    path: str | Path,
    changed_ok: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> Result:
    """Resume a run from its last checkpoint; if its images have changed, only with `changed_ok`."""
    return training.run(*to_resume(training, path, changed_ok, changes), changed_ok)


def redraw(training: Training, path: str | Path) -> list[Any]:
    """Draw report.html of a finished run again. Returns: its sections.

    Settings, log and weights are read from the directory, images from the paths in the settings.
    """
    return training.redraw(*open_run(training, path))

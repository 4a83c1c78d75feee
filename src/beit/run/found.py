"""Paths in a run's settings, found again from any folder: they are relative to where it began."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit.run.directory import RunDirectory

logger = logging.getLogger(__name__)

# Settings that may be paths; of data strings the path is followed by ?options or [a part].
PATHS = (
    *("tokenizer", "init", "classes", "init_classes"),
    *("data.train", "data.validation", "data.maps", "data.validation_maps", "data.classes"),
    *("check.train", "check.test", "target.source", "teacher.source"),
)


def found(run: RunDirectory, name: str) -> str:
    """Return a path of a run's settings as it is from here; unchanged if it cannot be found.

    It is looked for from where the run began, which its `run.output` says, from here, and from the
    run directory.
    """
    path = re.split(r"[?\[]", name)[0]
    if not path or "://" in name or os.path.isabs(path):
        return name
    settings = run.config().get("run")
    named = settings.get("output") if isinstance(settings, dict) else None
    output = Path(named if isinstance(named, str) and named else ".")
    here, folders = run.path.absolute(), [Path()]
    if not output.is_absolute() and here.parts[-len(output.parts) :] == output.parts:
        folders.insert(0, Path(*here.parts[: -len(output.parts)]))
    for folder in (*folders, run.path):
        if os.path.exists(folder / path):  # of a name that is too long, no error
            return name if folder.absolute() == Path.cwd() else str(folder / name)
    return name


def with_found_paths(run: RunDirectory, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings with all of `PATHS` as they are from here; log those that moved."""
    settings = dict(settings)
    for setting in PATHS:
        group, _, field = setting.rpartition(".")
        values: Any = settings.get(group) if group else settings
        name = values.get(field) if isinstance(values, dict) else None
        if not isinstance(name, str) or (path := found(run, name)) == name:
            continue
        logger.info("%s: %s %s is %s from here", run.path, setting, name, path)
        changed = {**values, field: path}
        settings = {**settings, group: changed} if group else changed
    return settings

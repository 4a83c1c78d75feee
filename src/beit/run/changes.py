"""What was changed between stop and resume and leads to other weights: settings, and a teacher.

A run's environment.json keeps the settings that its checkpoints were trained with, beside its
config.yaml, which people edit, and a digest of the network that the run learns from.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from beit.files import write_text
from beit.run.directory import RunDirectory
from beit.run.found import PATHS
from beit.run.settings import flat, from_plain
from beit.wording import some

logger = logging.getLogger(__name__)

# Settings, or groups of them, that no weight depends on.
FREE = (
    *("run.output", "run.log_every", "run.checkpoint_every", "run.keep_last", "run.keep_every"),
    *("run.save_async", "run.stop_after", "run.max_skipped", "run.track", "run.profile"),
    *("run.budget", "run.fitted_to", "run.chosen", "run.presets", "device.timeout"),
    *("data.num_workers", "data.cache_gigabytes", "data.shrink_cache", "data.shrink_gigabytes"),
    *("data.max_unreadable", "validate_every", "check"),
)
# Of these, sums are taken in another order: weights differ by rounding, and by random draws of a
# micro-batch or a process.
ROUNDING = ("device", "optim.accumulate")
# Places of files: of images only a part or options count here, since `beit.run.images` compares
# their names.
PLACES = (*PATHS, "teacher.cache")


class Change(NamedTuple):
    """A setting by its dotted name, before and now; None where it did not exist."""

    option: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.option}: {shown(self.before)} -> {shown(self.now)}"


def shown(value: Any) -> str:
    """Write a value as the command line takes it."""
    return value if isinstance(value, str) and value else json.dumps(value)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Compare two configurations, nested mappings of plain values."""
    old, new = flat(before), flat(now)
    pairs = {name: (old.get(name), new.get(name)) for name in {**old, **new}}
    return [Change(name, *pair) for name, pair in pairs.items() if pair[0] != pair[1]]


def of(changes: Iterable[Change], names: Iterable[str]) -> list[Change]:
    """Return the changes of settings, or of groups of settings, with these names."""
    groups = tuple(f"{name}." for name in names)
    return [change for change in changes if f"{change.option}.".startswith(groups)]


def weight_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the differences between two configurations that lead to other weights."""
    changes = differences(before, now)
    harmless = {change.option for change in of(changes, (*FREE, *ROUNDING))}
    return [c for c in changes if c.option not in harmless and not _only_moved(c)]


def recorded(directory: RunDirectory) -> dict[str, Any] | None:
    """Read the settings that the checkpoints were trained with; None in runs of older versions."""
    settings = directory.environment().get("settings")
    return settings if isinstance(settings, dict) else None


def check_settings(
    config_class: type,
    directory: RunDirectory,
    changed_ok: bool = False,
    intended: Iterable[str] = (),
) -> None:
    """Compare a run's config.yaml with the settings that its checkpoints were trained with.

    Args:
        config_class: of its training
        changed_ok: other places of files are accepted, as are other images
        intended: settings that are changed on purpose

    Raises:
        ValueError: changes that lead to other weights, each with what it was and is.
    """
    trained = recorded(directory)
    if trained is None:
        return
    before = complete(config_class, trained, f"settings in {directory.environment_file}")
    now = complete(config_class, directory.config(), str(directory.config_file))
    changes = differences(before, now)
    free = of(changes, FREE)
    if rounding := [change for change in of(changes, ROUNDING) if change not in free]:
        text = "%s resumes with %s: weights are the same only to rounding and random draws"
        logger.warning(text, directory.path, some(list(map(str, rounding))))
    changes = weight_changes(before, now)
    places = of(changes, PLACES)
    accepted = {c.option for c in (*of(changes, intended), *(places if changed_ok else ()))}
    if refused := [change for change in changes if change.option not in accepted]:
        verb, file, moved = directory.verb(), directory.config_file, ""
        if set(refused) <= set(places):
            moved = f"; if files were only moved: beit {verb} --resume {directory.path} "
            moved += "--accept_changed_data true"
        raise ValueError(
            f"{file} is not what the checkpoints were trained with: "
            f"{'; '.join(map(str, refused))}. Undo this there, or start a new run with it: "
            f"beit {verb} --config {file} --output NEW{moved}"
        )


def check_teacher(directory: RunDirectory | None, kind: str, source: str, digest: str) -> None:
    """Compare the network that a run learns from with the one that it has learned from so far.

    Args:
        directory: of the run that is resumed; None for a new run
        kind: what the network is, the name of its digest in environment.json
        source: the option that names it
        digest: of its weights, and of the settings beside them

    Raises:
        ValueError: it has others.
    """
    if directory is None:
        return
    if directory.environment().get(kind, digest) != digest:  # not kept by older versions
        raise ValueError(
            f"the {kind} {source} has other weights than when {directory.path} started, or other "
            "settings in the JSON files beside them, so the run would learn something else from "
            "here on; put those files back, or start a new run"
        )


def complete(config_class: type, settings: Any, name: str) -> dict[str, Any]:
    """Return settings with the defaults of those that are not given."""
    config: Any = from_plain(config_class, settings, name)
    return asdict(config)


def keep_settings(directory: RunDirectory) -> None:
    """Record the settings in config.yaml as those of the checkpoints, after `check_settings`."""
    settings = directory.config()
    if recorded(directory) != settings:
        text = json.dumps({**directory.environment(), "settings": settings}, indent=2)
        write_text(directory.environment_file, text + "\n")


def _only_moved(change: Change) -> bool:
    """Whether a data string names another folder or file, with the same part and options."""
    if not change.option.startswith("data.") or change.option not in PATHS:
        return False
    texts = [str(value or "") for value in (change.before, change.now)]
    if not all(texts) or any("://" in text for text in texts):
        return False
    before, now = (text.removeprefix(re.split(r"[?\[]", text)[0]) for text in texts)
    return before == now

"""The lists of a run's images: kept in its directory, compared when the run is resumed.

Order, views and masks of images are functions of their numbers in these lists, so other images
lead to other weights. A list has the names and, for a training with labels, labels and classes; for
one with label maps, also the values of each class in their files. It does not cover pixels: an
image that was replaced under its name is not noticed.
"""

import gzip
import json
import logging
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from beit.files import write_bytes
from beit.run.directory import RunDirectory
from beit.run.journal import Journal
from beit.wording import some, some_names

logger = logging.getLogger(__name__)

# Of kept lists once unpacked: so many bytes, or so many times as many as those of now.
MAX_BYTES, MAX_GROWTH = 1 << 27, 16
MAX_LISTED = 1 << 31  # bytes, where no list of now is known
Sets = Mapping[str, Any]  # by option, such as data.train: a Source, LabelMaps or, if not used, None
Lists = dict[str, dict[str, Any]]  # by option


def check_images(
    directory: RunDirectory | None, sets: Sets, changed_ok: bool, labelled: bool = False
) -> Lists:
    """List the images of a run; compare them with those that a resumed run was started with.

    Args:
        directory: of a resumed run; None for a new one
        changed_ok: do not compare
        labelled: list labels and class names too

    Raises:
        ValueError: images have changed, or the kept lists are damaged.
    """
    lists = _listed(sets, labelled)
    if directory is not None and not directory.images_file.exists():
        text = "%s has no %s; whether its images have changed is not known"
        logger.info(text, directory.path, directory.images_file.name)
    elif directory is not None and not changed_ok and (changed := _changes(directory, lists)):
        raise ValueError(
            f"the images of {directory.path} have changed since the run started: {changed}. Put "
            "them back, or resume with the images as they are now: "
            f"beit {directory.verb()} --resume {directory.path} --accept_changed_data true"
        )
    return lists


def keep_images(journal: Journal, lists: Lists) -> None:
    """Write the lists unless the run has the same; log what has changed."""
    directory = journal.directory
    if changed := _changes(directory, lists):
        journal.log_warning(f"resumed with images that have changed: {changed}")
    if journal.fabric.is_global_zero and (changed or not directory.images_file.exists()):
        write_bytes(directory.images_file, gzip.compress(json.dumps(lists).encode(), mtime=0))


def warn_of_changes(directory: RunDirectory, sets: Sets, labelled: bool = False) -> None:
    """Warn that a report is drawn from other images than those of the run."""
    if changed := _changes(directory, _listed(sets, labelled)):
        text = "%s: figures may differ from the log, since the images have changed: %s"
        logger.warning(text, directory.path, changed)


def _listed(sets: Sets, labelled: bool) -> Lists:
    """List the images, a line each, and the names of the classes."""
    lists = Lists()
    for option, source in sets.items():
        if source is None:
            continue
        lines = [source.name(index) for index in range(len(source))]
        labels = getattr(source, "labels", None)  # images with label maps have none
        if labelled and labels is not None:
            pairs = zip(lines, labels.tolist(), strict=True)
            lines = [f"{name} with label {label}" for name, label in pairs]
        classes = list(source.class_names or ()) if labelled else []
        lists[option] = {"images": "\n".join(lines), "classes": classes}
        if labelled and (of_maps := getattr(source, "classes", None)) is not None:
            lists[option]["values"] = of_maps.in_files()
    return lists


def _changes(directory: RunDirectory, lists: Lists) -> str:
    """Describe how lists differ from the kept ones; empty if they do not, or none were kept."""
    if not directory.images_file.exists():
        return ""
    kept = _kept(directory, most=max(MAX_BYTES, MAX_GROWTH * len(json.dumps(lists))))
    changes = []
    for option, now in lists.items():
        then = kept.get(option, {})
        if not then or now | then != now:  # lists of older versions have no values
            changes.append(f"{option}: {_difference(then, now)}")
    return "; ".join(changes)


def kept_names(directory: RunDirectory, option: str) -> list[str]:
    """Return the lines of a run's list of images; empty if it was not kept."""
    kept = _kept(directory, MAX_LISTED) if directory.images_file.exists() else {}
    return kept[option]["images"].split("\n") if kept.get(option) else []


def _kept(directory: RunDirectory, most: int) -> Lists:
    """Read the kept lists, of at most so many bytes once unpacked; some may be empty."""
    file = directory.images_file
    try:
        with gzip.open(file) as opened:
            text = opened.read(most + 1)
        if len(text) > most:
            raise ValueError(f"more than {most} bytes")
        lists: Lists = json.loads(text)
        for kept in lists.values():
            named = all(_are_texts(kept.get(key, [])) for key in ("classes", "values"))
            if kept and not (named and isinstance(kept.get("images"), str)):
                raise ValueError("it does not hold lists of images")
    except (OSError, EOFError, zlib.error, ValueError, AttributeError, RecursionError) as error:
        advice = "delete it to resume with the images as they are now"
        raise ValueError(f"{file} is damaged ({error}); {advice}") from error
    return lists


def _are_texts(items: Any) -> bool:
    return isinstance(items, list) and all(isinstance(item, str) for item in items)


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    before, after = (Counter(each["images"].split("\n") if each else ()) for each in (then, now))
    parts = [f"{before.total()} images then, {after.total()} now"]
    for images, what in ((before - after, "gone"), (after - before, "new")):
        if images:
            parts.append(f"{images.total()} {what} ({some(list(images))})")
    old, new = then.get("classes", []), now["classes"]
    if old != new:
        parts.append(f"classes {some_names(old)} then, {some_names(new)} now")
    new = now.get("values", [])
    old = then.get("values", new)
    if old != new:
        gone, added = [v for v in old if v not in new], [v for v in new if v not in old]
        parts.append(f"in the maps {some(gone)} then, {some(added)} now")
    return ", ".join(parts if len(parts) > 1 else [*parts, "in another order"])

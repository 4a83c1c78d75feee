"""The classes of a labelled training set and its validation set: listed, checked and named."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from beit.data.sources import Source

logger = logging.getLogger(__name__)

TIMM = "timm:"
_NAMED = 5  # so many classes are named in an error


class Classes(NamedTuple):
    """How many classes there are, and what they are called if the data say so."""

    number: int
    names: tuple[str, ...] | None


class Labelled(NamedTuple):
    """A source with the option that named it and what it said."""

    option: str
    spec: str
    source: Source

    @property
    def where(self) -> str:
        """Say which set this is, for errors."""
        return f"{self.option} {self.spec}"


class RenumberedSource:
    """A source whose classes have the numbers and names of a list."""

    def __init__(self, source: Source, labels: Tensor | None, names: tuple[str, ...]) -> None:
        self._source = source
        self.labels, self.class_names = labels, list(names)

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int) -> Tensor:
        return self._source.image(index)

    def name(self, index: int) -> str:
        return self._source.name(index)


# ── a list of classes ───────────────────────────────────────────────────────────────────────────


def read_classes(spec: str) -> tuple[str, ...]:
    """Read the names of classes, whose order numbers them from 0.

    Args:
        spec: a file with one name a line, that of a class folder (in ImageNet a WordNet id); or
            timm:NAME, a list that timm knows: timm:imagenet-22k has the 21,841 classes of the
            published intermediate fine-tuning, sorted as their folders are

    Raises:
        ValueError: the list is empty, or names a class twice.
    """
    if spec.startswith(TIMM):
        from timm.data.imagenet_info import ImageNetInfo  # slow to import

        try:
            lines = list(ImageNetInfo(spec.removeprefix(TIMM)).label_names())
        except AssertionError as error:
            raise ValueError(
                f"{spec}: timm knows no such list; expected a file, or one such as "
                "timm:imagenet-1k, timm:imagenet-12k, timm:imagenet-21k, timm:imagenet-22k"
            ) from error
    else:
        try:
            lines = Path(spec).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{spec} is no text; expected one class name a line") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{spec}: the list is empty; expected one class name a line")
    seen = set[str]()
    for name in names:
        if name in seen:
            raise ValueError(f"{spec} lists the class {name} twice; each has one number")
        seen.add(name)
    return tuple(names)


def renumbered(part: Labelled, names: tuple[str, ...]) -> Labelled:
    """Give the classes of a set the numbers that they have in a list.

    Labels of a set without class names are taken for numbers in the list already.

    Raises:
        ValueError: the set has classes that the list lacks; they are named.
    """
    source, labels = part.source, part.source.labels
    if labels is not None and source.class_names is not None:
        numbers = {name: number for number, name in enumerate(names)}
        present = set(labels.unique().tolist())
        strange = [
            name
            for label, name in enumerate(source.class_names)
            if label in present and name not in numbers
        ]
        if strange:
            raise ValueError(
                f"{part.where} has {len(strange)} {_plural('class', strange)} that the list of "
                f"{len(names)} lacks: {_some(strange)}; add to the list, or take the images out"
            )
        table = torch.tensor([numbers.get(name, -1) for name in source.class_names])
        labels = torch.where(labels < 0, -1, table[labels])  # -1 stays: without a label
    return part._replace(source=RenumberedSource(source, labels, names))


# ── what fits together ──────────────────────────────────────────────────────────────────────────


def checked_classes(
    train: Labelled, validation: Labelled | None = None, count: int | None = None
) -> Classes:
    """Count and name the classes of a training set.

    Args:
        count: how many there are to be; None counts those of the training set

    Raises:
        ValueError: an image has no label or one out of range; a class folder has no image, unless
            a list numbers the classes; there are fewer than two classes; the validation set has
            other classes, which are named.
    """
    labels = known_labels(train)
    names = train.source.class_names
    _check_folders(train)
    if names is not None and count not in (None, len(names)):
        raise ValueError(f"num_classes is {count}, but {train.where} names {len(names)} classes")
    total = count or (int(labels.max()) + 1 if names is None else len(names))
    check_range(train, labels, total)
    if total < 2:
        raise ValueError(f"{train.where} has one class; a classifier needs at least two")
    if validation is not None:
        _check_folders(validation)
        theirs = validation.source.class_names
        if names is not None and theirs is not None and names != theirs:
            raise ValueError(_difference(train, names, validation, theirs))
        check_range(validation, known_labels(validation), total)
    absent = (torch.bincount(labels, minlength=total) == 0).nonzero().flatten().tolist()
    if absent:
        known = [str(number) if names is None else names[number] for number in absent]
        logger.warning(
            "%s: %d of %d classes have no image: %s", train.where, len(absent), total, _some(known)
        )
    return Classes(total, None if names is None else tuple(names))


def empty_class_folders(spec: str, names: list[str]) -> list[str]:
    """List the sub-folders of a folder of class folders that hold no image; [] for other data."""
    folder = Path(re.sub(r"\[\d*%?:\d*%?\]$", "", spec)).expanduser()
    if not folder.is_dir() or any(folder.glob("*.parquet")):
        return []
    found = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted(name for name in found if not name.startswith(".") and name not in names)


def _check_folders(part: Labelled) -> None:
    names = part.source.class_names
    if names is None or isinstance(part.source, RenumberedSource):
        return
    empty = empty_class_folders(part.spec, names)
    if empty:
        raise ValueError(
            f"{part.where}: no image in the class {_plural('folder', empty)} {_some(empty)}; "
            "add images, or remove what is no class (beit finetune also takes a list of the "
            "classes there are: --classes FILE)"
        )


def known_labels(part: Labelled) -> Tensor:
    """Return the labels of a set, (n,) int64; ValueError if one of them is not known."""
    labels = part.source.labels
    unknown = None if labels is None else (labels < 0).nonzero().flatten()
    if labels is None or unknown is None or len(unknown):
        first = "" if unknown is None else f", the first is {part.source.name(int(unknown[0]))}"
        raise ValueError(
            f"{part.where}: images without a label{first}; the class of every image is needed: "
            "class folders, or a label column in Parquet files"
        )
    return labels


def check_range(part: Labelled, labels: Tensor, count: int) -> None:
    """Raise ValueError if one of the labels of a set, (n,) int64, is not below `count`."""
    place = int(torch.argmax(labels))
    if int(labels[place]) >= count:
        raise ValueError(
            f"{part.where}: {part.source.name(place)} has the label {int(labels[place])}, but "
            f"there are {count} classes; expected 0 to {count - 1}"
        )


def _difference(train: Labelled, names: list[str], validation: Labelled, theirs: list[str]) -> str:
    missing = [name for name in names if name not in theirs]
    strange = [name for name in theirs if name not in names]
    said = []
    if missing:
        said.append(f"only in {train.where}: {_some(missing)}")
    if strange:
        said.append(f"only in {validation.where}: {_some(strange)}")
    differ = "; ".join(said) or f"in their order: {_some(names)} and {_some(theirs)}"
    return (
        f"the classes of {train.option} and {validation.option} differ, {differ}; give both the "
        "same class folders (beit finetune also takes a list that numbers both: --classes FILE)"
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _plural(word: str, items: list[str]) -> str:
    ending = "es" if word.endswith("s") else "s"
    return word if len(items) == 1 else word + ending

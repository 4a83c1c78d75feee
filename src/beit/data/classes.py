"""Class names of labelled sets: read from a list, matched by name and checked."""

import logging
import re
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from beit.data.source import Source
from beit.files import user_path

logger = logging.getLogger(__name__)

TIMM = "timm:"
_NAMED = 5  # classes listed in an error message


class Classes(NamedTuple):
    """Number of classes, and their names if the data have names."""

    number: int
    names: tuple[str, ...] | None


class Labelled(NamedTuple):
    """A source, the option that named it and the option's value."""

    option: str
    spec: str
    source: Source

    @property
    def where(self) -> str:
        """The set in error messages."""
        return f"{self.option} {self.spec}"


class RenumberedSource:
    """A source with the class numbers and names of a list."""

    def __init__(self, source: Source, labels: Tensor | None, names: tuple[str, ...]) -> None:
        self._source, self.labels, self.class_names = source, labels, list(names)
        self.why_unlabelled = source.why_unlabelled

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int) -> Tensor:
        return self._source.image(index)

    def name(self, index: int) -> str:
        return self._source.name(index)


def read_classes(spec: str) -> tuple[str, ...]:
    """Read a list of class names; their order gives the class numbers, from 0.

    `spec` is a file with one name of a class folder a line (for ImageNet, WordNet ids), or
    timm:NAME, a list known to timm: timm:imagenet-22k has the 21,841 classes of the published
    intermediate fine-tuning, sorted as their folders. A list without names or with a name twice
    raises ValueError.
    """
    expected = "expected one class name a line"
    if spec.startswith(TIMM):
        from timm.data.imagenet_info import ImageNetInfo  # slow to import

        try:
            lines = list(ImageNetInfo(spec.removeprefix(TIMM)).label_names())
        except AssertionError as error:
            raise ValueError(
                f"{spec}: timm has no such list; expected a file, or a list such as "
                "timm:imagenet-1k, timm:imagenet-12k, timm:imagenet-21k, timm:imagenet-22k"
            ) from error
    else:
        try:
            lines = user_path(spec).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{spec} is not a text file; {expected}") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{spec}: the list is empty; {expected}")
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{spec} lists the class {name} twice; each class needs one number")
    return tuple(names)


def renumbered(part: Labelled, names: tuple[str, ...]) -> Labelled:
    """Number the classes of a set as in a list; labels without class names are such numbers.

    Raises ValueError if the set has images of classes that are not in the list.
    """
    source, labels = part.source, part.source.labels
    if labels is not None and source.class_names is not None:
        numbers = {name: number for number, name in enumerate(names)}
        present = [source.class_names[label] for label in labels.unique().tolist() if label >= 0]
        unknown = [name for name in present if name not in numbers]
        if unknown:
            raise ValueError(
                f"{part.where} has {len(unknown)} {_plural('class', unknown)} that the list of "
                f"{len(names)} lacks: {_some(unknown)}; add them to the list, or remove the images"
            )
        table = torch.tensor([numbers.get(name, -1) for name in source.class_names])
        labels = torch.where(labels < 0, -1, table[labels])  # -1: no label
    return part._replace(source=RenumberedSource(source, labels, names))


def checked_classes(
    train: Labelled, validation: Labelled | None = None, count: int | None = None
) -> Classes:
    """Return the number and names of the classes of a training set.

    Raises ValueError if an image has no label or one out of range, a class folder has no image
    (unless a list gives the classes), there are fewer than two classes or not the expected `count`,
    or the classes of the validation set differ.
    """
    labels, names = known_labels(train), train.source.class_names
    _check_folders(train)
    if names is not None and count not in (None, len(names)):
        raise ValueError(f"num_classes is {count}, but {train.where} names {len(names)} classes")
    total = count or (int(labels.max()) + 1 if names is None else len(names))
    check_range(train, labels, total)
    if total < 2:
        raise ValueError(f"{train.where} has one class; a classifier needs at least two")
    if validation is not None:
        _check_folders(validation)
        others = validation.source.class_names
        if names is not None and others is not None and names != others:
            raise ValueError(_difference(train, names, validation, others))
        check_range(validation, known_labels(validation), total)
    numbers = (torch.bincount(labels, minlength=total) == 0).nonzero().flatten().tolist()
    if numbers:
        empty = _some([str(number) if names is None else names[number] for number in numbers])
        text = "%s: %d of %d classes have no image: %s"
        logger.warning(text, train.where, len(numbers), total, empty)
    return Classes(total, None if names is None else tuple(names))


def _check_folders(part: Labelled) -> None:
    """Raise ValueError if the set is a folder of class folders and one of them has no image."""
    names = part.source.class_names
    if names is None or isinstance(part.source, RenumberedSource):
        return
    folder = user_path(re.sub(r"\[\d*%?:\d*%?\]$", "", part.spec))
    if not folder.is_dir() or any(folder.glob("*.parquet")):
        return
    folders = sorted(entry.name for entry in folder.glob("[!.]*") if entry.is_dir())
    empty = [name for name in folders if name not in names]
    if empty:
        raise ValueError(
            f"{part.where}: no image in the class {_plural('folder', empty)} {_some(empty)}; "
            "add images, or remove folders that are not classes (beit finetune also takes a list "
            "of the classes: --classes FILE)"
        )


def known_labels(part: Labelled) -> Tensor:
    """Return the labels of a set (n,) int64; ValueError if an image has none."""
    labels = part.source.labels
    unknown = None if labels is None else (labels < 0).nonzero().flatten()
    if labels is None or unknown is None or len(unknown):
        first = "" if unknown is None else f", the first is {part.source.name(int(unknown[0]))}"
        raise ValueError(
            f"{part.where}: images without a label{first}; the class of every image is needed: "
            "use class folders, or a label column in Parquet files"
        )
    return labels


def check_range(part: Labelled, labels: Tensor, count: int) -> None:
    """Raise ValueError if a label of a set (n,) int64 is `count` or more."""
    place = int(torch.argmax(labels))
    if int(labels[place]) >= count:
        raise ValueError(
            f"{part.where}: {part.source.name(place)} has the label {int(labels[place])}, but "
            f"there are {count} classes; expected 0 to {count - 1}"
        )


def _difference(train: Labelled, names: list[str], validation: Labelled, others: list[str]) -> str:
    sets = ((train, names, others), (validation, others, names))
    only = [(part, [name for name in own if name not in other]) for part, own, other in sets]
    parts = [f"only in {part.where}: {_some(extra)}" for part, extra in only if extra]
    differences = "; ".join(parts) or f"in their order: {_some(names)} and {_some(others)}"
    return (
        f"the classes of {train.option} and {validation.option} differ, {differences}; give both "
        "the same class folders (beit finetune also takes one list for both: --classes FILE)"
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _plural(word: str, items: list[str]) -> str:
    return word if len(items) == 1 else f"{word}{'es' if word.endswith('s') else 's'}"

"""Class names of labelled sets: read from a list, matched by name and checked."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from beit.data.class_names import MEND_ALIKE, alike, check_names, match_classes, spelled
from beit.data.folders.folder import class_folders
from beit.data.folders.listing import warn_once
from beit.data.source import Source, file_of
from beit.data.spec import split_part, split_query
from beit.files import user_path
from beit.wording import nearest, nearest_name, plural, some, some_names

logger = logging.getLogger(__name__)

TIMM = "timm:"
# More classes than the largest labelled sets have, with images of few, are numbered by mistake.
_MANY, _SHARE = 100_000, 0.01
_SHOWN, _LIKELY = 5, 0.85  # names in a message; the likeness of a mistake in spelling


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
        """The set in messages."""
        return f"{self.option} {self.spec}"


class Aligned(NamedTuple):
    """The labels of a set in the numbers of a reference."""

    labels: Tensor  # (n,) int64, -1 without a label
    names: list[str]  # of the reference's classes: its own, else the set's, else numbers
    notes: list[str]  # how classes were matched, for the log


class RenumberedSource:
    """A source with the class numbers and names of another set or of a list."""

    def __init__(self, source: Source, labels: Tensor, names: Sequence[str] | None) -> None:
        self._source, self.labels = source, labels
        self.class_names = None if names is None else list(names)
        self.why_unlabelled = source.why_unlabelled

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int) -> Tensor:
        return self._source.image(index)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def file(self, index: int) -> Path | None:
        return file_of(self._source, index)


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
    for name, count in Counter(map(spelled, names)).items():
        if count > 1:
            raise ValueError(f"{spec} lists the class {name} twice; each class needs one number")
    return tuple(names)


def align(part: Labelled, names: Sequence[str] | None, count: int, where: str) -> Aligned:
    """Number the labels of a set like a reference: another set, a list or a model.

    The reference is `where` in messages, and has `count` classes and maybe their names. They are
    matched as in `match_classes`. The set may lack classes.

    Raises ValueError if the set has images of classes that the reference lacks or a class twice,
    or if the classes cannot be matched.
    """
    labels, own = part.source.labels, part.source.class_names
    assert labels is not None, "the caller checks that there are labels"
    if own is not None:
        check_range(part, labels, len(own))
        if names is None or list(names) != own:
            check_names(own, part.where)
    elif names is None:
        check_range(part, labels, count)
    present, places = labels.unique(return_inverse=True)
    seen = [label for label in present.tolist() if label >= 0]
    own_names = {label: str(label) for label in seen} if own is None else dict(enumerate(own))
    match = match_classes(own_names, own, names, count, part.where, where)
    known = list(map(str, range(count))) if names is None else list(names)
    if unknown := [own_names[label] for label in seen if label not in match.numbers]:
        raise ValueError(_unknown(part.where, unknown, len(seen), known, where, match.note))
    notes = [match.note] if match.note else []
    if absent := [name for label, name in own_names.items() if label not in match.numbers]:
        notes.append(
            f"{part.where} names {len(absent)} {plural('class', absent)} without an image that "
            f"{where} lacks: {some_names(absent)}"
        )
    if names is None and own is not None:
        for label, number in match.numbers.items():
            known[number] = own[label]
    numbers = torch.tensor([match.numbers.get(label, -1) for label in present.tolist()])
    return Aligned(numbers[places], known, notes)


def _unknown(
    here: str, lacking: list[str], present: int, known: list[str], there: str, note: str
) -> str:
    """Say which classes with images the reference lacks, and what it has."""
    name, twice = lacking[0], list(map(spelled, known)).count(spelled(lacking[0])) > 1
    hint = f"; {there} has two classes named {name}" if twice else nearest(name, known)
    what = f"has {len(lacking)} {plural('class', lacking)} that {there} lacks"
    if len(lacking) == present:
        what = f"and {there} have no class in common"
    return (
        f"{here} {what}: {some_names(lacking)}{hint}; the {len(known)} classes of {there} are "
        f"{some_names(known)}{f'; {note}' if note else ''}; make the names agree, or remove the "
        "images"
    )


def renumbered(part: Labelled, classes: Classes, where: str) -> Labelled:
    """Return a labelled set with the class numbers of a reference, and log how they were matched.

    Raises ValueError like `known_labels` and `align`.
    """
    known_labels(part)
    labels, names, notes = align(part, classes.names, classes.number, where)
    for note in notes:
        logger.info("%s", note)
    if note := without_images(part, labels, names):
        logger.warning("%s", note)
    return part._replace(source=RenumberedSource(part.source, labels, classes.names))


def checked_classes(train: Labelled, count: int | None = None) -> Classes:
    """Return the number and names of the classes of a training set.

    Raises ValueError like `known_classes`, and if there are fewer than two classes or a class
    folder has no image (unless a list gives the classes).
    """
    classes = known_classes(train, count)
    if classes.number < 2:
        raise ValueError(f"{train.where} has one class; a classifier needs at least two")
    if isinstance(train.source, RenumberedSource):
        return classes
    if empty := empty_folders(train):
        folders = f"{plural('folder', empty)} {some(list(map(repr, empty)))}"
        raise ValueError(
            f"{train.where}: no image in the class {folders}; add images, or remove folders that "
            "are not classes (beit finetune also takes a list of the classes: --classes FILE)"
        )
    return classes


def known_classes(part: Labelled, count: int | None = None) -> Classes:
    """Return the number and names of the classes of a set, and log those without an image.

    Raises ValueError if an image has no label or one out of range, a class occurs twice or has an
    unusable name, there are not `count` classes, or almost all of very many numbers have no image.
    """
    labels, names = known_labels(part), part.source.class_names
    if names is not None:
        check_names(names, part.where)
        if count not in (None, len(names)):
            raise ValueError(f"num_classes is {count}, but {part.where} names {len(names)} classes")
    total = count or (int(labels.max()) + 1 if names is None else len(names))
    check_range(part, labels, total)
    present = len(labels.unique())
    if names is None and count is None and total > _MANY and present < _SHARE * total:
        raise ValueError(
            f"{part.where}: the largest label is {total - 1}, but only {present} of the {total} "
            "classes from 0 have an image; number the classes without gaps, or give their names "
            "as labels"
        )
    note = without_images(part, labels, names or list(map(str, range(total))))
    if note and not isinstance(part.source, RenumberedSource):
        logger.warning("%s", note)
    return Classes(total, None if names is None else tuple(names))


def without_images(part: Labelled, labels: Tensor, names: Sequence[str]) -> str:
    """Say which classes have no image among labels (n,) int64; nothing if all have one."""
    counts = torch.bincount(labels[labels >= 0], minlength=len(names))
    empty = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
    if not empty:
        return ""
    have, found = "has" if len(empty) == 1 else "have", list[str]()
    for name in empty[:_SHOWN]:
        near = nearest_name(name, [other for other in names if other != name], _LIKELY)
        digits = re.findall(r"\d+", name)  # a class of another number is another one
        hint = f" (did you mean {near}?)" if near and re.findall(r"\d+", near) == digits else ""
        found.append(some_names([name]) + hint)
    listed = some([*found, *empty[_SHOWN:]], _SHOWN)
    return f"{part.where}: {len(empty)} of {len(names)} classes {have} no image: {listed}"


def empty_folders(part: Labelled) -> list[str]:
    """List the class folders without an image; none if the classes are not the set's folders."""
    names, whole = set(part.source.class_names or []), split_part(part.spec)[0]
    if "://" in whole:
        return []
    root, folders = user_path(split_query(whole)[0]), list[str]()
    if names and root.is_dir():
        with suppress(ValueError):  # no image files: a folder of shards or of rows
            folders = class_folders(root, "train")
    return [name for name in folders if name not in names] if names <= set(folders) else []


def known_labels(part: Labelled) -> Tensor:
    """Return the labels of a set (n,) int64; ValueError if an image has none."""
    labels, why = part.source.labels, part.source.why_unlabelled
    warn_of_alike(part.spec, part.source)
    if labels is not None:
        unknown = (labels < 0).nonzero().flatten().tolist()
        if not unknown:
            return labels
        first = part.source.name(unknown[0])
        why = f"{len(unknown)} of {len(labels)}, the first is {first}; label or remove them"
    raise ValueError(
        f"{part.where}: images without a label: {why}; all need a class here, "
        "from class folders or a table of files and classes"
    )


def warn_of_alike(spec: str, source: Source) -> None:
    """Warn once of classes of a set that differ in case, blanks, - and _ only."""
    if found := alike(source.class_names or ()):
        warn_once(f"{split_part(spec)[0]}: {found}; {MEND_ALIKE}")


def check_range(part: Labelled, labels: Tensor, count: int) -> None:
    """Raise ValueError if a label of a set (n,) int64 is `count` or more."""
    place = int(torch.argmax(labels))
    if int(labels[place]) >= count:
        raise ValueError(
            f"{part.where}: {part.source.name(place)} has the label {int(labels[place])}, but "
            f"there are {count} classes; expected 0 to {count - 1}"
        )

"""What is right for each image: classes of a labelled set as columns of a classifier's logits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

import torch
from torch import Tensor

from beit.data.classes import Labelled, check_range, known_labels
from beit.data.sources import Source


class Task(NamedTuple):
    """Images to classify, the logits that compete, and the answers that count as right.

    Attributes:
        source: the images
        columns: (C,) int64, numbers of the logits that are compared; the others are left out
        right: (n, T) int64 in [0, C), places among the columns that are right for each image;
            -1 where an image has fewer than T
        groups: (n,) int64, the class of each image, for figures by class: the right column, or a
            class that has several columns; None where images have several classes
        names: of these classes; of the columns where there are no groups
        notes: what a reader of the figures should know
        border: pixels to be cut off each side of an image
    """

    source: Source
    columns: Tensor
    right: Tensor
    groups: Tensor | None
    names: list[str]
    notes: list[str]
    border: int = 0

    def fingerprint(self) -> str:
        """Tell the images, by their names, and what is right for them, in 16 digits."""
        digest = hashlib.blake2b(digest_size=8)
        for index in range(len(self.source)):
            digest.update(self.source.name(index).encode("utf-8", "surrogateescape") + b"\0")
        digest.update(f"{len(self.columns)} {self.right.tolist()}".encode())
        return digest.hexdigest()


def plain_task(
    spec: str,
    source: Source,
    num_classes: int,
    class_names: Sequence[str] | None,
    present_only: bool = False,
) -> Task:
    """Match the classes of any labelled source with those of a classifier.

    By name where both know the names, in any order and with some of the classes missing from the
    data; else by number.

    Args:
        spec: what the source was opened from, for errors
        num_classes: of the classifier
        class_names: of the classifier, if it knows them
        present_only: compare the logits of those classes only that images have

    Raises:
        ValueError: an image has no label or one out of range; a class has a name that the
            classifier does not know; class folders cannot be numbered as the classifier's.
    """
    data = Labelled("data", spec, source)
    labels = known_labels(data)
    names = source.class_names
    notes: list[str] = []
    if names is None:
        check_range(data, labels, num_classes)
        places = labels
    else:
        if class_names is None:
            numbers = _by_order(spec, names, num_classes)
            notes.append(
                "the classifier does not know the names of its classes: those of the data are "
                "numbered in the order of their names"
            )
        else:
            numbers = _by_name(spec, names, class_names)
        places = torch.tensor(numbers)[labels]
    compared, present = torch.arange(num_classes), places.unique()
    if present_only:
        compared, places = present, torch.searchsorted(present, places)
    if len(present) < num_classes:
        which = "only their logits are" if present_only else f"all {num_classes} logits are"
        notes.append(f"the images have {len(present)} of {num_classes} classes; {which} compared")
    known = class_names or names or list(map(str, range(num_classes)))
    called = [known[number] for number in compared.tolist()]
    return Task(source, compared, places[:, None], places, called, notes)


def nearest(name: str, known: Sequence[str]) -> str:
    """Suggest the known name that is most like an unknown one: ; did you mean X?"""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Put rows of different lengths into one tensor, (n, longest) int64, filled up with -1."""
    longest = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[-1] * (longest - len(row))] for row in rows])


def _by_name(spec: str, names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Find the number that the classifier gives each class of the data."""
    if list(names) == list(class_names):
        return list(range(len(names)))
    places = {name: place for place, name in enumerate(class_names)}
    twice = [name for name, count in Counter([*class_names]).items() if count > 1 and name in names]
    if twice:
        raise ValueError(
            f"data {spec}: the classifier has two classes named {twice[0]}, so that the data's "
            "cannot be matched by name; give data with the classifier's classes in their order"
        )
    for name in names:
        if name not in places:
            raise ValueError(
                f"data {spec}: the classifier has no class {name}{nearest(name, class_names)} "
                f"Its {len(class_names)} classes begin with {', '.join(class_names[:3])}"
            )
    return [places[name] for name in names]


def _by_order(spec: str, names: Sequence[str], num_classes: int) -> list[int]:
    if len(names) != num_classes:
        raise ValueError(
            f"data {spec}: there are {len(names)} classes for the classifier's {num_classes}, and "
            "it does not know their names, so they cannot be matched; give data of all its "
            "classes, or say which set this is (--dataset imagenet, ...)"
        )
    return list(range(num_classes))

"""The evaluation task: images, the logits that are compared, and the target columns among them."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from beit.data.classes import Labelled, check_range, known_labels
from beit.data.source import Source


class Task(NamedTuple):
    """Images to classify, the logits that are compared, and the correct answers.

    An image with fewer than T correct columns has -1 for the others. `labels`, for metrics by
    class, are the target column or a class with several columns; None if an image may have several
    classes.
    """

    source: Source
    columns: Tensor  # (C,) int64, the logits that are compared; all others are ignored
    targets: Tensor  # (n, T) int64 in [0, C), the columns that are correct for each image, or -1
    labels: Tensor | None  # (n,) int64
    class_names: list[str]  # of the labels; of the columns if there are no labels
    notes: list[str]  # remarks for the reader of the metrics
    border: int = 0  # pixels to cut off each side of an image

    def fingerprint(self) -> str:
        """Hash the names of the images and their targets: 16 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=8)
        for index in range(len(self.source)):
            digest.update(self.source.name(index).encode("utf-8", "surrogateescape") + b"\0")
        digest.update(f"{len(self.columns)} {self.targets.tolist()}".encode())
        return digest.hexdigest()


def plain_task(
    data: Labelled, num_classes: int, class_names: Sequence[str] | None, present_only: bool = False
) -> Task:
    """Match the classes of any labelled source with those of a classifier.

    By name if both have names; the order may differ, and the data may lack classes. Else by number.
    With `present_only`, only the logits of classes that have images are compared.

    Raises:
        ValueError: an image has no label or one out of range; a class has a name that the
            classifier does not know; class folders cannot be numbered like the classifier's.
    """
    labels, names = known_labels(data), data.source.class_names
    notes: list[str] = []
    if names is None:
        check_range(data, labels, num_classes)
    elif class_names is None:
        if len(names) != num_classes:
            raise ValueError(
                f"{data.where} has {len(names)} classes, the classifier has {num_classes} without "
                "names, so they cannot be matched; give data with all its classes, or name the set "
                "(--dataset imagenet, ...)"
            )
        notes.append(
            "the classifier has no class names: the classes of the data are numbered in the order "
            "of their names"
        )
    else:
        labels = torch.tensor(_by_name(data.where, names, class_names))[labels]
    columns, present = torch.arange(num_classes), labels.unique()
    if present_only:
        columns, labels = present, torch.searchsorted(present, labels)
    if len(present) < num_classes:
        which = "only their logits are" if present_only else f"all {num_classes} logits are"
        notes.append(f"the images have {len(present)} of {num_classes} classes; {which} compared")
    all_names = class_names or names or list(map(str, range(num_classes)))
    column_names = [all_names[number] for number in columns.tolist()]
    return Task(data.source, columns, labels[:, None], labels, column_names, notes)


def nearest(name: str, known: Sequence[str]) -> str:
    """Suggest the known name that is most like an unknown one: `; did you mean X?`, or ``."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Stack rows of different lengths, padded with -1: (n, longest) int64."""
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=-1)


def _by_name(where: str, names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Return the classifier's number of each class of the data."""
    if list(names) == list(class_names):
        return list(range(len(names)))
    numbers = {name: number for number, name in enumerate(class_names)}
    counts = Counter(class_names)
    if twice := [name for name in names if counts[name] > 1]:
        raise ValueError(
            f"{where}: the classifier has two classes named {twice[0]}, so that the data's "
            "cannot be matched by name; give data with the classifier's classes in their order"
        )
    for name in names:
        if name not in numbers:
            raise ValueError(
                f"{where}: the classifier has no class {name}{nearest(name, class_names)} "
                f"Its {len(class_names)} classes begin with {', '.join(class_names[:3])}"
            )
    return [numbers[name] for name in names]

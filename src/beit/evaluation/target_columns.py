"""The evaluation task: images, the logits that are compared, and the target columns among them."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from beit.data.classes import Labelled, align, known_labels, without_images
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

    As `align` says; the data may lack classes. With `present_only`, only the logits of classes that
    have images are compared.

    Raises:
        ValueError: an image has no label or one of a class that the classifier does not have, or
            the classes cannot be matched.
    """
    known_labels(data)
    labels, all_names, notes = align(data, class_names, num_classes, "the classifier")
    if absent := without_images(data, labels, all_names):
        which = "only the logits of the others" if present_only else f"all {num_classes} logits"
        notes.append(f"{absent}; {which} are compared")
    columns, present = torch.arange(num_classes), labels.unique()
    if present_only:
        columns, labels = present, torch.searchsorted(present, labels)
    column_names = [all_names[number] for number in columns.tolist()]
    return Task(data.source, columns, labels[:, None], labels, column_names, notes)


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Stack rows of different lengths, padded with -1: (n, longest) int64."""
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=-1)

"""The contract of a source of images, and parts of a source."""

import json
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

_SHUFFLE_SEED = 2022  # fixed: a part or limit has the same images in every run


class UnreadableImage(ValueError):  # noqa: N818 - reads as the object
    """An image that cannot be decoded: its `name` and the `reason`.

    As a text, "name: reason"; the name is a JSON string if it would be unclear where it ends.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that the error can be pickled
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        unclear = ": " in self.name or self.name.startswith('"')
        name = json.dumps(self.name, ensure_ascii=False) if unclear else self.name
        return f"{name}: {self.reason}"


class Named(Protocol):
    """A list of images; `name(index)` names one to users."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...


class Source(Protocol):
    """Images that any process can read in any order.

    `image(index)` is (c, H, W) uint8, c = 3 unless bands are named (`Reading.channels`), or raises
    UnreadableImage; `name(index)` names it to users.
    `labels` are the classes (n,) int64, -1 where unknown; None without labels, and `why_unlabelled`
    then completes "images without a label: ..." for the user (else it is empty). `class_names` are
    None if unknown.
    """

    def __len__(self) -> int: ...
    def image(self, index: int) -> Tensor: ...
    def name(self, index: int) -> str: ...
    @property
    def labels(self) -> Tensor | None: ...
    @property
    def class_names(self) -> list[str] | None: ...
    @property
    def why_unlabelled(self) -> str: ...


class PartSource:
    """A subset of a source, in the source's order."""

    def __init__(self, source: Source, indices: Tensor) -> None:
        self._source, self._indices = source, indices.sort().values
        self.labels = None if source.labels is None else source.labels[self._indices]
        self.class_names, self.why_unlabelled = source.class_names, source.why_unlabelled

    def __len__(self) -> int:
        return len(self._indices)

    def image(self, index: int) -> Tensor:
        return self._source.image(int(self._indices[index]))

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))


def file_of(source: Named, index: int) -> Path | None:
    """Return the file that contains an image, that of the rows in a table; None for drawn ones."""
    if isinstance(source, PartSource):
        return file_of(source._source, int(source._indices[index]))
    file = getattr(source, "file", None)
    path = None if file is None else file(index)
    return None if path is None else Path(path)


def encoded_of(source: Source, index: int) -> bytes | None:
    """Return the bytes of an image as they are stored; None for drawn ones.

    Raises UnreadableImage if they cannot be read; they need not be an image.
    """
    if isinstance(source, PartSource):
        return encoded_of(source._source, int(source._indices[index]))
    encoded: Callable[[int], bytes] | None = getattr(source, "encoded", None)
    return None if encoded is None else encoded(index)


def shuffled(length: int) -> Tensor:
    """Return the fixed random order of indices from which limits are cut."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(_SHUFFLE_SEED))


def shuffled_by_name(source: Named) -> Tensor:
    """Return the random order of indices from which parts are cut, (n,) int64.

    An image's place among the others depends on its name alone. So each image that is added or
    removed moves at most one other from [:90%] to [90%:] or back: a set that was held out stays so.
    """
    names = (source.name(index).encode(errors="surrogateescape") for index in range(len(source)))
    digests = b"".join(blake2b(name, digest_size=8).digest() for name in names)
    return torch.from_numpy(np.argsort(np.frombuffer(digests, "<u8"), kind="stable"))


def limited(source: Source, limit: int | None) -> Source:
    """Return a fixed random subset of `limit` images, or all if there are no more than that."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 image, got {limit}")
    if limit is None or limit >= len(source):
        return source
    return PartSource(source, shuffled(len(source))[:limit])

"""The images of a table: their names and labels, and how the data are opened."""

import sys
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from beit.data.listed import read_list
from beit.data.sources import Source, limited, open_source

STANDARD_INPUT = ("-", ["-"])  # as data: a list of image files is read there


class NamedImages(Protocol):
    """Names and labels of images, without pixels; every `beit.data.sources.Source` has them."""

    def __len__(self) -> int:
        """Count the images."""

    def name(self, index: int) -> str:
        """Return the image's path or another name of it."""

    @property
    def labels(self) -> Tensor | None:
        """Classes, (n,) int64, -1 where unknown; None without labels."""

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, if known."""


def open_images(data: str | Sequence[str], limit: int | None) -> Source:
    """Open data as `open_source` does; for "-" read a list of files from standard input."""
    if data in STANDARD_INPUT:
        return limited(read_list(sys.stdin.buffer.read(), "standard input"), limit)
    return open_source(data, limit=limit)

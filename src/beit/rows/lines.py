"""Rows of a table as JSON lines: an object an image, those that cannot be read among them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from beit.rows.files import TEXT, Array, Column

Line = dict[str, Any]


class Images(Protocol):
    """What a table has rows of; every `beit.data.sources.Source` is that."""

    def __len__(self) -> int:
        """Count the images."""

    def name(self, index: int) -> str:
        """Say which image this is."""

    @property
    def labels(self) -> Tensor | None:
        """Classes, (n,) int64, -1 where unknown; None without any."""

    @property
    def class_names(self) -> list[str] | None:
        """What the classes are called, if known."""


def json_lines(
    images: Images,
    places: range,
    columns: Sequence[Column],
    content: Mapping[str, Array],
    compose: Callable[[Line], Line] = dict,
) -> Iterator[str]:
    """Write what is known of some images, a line each, in their order.

    Args:
        images: all of them
        places: which ones
        columns: of the values, texts among them
        content: (rows, *shape) by column, those of texts left out; `index` (rows,), the images
            that have a row; `unreadable`, the JSON list of "name: reason" of the others
        compose: makes the object of a line out of a row's `path`, `index`, `label` if there are
            any, and columns. A line of an image without a row has an `error` for the columns.
    """
    rows = {int(index): row for row, index in enumerate(content["index"])}
    lost = json.loads(str(content["unreadable"]))
    labels = images.labels
    values = {column.name: _plain(column, content) for column in columns}
    for index in places:
        name = images.name(index)
        line: Line = {"path": printable(name), "index": index}
        if labels is not None:
            line["label"] = int(labels[index])
        if index in rows:
            row = rows[index]
            line = compose(line | {name: column[row] for name, column in values.items()})
        else:
            reasons = [text for text in lost if text.startswith(f"{name}: ")]
            line["error"] = reasons[0].removeprefix(f"{name}: ") if reasons else "cannot be read"
        yield json.dumps(line, allow_nan=False) + "\n"


def _plain(column: Column, content: Mapping[str, Array]) -> list[Any]:
    """Give a column as lists; a float as the shortest number that rounds to it."""
    if column.dtype == TEXT:
        texts: list[Any] = np.array(column.texts, dtype=object)[content[column.numbers]].tolist()
        return texts
    values = content[column.name]
    if np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.str_).astype(np.float64)
    plain: list[Any] = values.tolist()
    return plain


def printable(name: str) -> str:
    """Spell out bytes of a file name that are no text: neither Parquet nor JSON can hold them."""
    return name.encode(errors="backslashreplace").decode()

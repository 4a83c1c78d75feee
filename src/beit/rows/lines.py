"""Rows of a table as JSON lines: one object per image, unreadable images included."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from beit.data.sources import Source
from beit.rows.files import TEXT, Array, Column

Line = dict[str, Any]


def json_lines(
    images: Source,
    indices: range,
    columns: Sequence[Column],
    content: Mapping[str, Array],
    compose: Callable[[Line], Line] = dict,
) -> Iterator[str]:
    """Write one line for each of some images, in order.

    Args:
        images: all images of the table
        indices: the images to write
        columns: of the values, texts included
        content: (rows, *shape) for each column but the texts; `index` (rows,), the images that
            have a row; `unreadable`, a JSON list of "name: reason" for the others
        compose: makes the object of a line from a row's `path`, `index`, `label` (if the images
            have labels) and columns. The line of an image without a row has `error` instead of the
            columns.
    """
    rows = {int(index): row for row, index in enumerate(content["index"])}
    unreadable = json.loads(str(content["unreadable"]))
    labels = images.labels
    values = {column.name: _plain_values(column, content) for column in columns}
    for index in indices:
        name = images.name(index)
        line: Line = {"path": printable(name), "index": index}
        if labels is not None:
            line["label"] = int(labels[index])
        if index in rows:
            row = rows[index]
            line = compose(line | {name: column[row] for name, column in values.items()})
        else:
            reasons = [text for text in unreadable if text.startswith(f"{name}: ")]
            line["error"] = reasons[0].removeprefix(f"{name}: ") if reasons else "cannot be read"
        yield json.dumps(line, allow_nan=False) + "\n"


def _plain_values(column: Column, content: Mapping[str, Array]) -> list[Any]:
    """Return a column as lists; a float becomes the shortest number that rounds to it."""
    if column.dtype == TEXT:
        texts: list[Any] = np.array(column.texts, dtype=object)[content[column.numbers]].tolist()
        return texts
    values = content[column.name]
    if np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.str_).astype(np.float64)
    plain: list[Any] = values.tolist()
    return plain


def printable(name: str) -> str:
    """Escape the bytes of a file name that are not UTF-8: Parquet and JSON hold text only."""
    return name.encode(errors="backslashreplace").decode()

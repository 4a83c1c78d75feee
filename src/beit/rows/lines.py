"""Rows as JSON lines, one object per image, unreadable images included; and a stream of them."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TextIO

import numpy as np

from beit.data.source import Source, UnreadableImage
from beit.rows.files import TEXT, Array, Column
from beit.rows.part import Part
from beit.wording import amount

Line = dict[str, Any]


def json_lines(
    images: Source,
    indices: range,
    columns: Sequence[Column],
    content: Mapping[str, Array],
    compose: Callable[[Line], Line] = dict,
) -> Iterator[str]:
    """Yield one line for each of the images `indices`, in order.

    Args:
        images: all images of the table
        columns: of the values, texts included
        content: (rows, *shape) for each column but the texts; `index` (rows,), the images that
            have a row; `unreadable`, a JSON list of "name: reason" for the others
        compose: makes the object of a line from a row's `path`, `index`, `label` (if the images
            have labels), `label_name` (if their classes have names) and columns; without a row the
            line has `error` instead of the columns
    """
    rows = {int(index): row for row, index in enumerate(content["index"])}
    unreadable, labels = json.loads(str(content["unreadable"])), images.labels
    names = images.class_names
    values = {column.name: _plain_values(column, content) for column in columns}
    for index in indices:
        name = images.name(index)
        line: Line = {"path": printable(name), "index": index}
        if labels is not None:
            line["label"] = label = int(labels[index])
            if names is not None:
                line["label_name"] = printable(names[label]) if 0 <= label < len(names) else None
        if index in rows:
            row = rows[index]
            line = compose(line | {name: column[row] for name, column in values.items()})
        else:
            start = str(UnreadableImage(name, ""))  # the name, in quotes if it holds ": "
            reasons = [text for text in unreadable if text.startswith(start)]
            line["error"] = reasons[0].removeprefix(start) if reasons else "cannot be read"
        yield json.dumps(line, allow_nan=False) + "\n"


def write_csv(file: TextIO, lines: Iterable[str]) -> None:
    """Write JSON lines of one table as CSV, with a column for each value: `name_1`, `name_2`, ...

    Rows with `error` have no values; the columns are those of the first row that has some.
    """
    rows = ({"error": ""} | dict(_flat(json.loads(line))) for line in lines)
    start = list[Line]()
    for row in rows:
        start.append(row)
        if not row["error"]:
            break
    names = [*(name for name in start[-1] if name != "error"), "error"]
    writer = csv.DictWriter(file, names)
    writer.writeheader()
    writer.writerows(chain(start, rows))


def _flat(value: Any, name: str = "", places: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the single values of a line by name; those in lists with their place, from 1."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, key, places)
    elif isinstance(value, list):
        for place, inner in enumerate(value, 1):
            yield from _flat(inner, name, f"{places}_{place}")
    else:
        yield name + places, value


def _plain_values(column: Column, content: Mapping[str, Array]) -> Any:
    """Return a column as lists; a float becomes the shortest number that rounds to it."""
    if column.dtype == TEXT:
        return np.array(column.texts, dtype=object)[content[column.numbers]].tolist()
    values = content[column.name]
    if np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.str_).astype(np.float64)
    return values.tolist()


def printable(name: str) -> str:
    """Escape the bytes of a file name that are not UTF-8: Parquet and JSON hold text only."""
    return name.encode(errors="backslashreplace").decode()


class LineStream:
    """Writes rows to a stream, with the interface of `beit.rows.table.RowTable`.

    Each part is one batch; nothing is kept to resume from.
    """

    output = None  # no file

    def __init__(
        self,
        stream: TextIO,
        images: Source,
        columns: Sequence[Column],
        batch_size: int,
        compose: Callable[[Line], Line] = dict,
        seen: Callable[[Mapping[str, Array]], None] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.images, self.batch_size = images, batch_size
        self._stream, self._columns, self._compose = stream, tuple(columns), compose
        self._seen = seen
        self._num_rows = 0

    def batches(self, number: int) -> range:
        return range(number, number + 1)

    def indices(self, number: int) -> range:
        return range(len(self.images))[number * self.batch_size :][: self.batch_size]

    def begin(self) -> list[int]:
        return list(range(-(-len(self.images) // self.batch_size)))

    def status(self, missing: Sequence[int]) -> str:
        return amount(len(self.images), "image")

    @contextmanager
    def part(self, number: int) -> Iterator[Part]:
        """Yield a part to fill with its batch; its lines are written when the block ends."""
        part = Part(self._columns, self.images)
        yield part
        content, indices = part.content(), self.indices(number)
        lines = json_lines(self.images, indices, self._columns, content, self._compose)
        self._stream.writelines(lines)
        self._stream.flush()
        if self._seen:
            self._seen(content)
        self._num_rows += len(content["index"])

    def unreadable(self) -> list[str]:
        return []  # no part was computed before

    def merge(self) -> int:
        return self._num_rows

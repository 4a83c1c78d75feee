"""Tables as text: CSV, TSV, JSON lines; and the folder of the files that a table names."""

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from beit.data.folders.listing import say_once
from beit.data.splits import split_word
from beit.data.tabular.labels import plain

ENDINGS = (".csv", ".tsv", ".jsonl")
_SNIFFED = 50  # lines by which the delimiter is found


def read_columns(path: Path) -> tuple[dict[str, Any], list[int]]:
    """Read a table of text: pyarrow arrays by the names of the columns, null where empty.

    Values of several types are text. Also returns the line of each row, counted from 1 with that of
    names. Raises ValueError that names the line that cannot be read.
    """
    import pyarrow

    rows, lines, line = list[dict[str, Any]](), list[int](), 1
    text = _text(path)
    try:
        for end, row in _rows(path, text):
            if row is not None:
                rows.append(row)
                lines.append(line)
            line = end + 1
    except (ValueError, TypeError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path}: cannot read line {line}: {error}") from error
    if not rows:
        raise ValueError(f"{path}: no rows in this table")
    columns = dict[str, Any]()
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError):  # several types, or huge numbers
            known = map(plain, values)
            columns[name] = pyarrow.array([None if v is None else str(v) for v in known])
    return columns, lines


def splits_in(name: str) -> set[str]:
    """Return the words of splits in the name of a table: train for train_labels."""
    return {split_word(word) for word in re.split(r"[\W_\d]+", name)} - {""}


def folder_of(table: Path, first: str) -> Path:
    """Return the folder to which the paths in a table are relative, by its first one.

    That is the folder of the split by which the table is named, the folder of the table, the only
    folder in it that has the file and is not one of another split, or the working directory.
    """
    folder, words = table.parent, splits_in(table.stem)
    with os.scandir(folder) as entries:
        inside = [Path(entry) for entry in entries if entry.is_dir()]
    own = [entry for entry in inside if {split_word(entry.name)} == words]
    others = [entry for entry in inside if not (words and split_word(entry.name))]
    for folders in (own, [folder], [] if own else others):
        having = [entry for entry in folders if os.path.isfile(entry / first)]
        if len(having) == 1:
            return having[0]
    return Path() if os.path.isfile(first) else min(own, default=folder)


def _text(path: Path) -> str:
    """Read a file of text; a BOM tells UTF-16."""
    data = path.read_bytes()
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        advice = "save it as such (in Excel, CSV UTF-8)"
        raise ValueError(f"{path}: the table is not text in UTF-8; {advice}") from error


def _rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Read JSON lines, or values separated by commas, semicolons or tabs.

    Yields the last line of each row, counted from 1, and the row; None for names and empty lines.
    """
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            yield number, dict(json.loads(line)) if line.strip() else None
        return
    delimiter = _delimiter(text.splitlines())
    text = re.sub(rf'" +(?={delimiter}|[\r\n]|\Z)', '"', text)  # spaces behind a quoted value
    lines = io.StringIO(text, newline="")
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    names = list[str]()
    for row in rows:
        if not names:
            names = [name.strip() for name in row]
            if len(names) != 2 or not os.path.isfile(folder_of(path, names[0]) / names[0]):
                if len(set(names)) < len(names):
                    raise ValueError(f"two columns have the same name; it has {', '.join(names)}")
                yield rows.line_num, None
                continue
            say_once(f"{path} has no line of names: its columns are taken as image and label")
            row, names = names, ["image", "label"]
        if row and len(row) != len(names):
            raise ValueError(f"{len(row)} fields, but {len(names)} in the first line")
        yield rows.line_num, dict(zip(names, row, strict=True)) if row else None


def _delimiter(lines: list[str]) -> str:
    """Return the delimiter that gives each of the first lines the same number of fields."""
    for delimiter in ",;\t":
        rows = csv.reader(lines[:_SNIFFED], delimiter=delimiter, skipinitialspace=True)
        widths = {len(row) for row in rows if row}
        if len(widths) == 1 and widths != {1}:
            return delimiter
    return max(",;\t", key=lines[0].count) if lines else ","

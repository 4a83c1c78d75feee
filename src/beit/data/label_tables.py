"""Tables of image files and their classes, as data or beside the images: CSV, TSV, JSON lines."""

import csv
import io
import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from beit.data.class_names import spelled
from beit.data.columns import FILE, content, image_column, label_column
from beit.data.image_files import FileSource
from beit.data.labels import joined
from beit.data.listing import say_once
from beit.data.row_files import open_rows
from beit.data.spec import AS_IT_IS, Reading

ENDINGS = (".csv", ".tsv", ".jsonl")
_METADATA = "metadata"  # the name of such tables in `datasets`
_SNIFFED = 50  # lines by which the delimiter is found


class Table(NamedTuple):
    """Image files as a table names them, with their labels as of a source."""

    files: list[str]
    labels: Tensor | None
    class_names: list[str] | None
    why_unlabelled: str
    label: str | None  # column of labels


def open_table(path: Path, reading: Reading = AS_IT_IS) -> FileSource:
    """Open the image files that a table names, in its order.

    Their paths are relative to the folder of the table; if the first file is not there, to the
    only folder in it that has the file, or to the working directory.

    Raises:
        ValueError: the table cannot be read, or has no column of files.
        FileNotFoundError: files do not exist; the message says how many, and names the first.
    """
    table = _read(path, reading)
    root = _root(path, table.files[0])
    missing = [name for name in table.files if not os.path.isfile(root / name)]
    if missing:
        raise FileNotFoundError(
            f"{path}: {len(missing)} of the {len(table.files)} image files that it names do not "
            f"exist; the first is {missing[0][:80]!r} in {root}; expected paths relative to the "
            "folder of the table, to one folder in it, or to the working directory"
        )
    why = table.why_unlabelled
    labelled = 0 if table.labels is None else int((table.labels >= 0).sum())
    said = why or f"labels of {labelled} from column {table.label!r}"
    say_once(f"{path}: {len(table.files)} images in {root}; {said}")
    return FileSource(root, table.files, reading, table.labels, table.class_names, why)


def labelled_folder(root: Path, source: FileSource, reading: Reading = AS_IT_IS) -> FileSource:
    """Return the images of a folder with the labels of the table beside them, if there is one.

    That is metadata.csv, .jsonl or .parquet, or else the only table that has files and labels of
    these images. It lies in the folder that holds all images, or above it up to `root`. All images
    stay; those that the table does not name have no label. Several class folders count more than
    a table, unless `reading` names a column. Then ValueError is raised if no table has it.
    """
    wanted = reading.label or reading.image
    usable, reasons = list[tuple[Path, Table, list[int]]](), list[str]()
    for path in _tables(root, source):
        try:
            table = _read(path, reading)
        except (ValueError, OSError) as error:
            reasons.append(str(error))
            continue
        rows = _rows(root, source, path, table)
        if table.labels is None:
            reasons.append(table.why_unlabelled)
        elif max(rows) < 0:
            reasons.append(f"{path} names none of the images; its first is {table.files[0][:80]!r}")
        else:
            usable.append((path, table, rows))
    if len(usable) > 1 and usable[0][0].stem != _METADATA:
        several = ", ".join(path.name for path, _, _ in usable)
        usable, reasons = [], [f"several tables have labels ({several}); give one of them as data"]
    if wanted and not usable:
        reasons = reasons or ["there is no table beside the images, such as metadata.csv"]
        raise ValueError(f"{root}?{'label' if reading.label else 'image'}=: {'; '.join(reasons)}")
    if not usable:
        if source.labels is None and reasons:
            source.why_unlabelled = "; ".join(reasons)
        return source
    path, table, rows = usable[0]
    if len(source.class_names or ()) > 1 and not wanted:
        say_once(f"{root}: labels from the class folders, not from {path}")
        return source
    assert table.labels is not None
    source.labels = torch.cat([table.labels, torch.tensor([-1])])[torch.tensor(rows)]
    source.class_names, source.why_unlabelled = table.class_names, ""
    labelled, others = int((source.labels >= 0).sum()), len({*table.files}) - len({*rows} - {-1})
    say_once(
        f"{root}: labels of {labelled} of {len(rows)} images from {path}, column {table.label!r}"
        + (f", which names {others} others" if others else "")
    )
    return source


def _tables(root: Path, source: FileSource) -> list[Path]:
    """List the tables in the lowest folder with any that holds all images; metadata.* first."""
    first, last = (os.path.dirname(source.name(index)) for index in (0, len(source) - 1))
    folder = root / os.path.commonpath([first, last])  # images are sorted
    endings = (*ENDINGS, f"{_METADATA}.parquet")
    while True:
        tables = [path for path in folder.iterdir() if path.name.lower().endswith(endings)]
        if tables or folder == root:
            return sorted(tables, key=lambda path: (path.stem != _METADATA, path.name))
        folder = folder.parent


def _rows(root: Path, source: FileSource, path: Path, table: Table) -> list[int]:
    """Find the row of each image of a folder in a table, -1 if there is none.

    If no path agrees, the table's names are compared with those of the images without their
    folders, unless two images have the same name.
    """

    def key(*parts: str | Path) -> str:
        return spelled(os.path.abspath(os.path.join(*parts)))

    places = {key(path.parent, file): row for row, file in enumerate(table.files)}
    images = [key(root, source.name(index)) for index in range(len(source))]
    bases = list(map(os.path.basename, images))
    if not any(image in places for image in images) and len(set(bases)) == len(bases):
        places, images = {spelled(file): row for row, file in enumerate(table.files)}, bases
    return [places.get(image, -1) for image in images]


def _root(table: Path, first: str) -> Path:
    """Return the folder to which the paths of a table are relative."""
    folder = table.parent
    if os.path.isfile(folder / first):
        return folder
    with os.scandir(folder) as entries:
        inside = [Path(entry) for entry in entries if entry.is_dir()]
    inside = [entry for entry in inside if os.path.isfile(entry / first)]
    if len(inside) == 1:
        return inside[0]
    return Path() if os.path.isfile(first) else folder


def _read(path: Path, reading: Reading) -> Table:
    """Read the columns of files and labels of a table. Raises ValueError if it has no files."""
    columns, declared = _columns(path)
    if not any(map(len, columns.values())):
        raise ValueError(f"{path}: no rows in this table")
    contents = {name: content(values.type) for name, values in columns.items()}
    file = image_column(contents, str(path), reading.image)
    if contents[file] != FILE:
        raise ValueError(f"{path}: column {file!r} holds {contents[file]}; expected {FILE}")
    files = [(value or "").strip() for value in columns[file].to_pylist()]
    if not all(files):
        raise ValueError(f"{path}: row {files.index('') + 1} names no file in column {file!r}")
    if "\\" in files[0] and not os.path.exists(path.parent / files[0]):  # written on Windows
        files = [name.replace("\\", "/") for name in files]
    label, why = label_column(columns, str(path), reading.label, declared)
    labels = names = None
    if label is not None:
        parts = [(columns[label], declared.get(label))]
        labels, names, why = joined(parts, f"column {label!r} of {path}")
    known = dict[str, int]()
    for name, number in zip(files, labels.tolist() if labels is not None else (), strict=False):
        if known.setdefault(name, number) != number:
            labels = names = None
            why = f"{path} has several labels for {name}, the first file that is named twice"
            break
    return Table(files, labels, names, why, label)


def _columns(path: Path) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Read a table: its columns, chunked arrays, and the class names of their numbers."""
    import pyarrow

    if path.suffix.lower() not in ENDINGS:
        file = open_rows(path)
        groups = range(len(file.counts))
        return {name: file.column(groups, name) for name in file.schema.names}, file.class_names
    rows = list[dict[str, Any]]()
    try:
        for row in _rows_of_text(path):
            rows.append(row)
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot read row {len(rows) + 1}: {error}") from error
    columns = dict[str, Any]()
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            array = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError):  # several types, or huge numbers
            array = pyarrow.array([None if value is None else str(value) for value in values])
        columns[name] = pyarrow.chunked_array([array])
    return columns, {}


def _rows_of_text(path: Path) -> Iterator[dict[str, Any]]:
    """Read JSON lines, or values separated by commas, semicolons or tabs; a BOM tells UTF-16."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("the table is not text in UTF-8; save it as such") from error
    if path.suffix.lower() == ".jsonl":
        yield from (dict(json.loads(line)) for line in text.split("\n") if line.strip())
        return
    delimiter, lines = _delimiter(text.splitlines()), io.StringIO(text, newline="")
    rows: Iterator[list[str]] = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    rows = filter(None, rows)
    names = [name.strip() for name in next(rows, [])]
    if len(names) == 2 and os.path.isfile(_root(path, names[0]) / names[0]):
        say_once(f"{path} has no line of names: its columns are taken as image and label")
        rows, names = chain([names], rows), ["image", "label"]
    if len(set(names)) < len(names):
        raise ValueError(f"two columns have the same name; it has {', '.join(names)}")
    for row in rows:
        if len(row) != len(names):
            raise ValueError(f"{len(row)} fields, but {len(names)} in the first line")
        yield dict(zip(names, row, strict=True))


def _delimiter(lines: list[str]) -> str:
    """Return the delimiter that gives each of the first lines the same number of fields."""
    for delimiter in ",;\t":
        rows = csv.reader(lines[:_SNIFFED], delimiter=delimiter, skipinitialspace=True)
        widths = {len(row) for row in rows if row}
        if len(widths) == 1 and widths != {1}:
            return delimiter
    return max(",;\t", key=lines[0].count) if lines else ","

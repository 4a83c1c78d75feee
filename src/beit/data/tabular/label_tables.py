"""Tables of image files and their classes, as data or beside the images: CSV, TSV, JSON lines."""

import os
import re
import reprlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from beit.data.class_names import spelled
from beit.data.folders.image_files import FileSource
from beit.data.folders.listing import say_once
from beit.data.source import PartSource, Source
from beit.data.spec import AS_IT_IS, Reading
from beit.data.splits import Split, split_word
from beit.data.tabular.columns import FILE, content, image_column, label_column
from beit.data.tabular.labels import joined
from beit.data.tabular.row_files import open_rows
from beit.data.tabular.row_files import place as row_place
from beit.data.tabular.split_columns import rows_of_split
from beit.data.tabular.text_tables import ENDINGS, folder_of, read_columns, splits_in
from beit.wording import amount, first_missing, near_path, some

_METADATA = "metadata"  # the name of such tables in `datasets`
_quoted = reprlib.Repr()  # of names of files in messages
_quoted.maxstring = 120


class Table(NamedTuple):
    """Image files as a table names them, with their labels as of a source."""

    files: list[str]
    labels: Tensor | None
    class_names: list[str] | None
    why_unlabelled: str
    label: str | None  # column of labels
    rows_of: Callable[[Split | None], Tensor | None]  # numbers of the rows of a split
    place: Callable[[int], str]  # of a row, in messages


_Found = tuple[Path, Table, list[int]]  # a table, and the row of each image of a folder


def open_table(path: Path, reading: Reading = AS_IT_IS, split: Split | None = None) -> FileSource:
    """Open the image files that a table names, in its order.

    Their paths are relative to the folder that `folder_of` finds by the first one. If a column
    names the splits, the rows for `split` are taken; for None all are.

    Raises:
        ValueError: the table cannot be read, or has no column of files, or no row for `split`, or
            several folders beside it have its first file.
        FileNotFoundError: files do not exist; the message says how many, and names the first.
    """
    table = _read(path, reading)
    if reading.label and table.label is None:
        raise ValueError(table.why_unlabelled)
    files, labels, rows = table.files, table.labels, table.rows_of(split)
    if rows is not None:
        files = [files[row] for row in rows.tolist()]
        labels = None if labels is None else labels[rows]
    root = folder_of(path, files[0])
    missing = [place for place, name in enumerate(files) if not os.path.isfile(root / name)]
    if missing:
        if not missing[0]:
            _refuse_ambiguous(path, files[0])
        row = missing[0] if rows is None else int(rows[missing[0]])
        name, absent = files[missing[0]], "does not" if len(missing) == 1 else "do not"
        raise FileNotFoundError(
            f"{path}: {len(missing)} of the {len(files)} image files that it names {absent} exist; "
            f"the first is {_quoted.repr(name)} in {root}, {table.place(row)}; expected "
            "paths relative to the folder of the table, to one folder in it, or to the working "
            "directory"
            f"{_suggestion(root / name)}"
        )
    why = table.why_unlabelled
    labelled = 0 if labels is None else int((labels >= 0).sum())
    said = why or f"labels of {labelled} from column {table.label!r}"
    repeated = len(files) - len({*files})
    count = f"{len(files)} images" + f", {repeated} of them repeated" * bool(repeated)
    say_once(f"{path}: {count} in {root}; {said}")
    return FileSource(root, files, reading, labels, table.class_names, why)


def _suggestion(missing: Path) -> str:
    """Say what a missing file or its folder may be called, or that there is no such folder."""
    folder, near = first_missing(missing), near_path(missing)
    if folder != missing:
        return near or f"; there is no folder {folder}"
    # A file with another number is another one.
    return near if re.findall(r"\d+", near) == re.findall(r"\d+", str(missing)) else ""


def labelled_folder(
    root: Path,
    source: FileSource,
    reading: Reading = AS_IT_IS,
    split: Split | None = None,
    others: Sequence[Path] = (),
) -> Source:
    """Return the images of a folder with the labels of the table beside them, if there is one.

    That is metadata.csv, .jsonl or .parquet, or else the only table that has files and labels of
    these images. It lies in the folder that holds all images, or above it up to `root`, or is one
    of the `others`. Images that the table does not name stay, without a label. Several class
    folders count more than a table, unless `reading` names a column. If a table names the splits
    of images, those of other splits than that for `split` are left out.

    Raises:
        ValueError: no table has the column that `reading` names, or no image is of the split
    """
    usable, reasons = list[_Found](), list[str]()
    tables = _tables(root, source)
    for path in [*tables, *(path for path in others if path not in tables)]:
        try:
            table = _read(path, reading)
        except (ValueError, OSError) as error:
            reasons.append(str(error))
            continue
        rows = _rows(root, source, path, table)
        if max(rows) < 0:
            reasons.append(
                f"{path} names none of the images; its first is {_quoted.repr(table.files[0])}; "
                "expected paths, or names without folders if it is named as the split it is for"
            )
            if path in others:
                say_once(f"{root}: not read: {reasons[-1]}")
        else:
            usable.append((path, table, rows))
    reasons += [table.why_unlabelled for _, table, _ in usable if table.labels is None]
    left = _of_split(root, usable, split)
    _label(root, source, reading, usable, reasons)
    return source if left is None else PartSource(source, left)


def _label(
    root: Path, source: FileSource, reading: Reading, usable: list[_Found], reasons: list[str]
) -> None:
    """Give a folder the labels of one of the tables that name its images, or say why not."""
    asked = reading.label or reading.image
    usable = [found for found in usable if found[1].labels is not None]
    if len(usable) > 1 and usable[0][0].stem != _METADATA:
        several = ", ".join(path.name for path, _, _ in usable)
        usable, reasons = [], [f"several tables have labels ({several}); give one of them as data"]
    if asked and not usable:
        reasons = reasons or ["there is no table beside the images, such as metadata.csv"]
        raise ValueError(f"{root}?{'label' if reading.label else 'image'}=: {'; '.join(reasons)}")
    if not usable:
        if source.labels is None and reasons:
            source.why_unlabelled = "; ".join(reasons)
        return
    path, table, rows = usable[0]
    if len(source.class_names or ()) > 1 and not asked:
        say_once(f"{root}: labels from the class folders, not from {path}")
        return
    assert table.labels is not None
    source.labels = torch.cat([table.labels, torch.tensor([-1])])[torch.tensor(rows)]
    source.class_names, source.why_unlabelled = table.class_names, ""
    labelled, found = int((source.labels >= 0).sum()), {table.files[row] for row in {*rows} - {-1}}
    absent = [file for file in dict.fromkeys(table.files) if file not in found]
    files = f"{amount(len(absent), 'file')} not among them: {some(absent, 3)}"
    say_once(
        f"{root}: labels of {labelled} of {len(rows)} images from {path}, column {table.label!r}"
        + (f"; the table also names {files}" if absent else "")
    )


def _of_split(root: Path, usable: list[_Found], split: Split | None) -> Tensor | None:
    """Return the images that no table puts into another split; None if no table names splits."""
    every = [(path, rows, table.rows_of(split)) for path, table, rows in usable]
    telling = [(path, rows, taken) for path, rows, taken in every if taken is not None]
    if not telling:
        return None
    path, rows, taken = telling[0]
    if len(telling) > 1 and path.stem != _METADATA:
        several = ", ".join(path.name for path, _, _ in telling)
        raise ValueError(f"{root}: several tables name splits ({several}); give one as data")
    keep = {-1, *taken.tolist()}
    left = [image for image, row in enumerate(rows) if row in keep]
    if not left:
        raise ValueError(f"{root}: {path} puts none of its images into a split for {split}")
    return torch.tensor(left)


def _tables(root: Path, source: FileSource) -> list[Path]:
    """List the tables in the lowest folder with any that holds all images; metadata.* first."""
    first, last = (os.path.dirname(source.name(index)) for index in (0, len(source) - 1))
    folder = root / os.path.commonpath([first, last])  # images are sorted
    endings = (*ENDINGS, ".parquet")
    while True:
        tables = [path for path in folder.iterdir() if path.name.lower().endswith(endings)]
        if tables or folder == root:
            return sorted(tables, key=lambda path: (path.stem != _METADATA, path.name))
        folder = folder.parent


def _rows(root: Path, source: FileSource, path: Path, table: Table) -> list[int]:
    """Find the row of each image of a folder in a table, -1 if there is none.

    If no path agrees, names of files without folders are compared, unless two images have the same.
    A table above the folders of splits is compared so only with the split that it is named by.
    """
    places = {_key(path.parent, file): row for row, file in enumerate(table.files)}
    images = [_key(root, source.name(index)) for index in range(len(source))]
    if any(image in places for image in images):
        return [places.get(image, -1) for image in images]
    bare = {spelled(file): row for row, file in enumerate(table.files)}

    @cache
    def fits(folder: str) -> bool:
        parts = os.path.relpath(folder, _key(path.parent)).split(os.sep)
        return {split_word(part) for part in parts} - {""} in (set(), splits_in(path.stem))

    bases = [base if fits(folder) else "" for folder, base in map(os.path.split, images)]
    named = [name for name in bases if name]
    if len(set(named)) < len(named):
        return [-1] * len(bases)
    return [bare.get(name, -1) for name in bases]


def _key(*parts: str | Path) -> str:
    """Return one spelling of a path."""
    return spelled(os.path.abspath(os.path.join(*parts)))


def _read(path: Path, reading: Reading) -> Table:
    """Read the columns of files and labels of a table. Raises ValueError if it has no files."""
    kinds, read, declared, place = _columns(path)
    contents = {name: content(kind) for name, kind in kinds.items()}
    file = image_column(contents, str(path), reading.image)
    if contents[file] != FILE:
        raise ValueError(f"{path}: column {file!r} holds {contents[file]}; expected {FILE}")
    files = [(value or "").strip() for value in read(file).to_pylist()]
    if not files:
        raise ValueError(f"{path}: no rows in this table")
    if not all(files):
        raise ValueError(f"{path}: {place(files.index(''))} names no file in column {file!r}")
    _check_lines(path, file, files, place)
    if "\\" in files[0] and not os.path.exists(path.parent / files[0]):  # written on Windows
        files = [name.replace("\\", "/") for name in files]
    labels = names = label = None
    try:
        label, why = label_column(kinds, str(path), reading.label, declared, file)
    except ValueError as error:  # it has not the column that `reading` names
        why = str(error)
    if label is not None:
        values = read(label)
        if content(values.type) == FILE:
            _check_lines(path, label, values.to_pylist(), place)
        labels, names, why = joined([(values, declared.get(label))], f"column {label!r} of {path}")
    known = dict[str, int]()
    for name, number in zip(files, labels.tolist() if labels is not None else (), strict=False):
        if known.setdefault(_key(path.parent, name), number) != number:
            labels = names = None
            why = f"{path} has several labels for {name}, the first file that is named twice"
            break
    rows_of = partial(
        rows_of_split,
        [column for column in kinds if column != reading.label],
        lambda column: [(read(column), declared.get(column))],
        str(path),
        place=place,
    )
    return Table(files, labels, names, why, label, rows_of, place)


def _refuse_ambiguous(table: Path, first: str) -> None:
    """Raise ValueError if several folders beside a table have its first file."""
    having = sorted(path.name for path in table.parent.iterdir() if os.path.isfile(path / first))
    if len(having) > 1:
        raise ValueError(
            f"{table}: its first file, {_quoted.repr(first)}, is in several folders beside the "
            f"table: {some(having)}; put the table into the right one of them, or write the "
            f"folder into its paths, as {Path(having[0]) / first}"
        )


def _check_lines(
    path: Path, column: str, values: Sequence[str | None], place: Callable[[int], str]
) -> None:
    """Refuse names with a line break: a quotation mark that is not closed swallows rows."""
    for row, value in enumerate(values):
        if value and len(value.strip().splitlines()) > 1:
            raise ValueError(
                f"{path}: {place(row)} has a line break in column {column!r}, "
                f"{_quoted.repr(value)}; is a quotation mark missing?"
            )


def _columns(
    path: Path,
) -> tuple[dict[str, Any], Callable[[str], Any], dict[str, list[str]], Callable[[int], str]]:
    """Open a table: types of its columns, what reads one, names of their numbers, places of rows.

    The place of a row is its line in a table of text, else its number.
    """
    if path.suffix.lower() in ENDINGS:
        columns, lines = read_columns(path)
        kinds = {name: values.type for name, values in columns.items()}
        return kinds, columns.__getitem__, {}, lambda row: f"line {lines[row]}"
    file = open_rows(path)
    kinds = {field.name: field.type for field in file.schema}
    return kinds, partial(file.column, range(len(file.counts))), file.class_names, row_place

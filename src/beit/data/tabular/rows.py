"""Rows of Parquet and Arrow files, with a column of images and, if known, one of labels."""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor

from beit.data.folders.image_files import FileNames, read_file, read_image
from beit.data.folders.listing import say_once
from beit.data.packed import MARK
from beit.data.pixels.reduced import decode_reduced
from beit.data.source import PartSource, Source, UnreadableImage
from beit.data.spec import AS_IT_IS, Reading
from beit.data.splits import Split
from beit.data.tabular.columns import FILE, content, image_column, label_column
from beit.data.tabular.labels import joined
from beit.data.tabular.row_files import RowFile, Rows, open_rows, place
from beit.data.tabular.split_columns import rows_of_split

CACHED_BYTES = 1 << 28  # cache of row groups, per process; always holds the one in use
_SHOWN = 200  # characters of a path in a message; of encoded bytes as text, not all
_LARGE_GROUP = 1 << 23  # takes longer to read than an image to decode
_ADVICE = (  # threads would change the order of the rows
    "{}: a row group of {:.0f} MB is read for nearly every image in random order, as in training; "
    "an Arrow copy is read image by image: python -c 'import pyarrow.dataset as d; "
    's = d.dataset(FILES); d.write_dataset(s.to_batches(), "NEW_FOLDER", schema=s.schema, '
    'format="arrow", use_threads=False)\' where FILES is the list of files'
)


class RowSource:
    """Rows of one or more Parquet or Arrow files, in order.

    A row holds an encoded image, as {bytes, path} or bytes, or the path of an image file: in the
    folder of the rows, else in the working directory. Row groups of Parquet files are read whole
    and kept in a small least-recently-used cache; Arrow files are mapped into memory.
    """

    def __init__(
        self,
        files: Sequence[RowFile],
        reading: Reading = AS_IT_IS,
        cached_bytes: int = CACHED_BYTES,
    ) -> None:
        self._files, self._reading, self._cached_bytes = list(files), reading, cached_bytes
        self._names, own_names = _relative(files), list[str]()
        self._groups: list[tuple[int, int]] = []  # (file, group in it)
        self._starts: list[int] = []  # first row of each group, counted over all files
        self._file_starts, self._count, self._column = list[int](), 0, ""
        self._names_files, self.columns = False, dict[str, None]()
        self._process = -1
        self._open: dict[int, Rows] = {}
        self._cache: OrderedDict[int, Any] = OrderedDict()  # group -> its column of images
        self._lock = Lock()
        label, why, sizes = None, "", list[int]()
        parts: list[tuple[Any, list[str] | None]] = []  # labels and the names of their numbers
        for number, path in enumerate(self._files):
            file = open_rows(path)
            self._add(number, file)
            self.columns |= dict.fromkeys(file.schema.names)
            own_names += _own_names(path, file)
            sizes += file.sizes
            if label is None:
                names = file.schema.names
                wanted, declared = reading.label, file.class_names
                label, why = label_column(names, str(path), wanted, declared, self._column)
            parts.append(_labels(file, label))
        if not self._count:
            raise ValueError(f"{self._files[0]}: no rows in this file; expected images")
        # Of packed images; others are named by file and row.
        self._own_names = FileNames(own_names) if len(own_names) == self._count else None
        where = f"{self._files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''}"
        self.labels, self.class_names, self.why_unlabelled = None, None, why
        if label is not None:
            of = f"column {label!r} of {where}"
            self.labels, self.class_names, self.why_unlabelled = joined(parts, of)
        said = "no labels"
        if self.labels is not None:
            said = f"labels of {int((self.labels >= 0).sum())} from column {label!r}"
        say_once(f"{where}: {self._count} images from column {self._column!r}; {said}")
        if sum(sizes) > cached_bytes and max(sizes) > _LARGE_GROUP:
            say_once(_ADVICE.format(where, max(sizes) / 1e6))

    def _add(self, number: int, file: Rows) -> None:
        """Add the row groups of a file, and check its column of images."""
        path = self._files[number]
        contents = {field.name: content(field.type) for field in file.schema}
        if not self._column:
            self._column = image_column(contents, str(path), self._reading.image)
        image_column(contents, str(path), self._column)
        self._names_files |= contents[self._column] == FILE
        if not isinstance(path, Path) and self._names_files:
            raise ValueError(f"{path}: names files; of remote rows, only encoded images are read")
        self._file_starts.append(self._count)
        for group, rows in enumerate(file.counts):
            if rows:
                self._groups.append((number, group))
                self._starts.append(self._count)
                self._count += rows

    def __len__(self) -> int:
        return self._count

    def image(self, index: int) -> Tensor:
        stored, name = self._stored(index)
        if isinstance(stored, Path):
            return read_image(stored, name, self._reading)
        return decode_reduced(stored, name, self._reading)[0]

    def encoded(self, index: int) -> bytes:
        stored, name = self._stored(index)
        return read_file(stored, name)[0] if isinstance(stored, Path) else stored

    def _stored(self, index: int) -> tuple[bytes | Path, str]:
        """Return the bytes or the file of an image, and its name for errors."""
        group = bisect_right(self._starts, index) - 1
        with self._lock:  # a file handle serves one thread at a time
            value = self._values(group)[index - self._starts[group]].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if not value:
            raise UnreadableImage(self.name(index), "the row holds no bytes")
        if not isinstance(value, str):
            return value, self.name(index)
        name = f"{self.name(index)}, {value if len(value) < _SHOWN else value[:_SHOWN] + '...'}"
        if "\0" in value:
            raise UnreadableImage(name, "a zero byte in the path of a file")
        rows = self._files[self._groups[group][0]]
        if not isinstance(rows, Path):
            raise UnreadableImage(name, "the row has a path, but no bytes")
        beside = rows.parent / value
        return beside if os.path.isfile(beside) else Path(value), name

    def name(self, index: int) -> str:
        if self._own_names is not None:
            return self._own_names[index]
        number = bisect_right(self._file_starts, index) - 1
        return f"{self._names[number]}[{index - self._file_starts[number]}]"

    def file(self, index: int) -> Path | None:
        """Return the image file that a row names, else that of the rows; None in a store."""
        file = self._files[bisect_right(self._file_starts, index) - 1]
        if self._names_files:
            with suppress(UnreadableImage):
                if isinstance(stored := self._stored(index)[0], Path):
                    return stored
        return file if isinstance(file, Path) else None

    def _values(self, group: int) -> Any:
        """Return the column of images of a group, from the cache or the file."""
        if self._process != os.getpid():  # a forked worker must not share its parent's handles
            self._process, self._open, self._cache = os.getpid(), {}, OrderedDict()
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        number, part = self._groups[group]
        if number not in self._open:
            self._open[number] = open_rows(self._files[number])
        self._cache[group] = self._open[number].column([part], self._column)
        sizes = [cached.nbytes for cached in self._cache.values()]
        while len(self._cache) > 1 and sum(sizes) > self._cached_bytes:
            self._cache.popitem(last=False)
            sizes.pop(0)
        return self._cache[group]

    def __getstate__(self) -> dict[str, Any]:
        unshared = {"_process": -1, "_open": {}, "_cache": OrderedDict(), "_lock": None}
        return self.__dict__ | unshared

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())


def _own_names(path: RowFile, file: Rows) -> list[str]:
    """Read the names of images in a file of `beit pack`; none of other files."""
    metadata = file.schema.metadata or {}
    if any(metadata.get(key) != value for key, value in MARK.items()):
        return []
    try:
        images = file.column(range(len(file.counts)), "image.path").combine_chunks()
        names: list[str] = images.field("path").to_pylist()
    except (LookupError, AttributeError):  # no such column
        return []
    return [] if None in names else names


def _relative(files: Sequence[RowFile]) -> list[str]:
    """Name files relative to the folder that holds all of them."""
    names = [os.path.abspath(file) if isinstance(file, Path) else str(file) for file in files]
    parts = [name.split("/") for name in names]
    count = 0
    while all(len(part) > count + 1 and part[count] == parts[0][count] for part in parts):
        count += 1
    return ["/".join(part[count:]) for part in parts]


def open_row_files(files: Sequence[RowFile], reading: Reading, split: Split | None) -> Source:
    """Open rows of files; if a column names their splits, those for `split`, or all for None."""
    source = RowSource(files, reading)
    names = [name for name in source.columns if name != reading.label]

    def read(column: str) -> list[tuple[Any, list[str] | None]]:
        return [_labels(open_rows(path), column) for path in files]

    rows = rows_of_split(names, read, str(files[0]), split, place)
    return source if rows is None else PartSource(source, rows)


def images_of_rows(path: Path, reading: Reading) -> str:
    """Tell how a file of rows holds images, ENCODED or FILE of `columns`, or why it has none."""
    contents = {field.name: content(field.type) for field in open_rows(path).schema}
    try:
        return contents[image_column(contents, str(path), reading.image)]
    except ValueError as error:
        return str(error)


def _labels(file: Rows, column: str | None) -> tuple[Any, list[str] | None]:
    """Read a column of labels (nulls if the file lacks it), and the names of its numbers."""
    import pyarrow

    if column is None or column not in file.schema.names:
        return pyarrow.chunked_array([pyarrow.nulls(sum(file.counts))]), None
    values = file.column(range(len(file.counts)), column)
    return values, file.class_names.get(column)

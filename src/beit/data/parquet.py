"""Parquet files with a column `image` {bytes, path} and, if known, `label`."""

import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from beit.data.decoding import decode
from beit.data.source import UnreadableImage
from beit.data.spec import AS_IT_IS, Reading

_IMAGE_COLUMNS = ("image", "img")
CACHED_BYTES = 1 << 28  # cache of row groups, per process; always holds the one in use


class ParquetSource:
    """Rows of one or more Parquet files, in order.

    Row groups are read whole and kept in a small least-recently-used cache. For files larger than
    the cache, reading in random order is fast only with small row groups, of about 100 rows.
    """

    def __init__(
        self,
        files: Sequence[Path],
        reading: Reading = AS_IT_IS,
        cached_bytes: int = CACHED_BYTES,
    ) -> None:
        self._files, self._cached_bytes, self._column = list(files), cached_bytes, ""
        self._reading = reading
        self._groups: list[tuple[int, int]] = []  # (file, row group)
        self._starts: list[int] = []  # first row of each row group, counted over all files
        self._file_starts, self._count = list[int](), 0
        self.class_names: list[str] | None = None
        self.labels = _joined_labels([self._add(number) for number in range(len(self._files))])
        self.why_unlabelled = "" if self.labels is not None else "there is no column 'label'"
        self._process = -1
        self._open: dict[int, Any] = {}
        self._cache: OrderedDict[int, Any] = OrderedDict()  # row group -> its column of bytes
        self._lock = Lock()
        if not self._count:
            raise ValueError(f"{self._files[0]}: no rows in this file; expected images")

    def _add(self, number: int) -> Tensor | None:
        """Add the row groups of a file. Returns: its labels (rows,) int64, or None."""
        from pyarrow import types

        path = self._files[number]
        file = _open_file(path)
        schema = file.schema_arrow
        column = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
        if column is None or self._column not in ("", column):
            expected = f"'{self._column or 'image'}' {{bytes, path}}"
            raise ValueError(f"{path}: no column {expected}; it has {', '.join(schema.names)}")
        self._column = column
        self._file_starts.append(self._count)
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if rows:
                self._groups.append((number, group))
                self._starts.append(self._count)
                self._count += rows
        if "label" not in schema.names:
            return None
        if self.class_names is None:
            self.class_names = _class_names(schema.metadata)
        values = file.read(columns=["label"]).column(0)
        if not types.is_integer(values.type):
            raise ValueError(f"{path}: column 'label' must hold integers, got {values.type}")
        return torch.tensor(values.fill_null(-1).to_pylist(), dtype=torch.int64)

    def __len__(self) -> int:
        return self._count

    def image(self, index: int) -> Tensor:
        group = bisect_right(self._starts, index) - 1
        with self._lock:  # a file handle serves one thread at a time
            data = self._bytes(group)[index - self._starts[group]].as_py()
        if not data:
            raise UnreadableImage(self.name(index), "the row holds no bytes")
        return decode(data, self.name(index), self._reading)

    def name(self, index: int) -> str:
        number = bisect_right(self._file_starts, index) - 1
        return f"{self._files[number].name}[{index - self._file_starts[number]}]"

    def _bytes(self, group: int) -> Any:
        """Return the encoded images of a row group, from the cache or the file."""
        from pyarrow import compute

        if self._process != os.getpid():  # a forked worker must not share its parent's handles
            self._process, self._open, self._cache = os.getpid(), {}, OrderedDict()
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        number, part = self._groups[group]
        if number not in self._open:
            self._open[number] = _open_file(self._files[number])
        rows = self._open[number].read_row_group(part, [self._column], use_threads=False)
        values = rows.column(0)
        if hasattr(values.type, "fields") and values.type.num_fields:
            values = compute.struct_field(values, "bytes")
        self._cache[group] = values
        sizes = [cached.nbytes for cached in self._cache.values()]
        while len(self._cache) > 1 and sum(sizes) > self._cached_bytes:
            self._cache.popitem(last=False)
            sizes.pop(0)
        return values

    def __getstate__(self) -> dict[str, Any]:
        unshared = {"_process": -1, "_open": {}, "_cache": OrderedDict(), "_lock": None}
        return self.__dict__ | unshared

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())


def parquet_files(folder: Path) -> list[Path]:
    """List the Parquet files of a folder, sorted; ValueError if they belong to several sets."""
    files = sorted(folder.glob("*.parquet"))
    splits = sorted({file.stem.split("-")[0] for file in files})
    if len(splits) > 1:
        raise ValueError(
            f"{folder}: contains Parquet files of several sets ({', '.join(splits)}); "
            f"name one of them, as in '{folder / splits[0]}*.parquet'"
        )
    return files


def _open_file(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error


def _joined_labels(labels: list[Tensor | None]) -> Tensor | None:
    known = [part for part in labels if part is not None]
    if not known:
        return None
    if len(known) < len(labels):
        raise ValueError("some of the Parquet files have a column 'label' and others do not")
    joined = torch.cat(known)
    return joined if bool((joined >= 0).any()) else None


def _class_names(metadata: dict[bytes, bytes] | None) -> list[str] | None:
    """Read the class names that the `datasets` library writes to the schema."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None

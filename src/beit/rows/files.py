"""Write columns to one Parquet or NPZ file piece by piece, and read them.

The bytes of a file depend on the values only.

Numbers with a shape become Arrow's fixed-shape tensors in Parquet: pyarrow reads them as one array,
other readers as lists. NPZ files are not compressed and hold no pickles.
"""

import errno
import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SUFFIXES = (".parquet", ".npz")
ABOUT = "about"  # the entry of an NPZ file that records how it was made
METADATA = "beit"  # the same in the metadata of a Parquet schema
TEXT = "str"
MAX_UNPACKED = 1 << 28  # bytes of one compressed array
_EPOCH = (1980, 1, 1, 0, 0, 0)  # first date of ZIP: the file holds no time of writing


@dataclass(frozen=True)
class Column:
    """A column whose values have the same shape in every row."""

    name: str
    dtype: str  # of a value, by its name in torch and NumPy: uint16, float32, ...; or str
    shape: tuple[int, ...] = ()  # of the values of a row; () for a single value
    texts: tuple[str, ...] = ()  # of a str column: it holds `texts[i]` for number i of `numbers`
    numbers: str = ""  # name of another column

    @property
    def size(self) -> int:
        """Values per row."""
        return int(np.prod(self.shape))


Values = Callable[[int, Column], Array]  # (piece, column) -> (rows of the piece, *shape)


def write_table(
    path: Path, suffix: str, columns: Sequence[Column], num_pieces: int, values: Values, about: str
) -> None:
    """Write a table piece by piece to `path`, in the format of `suffix`: .parquet or .npz.

    `values` is called several times for each piece and column; `about` is kept in the file.
    """
    assert suffix in SUFFIXES
    write = _write_parquet if suffix == ".parquet" else _write_npz
    write(path, columns, num_pieces, values, about)


def _write_parquet(
    path: Path, columns: Sequence[Column], num_pieces: int, values: Values, about: str
) -> None:
    """Write each piece as a row group, with one piece in memory at a time."""
    import pyarrow
    from pyarrow import parquet

    fields = [(column.name, _arrow_type(column)) for column in columns]
    schema = pyarrow.schema(fields, metadata={METADATA: about})
    codec = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    with parquet.ParquetWriter(path, schema, **codec) as writer:
        for piece in range(num_pieces):
            arrays = [_arrow_array(column, values(piece, column)) for column in columns]
            table = pyarrow.Table.from_arrays(arrays, schema=schema)
            if len(table):
                writer.write_table(table, row_group_size=len(table))


def _arrow_type(column: Column) -> Any:
    import pyarrow

    if column.dtype == TEXT:
        return pyarrow.list_(pyarrow.string(), column.size) if column.shape else pyarrow.string()
    kind = pyarrow.from_numpy_dtype(column.dtype)
    return pyarrow.fixed_shape_tensor(kind, column.shape) if column.shape else kind


def _arrow_array(column: Column, values: Array) -> Any:
    import pyarrow

    flat = values.reshape(-1)
    inner = pyarrow.array(flat.tolist(), pyarrow.string()) if column.dtype == TEXT else flat
    if not column.shape:
        return pyarrow.array(inner)
    storage = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(inner), column.size)
    if column.dtype == TEXT:
        return storage.cast(_arrow_type(column))  # its inner field has another name
    return pyarrow.ExtensionArray.from_storage(_arrow_type(column), storage)


def _write_npz(
    path: Path, columns: Sequence[Column], num_pieces: int, values: Values, about: str
) -> None:
    """Write column after column, with one piece of one column in memory at a time."""
    pieces = range(num_pieces)
    num_rows = sum(len(values(piece, columns[0])) for piece in pieces)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for column in columns:
            dtype = np.dtype(column.dtype)
            if column.dtype == TEXT:  # as wide as the longest
                widths = [values(piece, column).dtype.itemsize for piece in pieces]
                dtype = np.dtype(f"U{max(widths) // np.dtype('U1').itemsize}")
            shape, descr = (num_rows, *column.shape), np.lib.format.dtype_to_descr(dtype)
            header = {"descr": descr, "fortran_order": False, "shape": shape}
            with _member(archive, column.name) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for piece in pieces:
                    file.write(values(piece, column).astype(dtype, copy=False).tobytes())
        with _member(archive, ABOUT) as file:
            np.lib.format.write_array(file, np.array(about), allow_pickle=False)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open an array of an NPZ file for writing."""
    return archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True)


# What reading a damaged table raises, besides an OSError of Arrow's or of seeking.
DAMAGED = (
    *(ValueError, LookupError, TypeError, RuntimeError, EOFError, SyntaxError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)


@contextmanager
def naming(path: Path, advice: str) -> Iterator[None]:
    """Raise ValueError naming the file if reading it shows that it is damaged."""
    try:
        yield
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ValueError(f"{path} is damaged ({error}); {advice}") from error


@contextmanager
def open_npz(path: Path, advice: str = "make it again") -> Iterator[Any]:
    """Open arrays by name, without pickles. Raises ValueError naming the file if it is damaged.

    An array is read when its name is asked for. One that is far larger than the file, as zeros that
    were compressed, is refused.
    """
    with naming(path, advice), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array, expected several by name")
        most = max(path.stat().st_size, MAX_UNPACKED)
        for entry in cast(zipfile.ZipFile, arrays.zip).infolist():
            if entry.file_size > most:
                raise ValueError(f"{entry.filename} claims {entry.file_size} bytes")
        yield arrays


def read_table(path: Path, without: Collection[str] = ()) -> dict[str, Array]:
    """Read the columns of a table that `write_table` has written: (rows, *shape) by name.

    Columns `without` are not read.
    """
    if path.suffix == ".npz":
        with open_npz(path) as archive:
            names = [name for name in archive.files if name not in (ABOUT, *without)]
            return {name: archive[name] for name in names}
    if path.suffix != ".parquet":
        raise ValueError(f"{path} holds no arrays; expected a name that ends in .parquet or .npz")
    import pyarrow
    from pyarrow import parquet

    def array(column: Any) -> Array:
        values = column.combine_chunks()
        if isinstance(column.type, pyarrow.FixedShapeTensorType):
            return values.to_numpy_ndarray()  # type: ignore[no-any-return]
        return np.array(values.to_pylist())

    with naming(path, "make it again"):
        names = [name for name in parquet.read_schema(path).names if name not in without]
        table = parquet.read_table(path, columns=names)
        return {name: array(table[name]) for name in names}


def read_about(path: Path) -> dict[str, Any]:
    """Read how a table was made, as plain values; empty if `write_table` did not write it."""
    from pyarrow import ArrowException, parquet

    try:
        if path.suffix == ".npz":
            with open_npz(path) as arrays:
                return dict(json.loads(str(arrays[ABOUT])))
        metadata = parquet.read_schema(path).metadata or {}
        return dict(json.loads(metadata.get(METADATA.encode(), b"{}")))
    except (ValueError, TypeError, RecursionError, ArrowException, OSError):
        return {}

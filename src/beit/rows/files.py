"""One file of columns, Parquet or NPZ, written piece by piece: its bytes depend on its values only.

Numbers of a fixed shape stand in Parquet as Arrow's fixed-shape tensors, which pyarrow gives back
as one array and other readers as lists. An NPZ file is not compressed and holds no pickles.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SUFFIXES = (".parquet", ".npz")
ABOUT = "about"  # of an NPZ file: the entry that says what made it
METADATA = "beit"  # of a Parquet file: the same, in the schema's metadata
TEXT = "str"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that ZIP knows: a file does not tell when


@dataclass(frozen=True)
class Column:
    """Values of one shape in every row.

    Attributes:
        name: of the column
        dtype: of a value, as torch and NumPy both call it: uint16, float32, ...; or str
        shape: of a row's values; () for a single one
        texts: of a str column that says what the numbers of another stand for: number i for
            `texts[i]`
        numbers: the name of that other column
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    numbers: str = ""

    @property
    def size(self) -> int:
        """Values a row."""
        return int(np.prod(self.shape))


def write_table(
    path: Path,
    suffix: str,
    columns: Sequence[Column],
    num_pieces: int,
    values: Callable[[int, Column], Array],
    about: str,
) -> None:
    """Write a table of `num_pieces` pieces, one after the other.

    Args:
        path: the file, whatever its name
        suffix: .parquet or .npz
        values: (piece, column) -> (rows of the piece, *shape), as often as asked
        about: what made it, for whoever opens the file
    """
    assert suffix in SUFFIXES
    write = _write_parquet if suffix == ".parquet" else _write_npz
    write(path, columns, num_pieces, values, about)


def _write_parquet(
    path: Path,
    columns: Sequence[Column],
    num_pieces: int,
    values: Callable[[int, Column], Array],
    about: str,
) -> None:
    """Write every piece as a row group, one of them in memory at a time."""
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
        text = pyarrow.string()
        return pyarrow.list_(text, column.size) if column.shape else text
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
    path: Path,
    columns: Sequence[Column],
    num_pieces: int,
    values: Callable[[int, Column], Array],
    about: str,
) -> None:
    """Write column after column, one piece of one in memory at a time."""
    pieces = range(num_pieces)
    num_rows = sum(len(values(piece, columns[0])) for piece in pieces)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for column in columns:
            dtype = np.dtype(column.dtype)
            if column.dtype == TEXT:  # as wide as the longest
                widths = [values(piece, column).dtype.itemsize for piece in pieces]
                dtype = np.dtype(f"U{max(widths) // np.dtype('U1').itemsize}")
            with _member(archive, column.name) as file:
                _write_header(file, dtype, (num_rows, *column.shape))
                for piece in pieces:
                    block = values(piece, column).astype(dtype, copy=False)
                    file.write(np.ascontiguousarray(block).tobytes())
        with _member(archive, ABOUT) as file:
            np.lib.format.write_array(file, np.array(about), allow_pickle=False)


@contextmanager
def _member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """Open an array of an NPZ file for writing."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as file:
        yield file


def _write_header(file: IO[bytes], dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)

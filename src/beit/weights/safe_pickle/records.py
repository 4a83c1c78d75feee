"""Unpickle objects of other programs without running them: each becomes an inert record.

For files that `torch.load(weights_only=True)` refuses: TorchScript archives and pickled modules.
"""

import errno
import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# What reading raises on a file that is damaged, or forged to do more than hold tensors. An OSError
# is about the file only if `unsound` says so.
UNSOUND = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, StopIteration),
    *(TypeError, ValueError, OSError),
)
MAX_DEPTH, MAX_OBJECTS = 32, 100_000  # published modules: 6 deep, a few hundred objects


def unsound(error: Exception) -> bool:
    """Tell whether an error is the file's fault: also one of seeking outside of it."""
    return not isinstance(error, OSError) or error.errno == errno.EINVAL


class Storage(NamedTuple):
    """Where a tensor's elements are in the file: `length` elements of one dtype under `key`."""

    dtype: torch.dtype
    key: str
    length: int

    @property
    def num_bytes(self) -> int:
        return self.length * self.dtype.itemsize


class View(NamedTuple):
    """A tensor as the file describes it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Unpickled(NamedTuple):
    """The value of a pickle, its end in the data, and the storages it refers to, by key."""

    value: Any
    end: int
    storages: dict[str, Storage]


class Record:
    """An object of any class in the file: its fields, and no behaviour."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            vars(self).update(state)


def first_argument(value: object, *_: object) -> object:
    """Replace a function whose other arguments only annotate the first."""
    return value


# Functions that a file may name, and their replacements.
FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: View(*arguments[:4]),
    ("torch._utils", "_rebuild_parameter"): first_argument,
    ("collections", "OrderedDict"): dict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # its name in pickle protocol 2
}


Functions = Mapping[tuple[str, str], Callable[..., Any]]


class _Unpickler(pickle.Unpickler):
    """Creates plain values, `View`s and `Record`s; refuses every other name."""

    def __init__(self, data: bytes, classes: tuple[str, ...], functions: Functions) -> None:
        super().__init__(io.BytesIO(data))
        self.classes, self.functions = classes, functions
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}".startswith(self.classes):
            return type(name, (Record,), {})
        if module == "torch" and name in STORAGE_DTYPES:
            return name
        replacement = self.functions.get((module, name))
        if replacement is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        # A new function each time: a pickle can set attributes on what it names.
        return lambda *arguments: replacement(*arguments)

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            # Older files have a sixth value: None, or which part of another storage this one is.
            case ("storage", str(dtype), str(key), _, int(length), *part) if part in ([], [None]):
                storage = Storage(STORAGE_DTYPES[dtype], key, length)
                if length < 0 or self.storages.setdefault(key, storage) != storage:
                    raise pickle.UnpicklingError(f"it refers to {storage}")
                return storage
            case ("module", class_, *_):  # a class with its source code, in torch's older files
                return class_
        raise pickle.UnpicklingError(f"it refers to {str(pid)[:100]}, expected tensor storage")


def unpickle(
    data: bytes, start: int = 0, classes: tuple[str, ...] = (), functions: Functions = FUNCTIONS
) -> Unpickled:
    """Read the pickle that begins at `start`; raise one of `UNSOUND` if it names anything else.

    Args:
        classes: prefixes of the dotted names of classes whose objects become `Record`s
        functions: replacements by (module, name)
    """
    stream = io.BytesIO(data)
    stream.seek(start)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        # The memo is as long as its largest index: a forged index would allocate gigabytes.
        if opcode.name in ("PUT", "LONG_BINPUT") and (argument or 0) > count:
            raise pickle.UnpicklingError(f"it memoizes object {argument} after {count} steps")
    end = stream.tell()
    unpickler = _Unpickler(data[start:end], classes, functions)
    return Unpickled(unpickler.load(), end, unpickler.storages)


def views(root: Any, members: Callable[[Record], Mapping[str, Any]]) -> dict[str, View]:
    """List the tensors in an object and in its `members`, by dotted name."""
    tensors: dict[str, View] = {}
    pending: list[tuple[tuple[str, ...], Any]] = [((), root)]
    visited = 0
    while pending:
        path, value = pending.pop()
        visited += 1
        if visited > MAX_OBJECTS or len(path) > MAX_DEPTH:
            raise pickle.UnpicklingError("its objects contain each other endlessly")
        if isinstance(value, View):
            tensors[".".join(path)] = value
        elif isinstance(value, Record):
            pending += [((*path, str(name)), inner) for name, inner in members(value).items()]
    return tensors


def tensors_of(
    views: Mapping[str, View], read: Callable[[Storage], bytes | bytearray]
) -> dict[str, Tensor]:
    """Create the tensors of views by name; `read` returns a storage's bytes, and is called once."""
    storages: dict[str, Tensor] = {}
    tensors = {}
    for name, view in views.items():
        storage = view.storage
        if storage.key not in storages:
            content, dtype = bytearray(read(storage)), storage.dtype
            empty = torch.empty(0, dtype=dtype)
            storages[storage.key] = torch.frombuffer(content, dtype=dtype) if content else empty
        if math.prod(view.size) > storage.length:
            misfit = f"{name} of {view.size} does not fit {storage.length} elements"
            raise pickle.UnpicklingError(misfit)
        tensors[name] = storages[storage.key].as_strided(view.size, view.stride, view.offset)
    return tensors


def zip_root(archive: zipfile.ZipFile) -> str | None:
    """Find the folder of a PyTorch archive that contains data.pkl, as 'archive/'."""
    pickles = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    return next((name.removesuffix("data.pkl") for name in pickles), None)


def zip_read(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read an uncompressed entry, as PyTorch writes them, that is not larger than the file."""
    entry, size = archive.getinfo(name), os.path.getsize(str(archive.filename))
    if entry.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(f"{name} is compressed, expected it uncompressed")
    if entry.compress_size > size:  # zipfile would allocate as much
        raise pickle.UnpicklingError(
            f"{name} claims {entry.compress_size} bytes and the file has {size}"
        )
    return archive.read(entry)


def zip_storage(archive: zipfile.ZipFile, root: str) -> Callable[[Storage], bytes]:
    """Return a function that reads a storage of the archive, for `tensors_of`."""

    def read(storage: Storage) -> bytes:
        name = f"{root}data/{storage.key}"
        size = archive.getinfo(name).file_size
        if size != storage.num_bytes:
            raise pickle.UnpicklingError(f"{name} has {size} bytes, expected {storage.num_bytes}")
        return zip_read(archive, name)

    return read

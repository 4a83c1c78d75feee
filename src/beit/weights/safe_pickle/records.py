"""Pickles of other programs' objects, read as inert records: nothing that they name is run."""

import io
import math
import pickle
import pickletools
import struct
import zipfile
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
# What reading raises on a file that is damaged, or forged to do more than hold tensors.
UNSOUND = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)
MAX_DEPTH, MAX_OBJECTS = 32, 100_000  # published modules: 6 deep, a few hundred


class Storage(NamedTuple):
    """Where a tensor's elements are: `length` of one dtype, in the file under `key`."""

    dtype: torch.dtype
    key: str
    length: int

    @property
    def num_bytes(self) -> int:
        """What it takes in the file."""
        return self.length * self.dtype.itemsize


class View(NamedTuple):
    """A tensor as the file describes it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Unpickled(NamedTuple):
    """What a pickle holds, where it ends in the data, and the storages it refers to, by key."""

    value: Any
    end: int
    storages: dict[str, Storage]


class Inert:
    """Stands for every class of the file: holds its fields and does nothing."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            vars(self).update(state)


def _view(
    storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> View:
    return View(storage, offset, size, stride)


def first_argument(value: object, *_: object) -> object:
    """Stand for what only says more about its first argument."""
    return value


# What may be named besides inert classes, and what stands for it.
NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_parameter"): first_argument,
    ("collections", "OrderedDict"): dict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # as pickle protocol 2 calls it
}


class _Unpickler(pickle.Unpickler):
    """Makes plain values, `View`s and `Inert` objects, and refuses every other name."""

    def __init__(
        self,
        data: bytes,
        classes: tuple[str, ...],
        names: Mapping[tuple[str, str], Callable[..., Any]],
    ) -> None:
        super().__init__(io.BytesIO(data))
        self.classes, self.names = classes, names
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}".startswith(self.classes):
            return type(name, (Inert,), {})
        if module == "torch" and name in STORAGE_DTYPES:
            return name
        stand_in = self.names.get((module, name))
        if stand_in is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        # A new one each time: what a pickle sets on it does not stay.
        return lambda *arguments: stand_in(*arguments)

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            # Older files say with a sixth value whether it is a part of another storage.
            case ("storage", str(dtype), str(key), _, int(length), *part) if part in ([], [None]):
                storage = Storage(STORAGE_DTYPES[dtype], key, length)
                if length < 0 or self.storages.setdefault(key, storage) != storage:
                    raise pickle.UnpicklingError(f"it refers to {storage}")
                return storage
            case ("module", found, *_):  # a class with its source code, in torch's older files
                return found
        raise pickle.UnpicklingError(f"it refers to {str(pid)[:100]}, expected tensor storage")


def unpickle(
    data: bytes,
    start: int = 0,
    classes: tuple[str, ...] = (),
    names: Mapping[tuple[str, str], Callable[..., Any]] = NAMES,
) -> Unpickled:
    """Read the pickle that begins at `start`.

    Args:
        classes: dotted beginnings of the names that become `Inert` classes
        names: stand-ins by (module, name)

    Raises:
        pickle.UnpicklingError: it names anything else, before anything is made of it; or one of
            the other errors in `UNSOUND`.
    """
    stream = io.BytesIO(data)
    stream.seek(start)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        # Honest pickles number what they remember; a table is made as long as the largest number.
        if opcode.name in ("PUT", "LONG_BINPUT") and (argument or 0) > count:
            raise pickle.UnpicklingError(f"it remembers object {argument} after {count} steps")
    end = stream.tell()
    unpickler = _Unpickler(data[start:end], classes, names)
    return Unpickled(unpickler.load(), end, unpickler.storages)


def views(root: Any, fields: Callable[[Inert], Mapping[str, Any]]) -> dict[str, View]:
    """List the tensors that an object holds, and the objects in it, by dotted name.

    Args:
        fields: gives the tensors and inner objects of an object by name
    """
    found: dict[str, View] = {}
    pending: list[tuple[tuple[str, ...], Any]] = [((), root)]
    visited = 0
    while pending:
        path, value = pending.pop()
        visited += 1
        if visited > MAX_OBJECTS or len(path) > MAX_DEPTH:
            raise pickle.UnpicklingError("its objects hold each other without end")
        if isinstance(value, View):
            found[".".join(path)] = value
        elif isinstance(value, Inert):
            pending += [((*path, str(name)), inner) for name, inner in fields(value).items()]
    return found


def tensors_of(
    found: Mapping[str, View], read: Callable[[Storage], bytes | bytearray]
) -> dict[str, Tensor]:
    """Make the tensors; each storage is read once.

    Args:
        read: gives exactly the bytes of a storage, and refuses before it allocates more than the
            file has
    """
    flat: dict[str, Tensor] = {}
    tensors = {}
    for name, view in found.items():
        storage = view.storage
        if storage.key not in flat:
            content = bytearray(read(storage))
            flat[storage.key] = (
                torch.frombuffer(content, dtype=storage.dtype)
                if content
                else torch.empty(0, dtype=storage.dtype)
            )
        if math.prod(view.size) > storage.length:
            raise pickle.UnpicklingError(
                f"{name} of {view.size} does not fit {storage.length} elements"
            )
        tensors[name] = flat[storage.key].as_strided(view.size, view.stride, view.offset)
    return tensors


def zip_root(archive: zipfile.ZipFile) -> str | None:
    """Find the folder of a PyTorch archive that holds data.pkl, as 'archive/'; None without one."""
    found = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    pickled = next(found, None)
    return None if pickled is None else pickled.removesuffix("data.pkl")


def zip_read(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read an entry that is stored uncompressed, as PyTorch does: no larger than the file."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(f"{name} is compressed, expected it stored")
    return archive.read(entry)


def zip_storage(archive: zipfile.ZipFile, root: str) -> Callable[[Storage], bytes]:
    """Return the reader of an archive's storages."""

    def read(storage: Storage) -> bytes:
        name = f"{root}data/{storage.key}"
        size = archive.getinfo(name).file_size
        if size != storage.num_bytes:
            raise pickle.UnpicklingError(f"{name} has {size} bytes, expected {storage.num_bytes}")
        return zip_read(archive, name)

    return read

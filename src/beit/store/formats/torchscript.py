"""Tensors of a TorchScript archive, such as OpenAI's CLIP files, read without running its code."""

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

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


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip archive that holds TorchScript code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive, by their dotted names.

    `torch.jit.load` would compile and partly run what the archive brings along. Here its object
    graph is unpickled with inert stand-ins for its classes; nothing else can be named in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            module = _Reader(archive, root.removesuffix("data.pkl")).load()
    except (KeyError, IndexError, StopIteration, EOFError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is not a sound TorchScript archive ({error})") from error
    except (AttributeError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a sound TorchScript archive ({error})") from error
    tensors: dict[str, Tensor] = {}
    pending = [("", module)]
    while pending:
        prefix, value = pending.pop()
        if isinstance(value, Tensor):
            tensors[prefix] = value
        elif isinstance(value, _Inert):
            dotted = f"{prefix}." if prefix else ""
            pending += [(f"{dotted}{name}", inner) for name, inner in vars(value).items()]
    return tensors


class _Inert:
    """Stands for every class of the archive: holds its fields and does nothing."""


class _Reader(pickle.Unpickler):
    """Unpickles tensors, plain values and `_Inert` objects, and refuses every other name."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(root + "data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return type(name, (_Inert,), {})
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if module == "torch.jit._pickle":  # build_intlist([...]), restore_type_tag(value, "...")
            return _first
        names = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
            ("collections", "OrderedDict"): dict,
        }
        if (module, name) not in names:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return names[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it refers to {kind!r}, expected tensor storage")
        entry = self.archive.getinfo(f"{self.root}data/{key}")
        size = numel * dtype.itemsize
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != size:
            raise pickle.UnpicklingError(
                f"{entry.filename} has {entry.file_size} bytes, expected {size} uncompressed"
            )
        if numel == 0:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(self.archive.read(entry)), dtype=dtype)


def _first(value: object, *_: object) -> object:
    """Stand for what only gives its first argument a type."""
    return value


def _rebuild(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """View flat storage as a tensor; no view may hold more elements than its storage."""
    if math.prod(size) > len(storage):
        raise pickle.UnpicklingError(f"a tensor of {size} does not fit {len(storage)} elements")
    return storage.as_strided(size, stride, offset)

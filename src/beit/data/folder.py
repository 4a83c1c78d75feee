"""A folder of images: class folders, nested or flat, with a cached list of its files."""

from __future__ import annotations

import hashlib
import logging
import os
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from beit.data.decoding import UnreadableImage, decode

_log = logging.getLogger(__name__)

EXTENSIONS = (
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .avif".split()
)  # case does not count
MAX_FILE_BYTES = 1 << 29  # no image of a sane size is larger; read nothing beyond
_INDEX_VERSION = 1
_SETTLED_SECONDS = 2.0  # a folder changed this lately may change again under the same time stamp


class FolderSource:
    """Images under `root`, sorted by path.

    Labels come from the first folder level where every image lies in a sub-folder; otherwise there
    are none. Names that begin with a dot are passed over.
    """

    def __init__(self, root: Path, index_cache: bool = True) -> None:
        self.root = root
        cache = _index_file(root) if index_cache else None
        files = _read_index(cache, root) if cache is not None else None
        if files is None:
            started = time.time()
            files, folders = _scan(root)
            if cache is not None:
                _write_index(cache, files, folders, started)
        if not files:
            raise ValueError(
                f"{root}: no images in this folder or those below it; expected files named "
                + ", ".join(f"*{extension}" for extension in EXTENSIONS)
            )
        self._names = FileNames(files)
        self._labels, self._class_names = _class_folders(files)

    def __len__(self) -> int:
        return len(self._names)

    def image(self, index: int) -> Tensor:
        name = self.name(index)
        return read_image(self.root / name, name)

    def name(self, index: int) -> str:
        return self._names[index]

    @property
    def labels(self) -> Tensor | None:
        return self._labels

    @property
    def class_names(self) -> list[str] | None:
        return self._class_names


class FileNames:
    """File names in one block of bytes.

    A million str objects have reference counts, which would make every forked worker copy them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._text[start : int(self._ends[index])])


def read_image(path: Path, name: str) -> Tensor:
    """Read and decode a file. Returns: (3, H, W) uint8. Raises UnreadableImage, with `name`."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise UnreadableImage(name, f"{size} bytes, at most {MAX_FILE_BYTES} are read")
            data = file.read()
    except OSError as error:
        raise UnreadableImage(name, error.strerror or str(error)) from error
    return decode(data, name)


def _class_folders(files: list[str]) -> tuple[Tensor | None, list[str] | None]:
    heads = [file.split(os.sep, 1)[0] if os.sep in file else None for file in files]
    if None in heads:
        return None, None
    names = sorted({head for head in heads if head is not None})
    numbers = {name: number for number, name in enumerate(names)}
    labels = [numbers[head] for head in heads if head is not None]
    return torch.tensor(labels, dtype=torch.int64), names


def _scan(root: Path) -> tuple[list[str], dict[str, int]]:
    """List images below `root`, sorted, and the change time of every folder seen (ns)."""
    folders: dict[str, int] = {}
    files = sorted(_walk(root, "", folders, set()))
    return files, folders


def _walk(
    root: Path, folder: str, folders: dict[str, int], seen: set[tuple[int, int]]
) -> Iterator[str]:
    path = root / folder
    status = path.stat()
    if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above
        return
    seen.add((status.st_dev, status.st_ino))
    folders[folder] = status.st_mtime_ns
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = os.path.join(folder, entry.name)
            if entry.is_dir():
                yield from _walk(root, name, folders, seen)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                yield name


def _index_file(root: Path) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    return Path(base) / "beit" / "folders" / f"{digest}.npz"


def _read_index(cache: Path, root: Path) -> list[str] | None:
    """Give the kept list, or None where there is none or a folder has changed since."""
    try:
        with np.load(cache, allow_pickle=False) as index:
            if int(index["version"]) != _INDEX_VERSION:
                return None
            folders = _split(index["folders"])
            for folder, changed in zip(folders, index["changed"].tolist(), strict=True):
                if os.stat(root / folder).st_mtime_ns != changed:
                    return None
            return _split(index["files"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # no list, a damaged one, or a folder that is gone: scan again


def _write_index(cache: Path, files: list[str], folders: dict[str, int], started: float) -> None:
    if max(folders.values()) / 1e9 > started - _SETTLED_SECONDS:
        return
    temporary = cache.with_suffix(f".{os.getpid()}.part")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.savez(
                file,
                version=np.int64(_INDEX_VERSION),
                folders=_joined(list(folders)),
                changed=np.array(list(folders.values()), dtype=np.int64),
                files=_joined(files),
            )
        temporary.replace(cache)
    except OSError as error:  # the list is a convenience: a full or read-only disk is no reason
        _log.info("the list of files is not kept: %s", error)


def _joined(names: list[str]) -> np.ndarray:
    """Pack names into bytes; no file name holds a zero byte."""
    return np.frombuffer(b"\0".join(os.fsencode(name) for name in names), dtype=np.uint8)


def _split(packed: np.ndarray) -> list[str]:
    return [os.fsdecode(name) for name in packed.tobytes().split(b"\0")]

"""A folder of images, flat, nested or by class, with a cached list of its files."""

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

from beit.data.image_files import EXTENSIONS, FileSource
from beit.data.spec import AS_IT_IS, Reading
from beit.data.splits import Split

_log = logging.getLogger(__name__)

_INDEX_VERSION = 1
_SETTLED_SECONDS = 2.0  # a folder changed later than this can change again with the same time


def open_folder(root: Path, reading: Reading = AS_IT_IS, index_cache: bool = True) -> FileSource:
    """Open the images under `root`, sorted by path.

    If every image is in a sub-folder, the first folder level gives the labels. Otherwise there are
    none. Names that start with a dot are skipped.
    """
    cache = _index_file(root) if index_cache else None
    files = _read_index(cache, root) if cache is not None else None
    if files is None:
        started = time.time()
        files, folders = _scan(root)
        if cache is not None:
            _write_index(cache, files, folders, started)
    if not files:
        expected = ", ".join(f"*{extension}" for extension in EXTENSIONS)
        raise ValueError(
            f"{root}: no images in this folder or those below it; expected files named {expected}"
        )
    labels, names = _class_folders(files)
    return FileSource(root, files, reading, labels, names, "some lie outside of class folders")


def class_folders(root: Path, split: Split | None = None) -> list[str]:
    """List the first level of folders, each of which is a class; also those without an image."""
    return sorted(entry.name for entry in root.glob("[!.]*") if entry.is_dir())


def _class_folders(files: Sequence[str]) -> tuple[Tensor | None, list[str] | None]:
    """Return labels (n,) int64 and class names by the first folder level, or None for both."""
    if any(os.sep not in file for file in files):
        return None, None
    folders = [file.split(os.sep, 1)[0] for file in files]
    names = sorted(set(folders))
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers[folder] for folder in folders], dtype=torch.int64), names


def _scan(root: Path) -> tuple[list[str], dict[str, int]]:
    """List the images below `root`, sorted, and the modification time (ns) of every folder."""
    folders, visited = dict[str, int](), set[tuple[int, int]]()

    def walk(folder: str) -> Iterator[str]:
        status = os.stat(root / folder)
        if (status.st_dev, status.st_ino) in visited:  # a link back to a parent folder
            return
        visited.add((status.st_dev, status.st_ino))
        folders[folder] = status.st_mtime_ns
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = os.path.join(folder, entry.name)
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from walk(name)
                elif os.path.splitext(name)[1].lower() in EXTENSIONS:
                    yield name

    return sorted(walk("")), folders


def _index_file(root: Path) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    return Path(base) / "beit" / "folders" / f"{digest}.npz"


def _read_index(cache: Path, root: Path) -> list[str] | None:
    """Return the cached list, or None if there is none or a folder has changed since."""
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
        return None  # no list, a damaged one, or a folder was removed: scan again


def _write_index(cache: Path, files: list[str], folders: dict[str, int], started: float) -> None:
    if max(folders.values()) / 1e9 > started - _SETTLED_SECONDS:
        return
    version, changed = np.int64(_INDEX_VERSION), np.array(list(folders.values()), dtype=np.int64)
    parts, names = _joined(list(folders)), _joined(files)
    temporary = cache.with_suffix(f".{os.getpid()}.part")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.savez(file, version=version, folders=parts, changed=changed, files=names)
        temporary.replace(cache)
    except OSError as error:  # the cache is optional: a full or read-only disk is no error
        _log.info("the list of files is not cached: %s", error)


def _joined(names: list[str]) -> np.ndarray:
    """Pack names into bytes, separated by zero bytes, which file names cannot contain."""
    return np.frombuffer(b"\0".join(os.fsencode(name) for name in names), dtype=np.uint8)


def _split(packed: np.ndarray) -> list[str]:
    return [os.fsdecode(name) for name in packed.tobytes().split(b"\0")]

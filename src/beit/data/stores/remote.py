"""Files in remote stores: https:// and, through fsspec, s3://, gs:// and others.

They are read in blocks, which a folder on disk keeps for the next epoch and the next runs.
"""

import functools
import importlib
import io
import os
import time
from collections.abc import Callable
from errno import EIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from beit.data.kept import KeptBytes, cache_folder
from beit.data.stores import http
from beit.data.stores.blob import BlobReader

GIGABYTES = "BEIT_REMOTE_GIGABYTES"  # environment variable: bound of the folder of blocks
_USUAL_GIGABYTES = 20.0
_BLOCK = 1 << 18  # bytes: an image or two
_TRIES = 5
_PAUSE = 0.2  # seconds before the second try; twice as long before each further one
_PACKAGES = dict.fromkeys(("s3", "s3a"), "s3fs") | dict.fromkeys(("gs", "gcs"), "gcsfs")

T = TypeVar("T")


def is_remote(name: str) -> bool:
    """Tell whether a name is that of something in a remote store."""
    return "://" in name and not name.startswith(("shapes://", "hf://"))


def is_web(name: str) -> bool:
    """Tell whether a name is one on a web server, which cannot list its files."""
    return name.startswith(("http://", "https://"))


class RemoteBlob:
    """A file in a remote store, see `beit.data.stores.blob.Blob`.

    What cannot be read after a few tries is a ConnectionError that names it: no fault of an image,
    so a training ends and can be resumed.
    """

    path: Path | None = None

    def __init__(self, url: str) -> None:
        """Look at the file. OSError that names it if it cannot be read."""
        self.where, self.name = url, PurePosixPath(urlsplit(url).path).name
        self.size, self.stamp = _tried(url, lambda: http.look(url) if is_web(url) else _look(url))

    def __str__(self) -> str:
        return self.where

    def read(self, start: int, size: int) -> bytes:
        if start + size > self.size:
            raise OSError(EIO, f"{self.name} ends {start + size - self.size} bytes too early")
        if not size:
            return b""
        kept, first = _kept(), start // _BLOCK
        places, blocks = dict[int, Path](), dict[int, bytes | bytearray | None]()
        for number in range(first, (start + size - 1) // _BLOCK + 1):
            places[number] = kept.place(self.where, self.size, self.stamp, _BLOCK, number)
            blocks[number] = kept.read(places[number])
        for run in _runs([number for number, block in blocks.items() if block is None]):
            begin = run[0] * _BLOCK
            data = self._fetch(begin, min((run[-1] + 1) * _BLOCK, self.size))
            for number in run:
                offset = number * _BLOCK - begin
                blocks[number] = data[offset : offset + _BLOCK]
                kept.write(places[number], data[offset : offset + _BLOCK])
        joined = b"".join(block for block in blocks.values() if block is not None)
        return joined[start - first * _BLOCK :][:size]

    def _fetch(self, start: int, end: int) -> bytes:
        url = self.where
        if is_web(url):
            return _tried(url, lambda: http.fetch(url, start, end, self.size, self.stamp))
        return _tried(url, lambda: _fetched(url, start, end))

    def open(self, ahead: int = _BLOCK) -> BinaryIO:
        return io.BufferedReader(BlobReader(self), ahead)


def matching(pattern: str) -> list[str]:
    """List the names in a store that match a pattern with * ? [ ], sorted."""
    store, path = _opened(pattern)
    return sorted(store.unstrip_protocol(found) for found in _tried(pattern, store.glob, path))


def files_below(url: str) -> list[str]:
    """List the files below a folder in a store, relative to it. FileNotFoundError without any."""
    store, path = _opened(url)
    root = path.rstrip("/") + "/"
    found = _tried(url, store.find, root)
    names = [name.lstrip("/").removeprefix(root.lstrip("/")) for name in found]
    if not names:
        raise FileNotFoundError(f"{url}: no such folder, or nothing in it")
    return names


def read_whole(url: str) -> bytes:
    """Read a file."""
    blob = RemoteBlob(url)
    return blob.read(0, blob.size)


def _look(url: str) -> tuple[int, str]:
    store, path = _opened(url)
    about = store.info(path)
    if about.get("type") == "directory" or about.get("size") is None:
        raise http.Refused(f"{url}: a folder; expected a file")
    return int(about["size"]), str(store.ukey(path))


def _fetched(url: str, start: int, end: int) -> bytes:
    store, path = _opened(url)
    data: bytes = store.cat_file(path, start=start, end=end)
    if len(data) != end - start:
        raise OSError(f"{len(data)} bytes came instead of {end - start}")
    return data


def _opened(url: str) -> tuple[Any, str]:
    """Open a store by fsspec, anew in each process. Returns: it, and the path in it."""
    scheme = url.partition("://")[0]
    advice = "expected s3://, gs://, https:// or another store of fsspec"
    if is_web(url):
        raise ValueError(
            f"{url}: a web server does not list its files; name them, as in x-{{0..9}}.tar"
        )
    try:
        fsspec = importlib.import_module("fsspec")
        store, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        install = 'pip install "beit[remote]"' if package else f"install what it needs ({error})"
        raise ValueError(f"{url}: {package or scheme} is not installed: {install}") from error
    except ValueError as error:  # an unknown scheme
        raise ValueError(f"{url}: unknown kind of data; {advice}") from error
    return store, path


def _tried(url: str, read: Callable[..., T], *arguments: Any) -> T:
    """Call a function, several times if it fails for a reason that may pass."""
    lasting = (http.Refused, FileNotFoundError, PermissionError, IsADirectoryError)
    for number in range(_TRIES):
        try:
            return read(*arguments)
        except lasting as error:
            raise type(error)(f"{url}: {error}") from error
        except (ValueError, TypeError):  # of ours, or a mistake in the name
            raise
        except Exception as error:  # every store has errors of its own
            if number + 1 == _TRIES:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ConnectionError(f"{url}: not read in {_TRIES} tries: {reason}") from error
            time.sleep(_PAUSE * 2**number)
    raise AssertionError


def _runs(numbers: list[int]) -> list[list[int]]:
    """Group ascending numbers into runs of neighbours."""
    runs = list[list[int]]()
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


@functools.cache
def _kept() -> KeptBytes:
    text = os.environ.get(GIGABYTES, "")
    try:
        gigabytes = float(text or _USUAL_GIGABYTES)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise ValueError(f"{GIGABYTES} is {text!r}; expected a number of gigabytes, as in 50")
    full = f"what is read beyond {gigabytes:g} GB is fetched again each time; raise {GIGABYTES}"
    folder = cache_folder("remote")
    try:
        return KeptBytes(folder, gigabytes, "parts of remote files", full)
    except OSError as error:
        raise ValueError(
            f"{folder}: no folder for parts of remote files ({error.strerror}); "
            "name another place by XDG_CACHE_HOME"
        ) from error

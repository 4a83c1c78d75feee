"""Images no larger than their views need, and a folder that keeps them for the next runs."""

import functools
import hashlib
import logging
import math
import os
import struct
import time
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from beit.files import replacing, user_path

_log = logging.getLogger(__name__)

DEFAULT_FOLDER = "beit/images"  # in the user's folder of caches
_FORMAT = 1  # raise it when the pixels of shrunk images change
_HEADER = struct.Struct("<4sIII")  # mark, height, width, checksum of the pixels
_MARK = b"beit"
_SLICE = 1 << 26  # bytes that a process writes before it looks again at what the folder holds


class Need(NamedTuple):
    """The least size of an image from which a view loses nothing: area and both sides."""

    area: int
    height: int
    width: int

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) to which an image shrinks; its own if it is small enough."""
        if self.height * width >= self.width * height:  # as `EvalView.scaled`
            size = self.height, max(self.width, self.height * width // height)
        else:
            size = max(self.height, self.width * height // width), self.width
        if size[0] * size[1] < self.area:
            share = math.sqrt(self.area / (height * width))
            size = math.ceil(height * share), math.ceil(width * share)
        return size if size[0] < height and size[1] < width else (height, width)


class ShrunkImages:
    """Shrunk images of files in a folder of at most about `gigabytes`, which several runs share.

    An image is found by its file's path, size and time of change, by how it was read and by what
    was needed of it; so one that was changed is decoded anew. Those unused for longest make room
    for others, but none that this run has used. Each process may exceed the bound by 64 MB. What
    cannot be read back whole counts as missing.
    """

    def __init__(self, folder: str, gigabytes: float) -> None:
        self.folder = user_path(folder) if folder else _default_folder()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{self.folder}: no folder for shrunk images ({error.strerror}); give another one, "
                "as in --data.shrink_cache FOLDER, or keep none on disk: --data.shrink_gigabytes 0"
            ) from error
        self._bound, self._room, self._full = int(gigabytes * 1e9), 0, False
        self._started = time.time()

    def place(self, file: Path, found: os.stat_result, how: object) -> Path:
        """Return the path under which the image of a file is kept that is read in this way."""
        name = os.path.abspath(file)
        what = (_FORMAT, _decoders(), name, found.st_size, found.st_mtime_ns, how)
        key = hashlib.blake2b(repr(what).encode(), digest_size=16).hexdigest()
        return self.folder / key[:2] / key[2:]

    def read(self, path: Path) -> Tensor | None:
        """Read an image (3, H, W) uint8; None if it is not there."""
        try:
            with path.open("rb") as file:
                used = os.fstat(file.fileno()).st_mtime
                mark, height, width, checksum = _HEADER.unpack(file.read(_HEADER.size))
                pixels = bytearray(file.read())
        except (OSError, struct.error):
            return None
        whole = mark == _MARK and len(pixels) == height * width * 3
        if not pixels or not whole or zlib.crc32(pixels) != checksum:
            return None
        if used < self._started:
            _touch(path)
        image = torch.frombuffer(pixels, dtype=torch.uint8).view(height, width, 3)
        return image.permute(2, 0, 1)

    def write(self, path: Path, image: Tensor) -> None:
        """Keep an image (3, H, W) uint8, if there is room."""
        _, height, width = image.shape
        pixels = image.permute(1, 2, 0).contiguous().numpy().tobytes()
        size = _HEADER.size + len(pixels)
        try:
            if self._room < size and not self._full:
                self._make_room(size)
            if self._full:
                return
            path.parent.mkdir(exist_ok=True)
            with replacing(path, shared=True) as temporary, temporary.open("wb") as file:
                file.write(_HEADER.pack(_MARK, height, width, zlib.crc32(pixels)))
                file.write(pixels)
            self._room -= size
        except OSError as error:
            self._full = True
            _log.warning("%s: shrunk images are no longer kept: %s", self.folder, error)

    def _make_room(self, least: int) -> None:
        """Delete what was unused for longest until there is room for a slice, or full."""
        wanted = max(least, min(_SLICE, self._bound // 16))
        kept, total = list[tuple[float, int, str]](), 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    found = os.stat(path)
                except FileNotFoundError:  # deleted by another process
                    continue
                kept.append((found.st_mtime, found.st_size, path))
                total += found.st_size
        for used, size, path in sorted(kept):
            if total + wanted <= self._bound or used >= self._started:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        self._room = min(wanted, self._bound - total)
        if self._room < least:
            self._full = True
            text = "%s is full: the images beyond %.1f GB are decoded for every view; %s"
            _log.warning(text, self.folder, self._bound / 1e9, "raise --data.shrink_gigabytes")


class Shrinking(NamedTuple):
    """How a source shrinks its images, and where it keeps those of files; None for nowhere."""

    need: Need
    images: ShrunkImages | None = None


def _default_folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or user_path("~/.cache")
    return Path(caches, DEFAULT_FOLDER)


@functools.cache
def _decoders() -> list[str]:
    """Return the versions of the libraries that make the pixels."""
    found = []
    for name in ("pillow", "torch", "torchcodec"):
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("")
    return found


def _touch(path: Path) -> None:
    """Note that an image was used."""
    try:
        os.utime(path)
    except OSError:
        pass  # deleted by another process, or a folder that is only read

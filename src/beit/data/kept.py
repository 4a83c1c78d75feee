"""A folder of bounded size that keeps bytes for the next runs."""

import hashlib
import logging
import os
import struct
import time
import zlib
from pathlib import Path

from beit.files import replacing, user_path

_log = logging.getLogger(__name__)

_HEADER = struct.Struct("<4sI")  # mark, checksum of the bytes
_MARK = b"beit"
_SLICE = 1 << 26  # bytes that a process writes before it looks again at what the folder holds


class KeptBytes:
    """Bytes by name in a folder of at most about `gigabytes`, which several runs share.

    Those unused for longest make room for others, but none that this run has used. Each process may
    exceed the bound by 64 MB. What cannot be read back whole counts as missing.
    """

    def __init__(self, folder: Path, gigabytes: float, what: str, when_full: str) -> None:
        """Make the folder; OSError if that cannot be.

        Args:
            what: is kept, for messages
            when_full: says what happens then and what to do, after "the folder is full: "
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._what, self._when_full = folder, what, when_full
        self._bound, self._room = int(gigabytes * 1e9), 0
        self._full = not self._bound
        self._started = time.time()

    def place(self, *key: object) -> Path:
        """Return the path under which the bytes of a key are kept."""
        name = hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / name[2:]

    def read(self, path: Path) -> bytearray | None:
        """Read bytes; None if they are not there."""
        try:
            with path.open("rb") as file:
                used = os.fstat(file.fileno()).st_mtime
                mark, checksum = _HEADER.unpack(file.read(_HEADER.size))
                content = bytearray(file.read())
        except (OSError, struct.error):
            return None
        if mark != _MARK or zlib.crc32(content) != checksum:
            return None
        if used < self._started:
            _touch(path)
        return content

    def write(self, path: Path, content: bytes) -> None:
        """Keep bytes, if there is room."""
        size = _HEADER.size + len(content)
        try:
            if self._room < size and not self._full:
                self._make_room(size)
            if self._full:
                return
            path.parent.mkdir(exist_ok=True)
            with replacing(path, shared=True) as temporary, temporary.open("wb") as file:
                file.write(_HEADER.pack(_MARK, zlib.crc32(content)))
                file.write(content)
            self._room -= size
        except OSError as error:
            self._full = True
            _log.warning("%s: %s are no longer kept: %s", self.folder, self._what, error)

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
            _log.warning("%s is full: %s", self.folder, self._when_full)


def cache_folder(name: str) -> Path:
    """Return this package's folder `name` in the user's folder of caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or user_path("~/.cache"), "beit", name)


def _touch(path: Path) -> None:
    """Note that bytes were used."""
    try:
        os.utime(path)
    except OSError:
        pass  # deleted by another process, or a folder that is only read

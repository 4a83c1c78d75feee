"""The bytes of a file, on disk or in a remote store, read at any offset."""

import io
import os
import stat
from errno import EIO
from pathlib import Path
from typing import BinaryIO, Protocol

from beit.files import at_once, user_path


class Blob(Protocol):
    """Bytes that any process and thread can read.

    Attributes:
        where: the file as users name it
        name: the last part of that
        size: in bytes
        stamp: another one if the file has changed
        path: on disk; None for a remote file
    """

    where: str
    name: str
    size: int
    stamp: str
    path: Path | None

    def read(self, start: int, size: int) -> bytes:
        """Read so many bytes. OSError if there are fewer, or the file has changed since."""
        ...

    def open(self, ahead: int = 1 << 18) -> BinaryIO:
        """Open a file object; if the file is remote, it reads so many bytes ahead."""
        ...


class LocalBlob:
    """A file on disk. It is opened at each read, as workers must not share a position."""

    def __init__(self, name: str | Path) -> None:
        """Look at the file. OSError if it cannot be, ValueError if it is not a regular file."""
        self.path: Path | None = user_path(name).absolute()
        self.where, self.name = str(name), self.path.name
        found = os.stat(self.path)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{name}: not a regular file")
        self.size, self.stamp = found.st_size, str(found.st_mtime_ns)

    def read(self, start: int, size: int) -> bytes:
        assert self.path is not None
        with open(self.path, "rb", buffering=0, opener=at_once) as file:
            found = os.fstat(file.fileno())
            if (found.st_size, str(found.st_mtime_ns)) != (self.size, self.stamp):
                raise OSError(EIO, f"{self.name} has changed since it was opened; start again")
            file.seek(start)
            data = file.read(size)
        if len(data) < size:
            raise OSError(EIO, f"{self.name} ends {size - len(data)} bytes too early")
        return data

    def open(self, ahead: int = 0) -> BinaryIO:
        assert self.path is not None
        return open(self.path, "rb")


class BlobReader(io.RawIOBase):
    """A blob as a file object, without a buffer."""

    def __init__(self, blob: Blob) -> None:
        self._blob, self._place = blob, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._blob.size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        size = max(0, min(len(buffer), self._blob.size - self._place))
        buffer[:size] = self._blob.read(self._place, size) if size else b""
        self._place += size
        return size

"""Image files on disk."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from beit.data.pixels.reduced import decode_reduced
from beit.data.source import UnreadableImage
from beit.data.spec import AS_IT_IS, Reading
from beit.files import at_once, user_path

MAX_FILE_BYTES = 1 << 29  # larger files are not read
# The machine is short of something, or a network file system is gone.
_NO_FAULT = (
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
)


def no_fault(error: OSError) -> bool:
    """Tell whether an error is not the file's fault: the machine's, or that of a connection."""
    return error.errno in _NO_FAULT or isinstance(error, ConnectionError)


def read_image(path: Path, name: str, reading: Reading = AS_IT_IS) -> Tensor:
    """Read an image file: (c, H, W) uint8. Raises UnreadableImage with the `name`.

    OSError: not the file's fault, such as too many open files.
    """
    need, kept = reading.shrinking or (None, None)
    how = reading.range, reading.bands, need
    if kept is not None:
        with _its_fault(name):
            image = kept.read(kept.place(path, path.stat(), how))
        if image is not None:
            return image
    data, found = read_file(path, name)
    image, shrunk = decode_reduced(data, name, reading)
    if kept is not None and shrunk:
        kept.write(kept.place(path, found, how), image)
    return image


def read_file(path: Path, name: str) -> tuple[bytes, os.stat_result]:
    """Read a file whole, and look at it. Raises as `read_image`."""
    with _its_fault(name), open(path, "rb", opener=at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise UnreadableImage(name, "not a regular file, but a pipe or device")
        if found.st_size > MAX_FILE_BYTES:
            reason = f"{found.st_size} bytes, at most {MAX_FILE_BYTES} are read"
            raise UnreadableImage(name, reason)
        return file.read(), found


@contextmanager
def _its_fault(name: str) -> Iterator[None]:
    """Raise UnreadableImage for errors that are the file's fault."""
    try:
        yield
    except OSError as error:
        if no_fault(error):
            raise
        raise UnreadableImage(name, error.strerror or str(error)) from error


class FileSource:
    """Image files in the order of `names`, relative to `root`; their folders can be classes."""

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        reading: Reading = AS_IT_IS,
        labels: Tensor | None = None,
        class_names: list[str] | None = None,
        why_unlabelled: str = "files named one by one have none",
    ) -> None:
        self._root, self._names, self._reading = root, FileNames(names), reading
        self.labels, self.class_names = labels, class_names
        self.why_unlabelled = why_unlabelled if labels is None else ""

    def __len__(self) -> int:
        return len(self._names)

    def image(self, index: int) -> Tensor:
        return read_image(self.file(index), self.name(index), self._reading)

    def encoded(self, index: int) -> bytes:
        return read_file(self.file(index), self.name(index))[0]

    def name(self, index: int) -> str:
        return self._names[index]

    def file(self, index: int) -> Path:
        return user_path(self._root / self.name(index))


class FileNames:
    """File names in one block of bytes.

    A million str objects would be copied to each forked worker, because of their reference counts.
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

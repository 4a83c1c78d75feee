"""What has image files inside it: an archive, or a folder or list of a remote store."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from beit.data.archives.tar_index import about_index, read_index
from beit.data.folders.image_files import MAX_FILE_BYTES, FileNames, no_fault
from beit.data.source import UnreadableImage
from beit.data.stores.blob import Blob
from beit.data.stores.remote import read_whole


class Files(Protocol):
    """Encoded images that any process can read; `read` raises UnreadableImage.

    `where` names the whole to users, `blob` is the file that holds all of it, if there is one.
    """

    where: str
    blob: Blob | None

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def read(self, index: int) -> bytes: ...


class TarFiles:
    """The images of a tar shard, sorted by name, through its index."""

    def __init__(self, blob: Blob) -> None:
        """Read or build the index. ValueError that names the shard if it cannot be read."""
        self.where = blob.where
        self.blob: Blob | None = blob
        self.table = read_index(blob)
        self.about: dict[str, Any] = about_index(self.table)
        self._names = self.column("name")
        self._start, self._size = (np.from_dlpack(self.column(name)) for name in ("start", "size"))

    def __len__(self) -> int:
        return len(self._names)

    def column(self, name: str) -> Any:
        """Return a column of the index, a pyarrow array that stays mapped into memory."""
        return self.table.column(name).chunk(0)

    def name(self, index: int) -> str:
        return os.fsdecode(self._names[index].as_py())

    def read(self, index: int) -> bytes:
        start, size = int(self._start[index]), int(self._size[index])
        if size > MAX_FILE_BYTES:
            raise UnreadableImage(
                self.name(index), f"{size} bytes, at most {MAX_FILE_BYTES} are read"
            )
        assert self.blob is not None
        try:
            return self.blob.read(start, size)
        except OSError as error:
            if no_fault(error):
                raise
            raise UnreadableImage(self.name(index), error.strerror or str(error)) from error


class RemoteFiles:
    """Image files in a remote store, named relative to a folder; in full if that is empty."""

    blob: Blob | None = None

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        self.where, self._folder, self._names = folder, folder, FileNames(names)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int) -> bytes:
        try:
            return read_whole(self._folder + self.name(index))
        except OSError as error:
            if no_fault(error):
                raise
            raise UnreadableImage(self.name(index), str(error)) from error


def file_path(files: Files) -> Path | None:
    """Return the file on disk that holds all images."""
    return None if files.blob is None else files.blob.path

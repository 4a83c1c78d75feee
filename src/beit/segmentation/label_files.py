"""Image files below a folder, on disk or inside a zip file that is not unpacked."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Protocol

import numpy as np

from beit.data.decoding import UnreadableImage
from beit.data.image_files import EXTENSIONS, MAX_FILE_BYTES, FileNames, open_folder

Place = Path | zipfile.Path  # a folder on disk or inside a zip

_LOCAL_HEADER = 30  # bytes before a member's name (APPNOTE 4.3.7)
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_ENCRYPTED = 1  # a flag bit


class Files(Protocol):
    """The image files below a folder, sorted; any process may read them in any order."""

    where: str

    def __len__(self) -> int:
        """Return the number of files."""

    def name(self, index: int) -> str:
        """Return a file's path below the folder."""

    def read(self, index: int) -> bytes:
        """Read one file. Raises UnreadableImage."""


def open_place(spec: str) -> Place:
    """Open a folder or zip file. Raises ValueError or FileNotFoundError naming it."""
    path = Path(spec).expanduser()
    if path.is_dir():
        return path
    if not path.exists():
        raise FileNotFoundError(f"{spec}: no such file or folder; expected a folder or a .zip")
    try:
        with zipfile.ZipFile(path) as archive:
            return zipfile.Path(archive)  # lists its members even after closing
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{spec}: neither a folder nor a readable zip file: {error}") from error


def open_files(place: Place) -> Files:
    """List the image files of a folder. Raises ValueError naming it if there are none."""
    if isinstance(place, Path):
        return FolderFiles(place)
    return ZippedFiles(Path(str(place.root.filename)), place.at, place.root.infolist())


def read_text(place: Place) -> str:
    """Read a text file in UTF-8."""
    if isinstance(place, Path):
        return place.read_text(encoding="utf-8")
    with zipfile.ZipFile(str(place.root.filename)) as archive:
        return archive.read(place.at).decode("utf-8")


class FolderFiles:
    """Files of a folder on disk."""

    def __init__(self, root: Path) -> None:
        self.where = str(root)
        self._root, self._source = root, open_folder(root)

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def read(self, index: int) -> bytes:
        path = self._root / self.name(index)
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise UnreadableImage(str(path), error.strerror or str(error)) from error
        if len(data) > MAX_FILE_BYTES:
            raise UnreadableImage(str(path), f"more than {MAX_FILE_BYTES} bytes")
        return data


class ZippedFiles:
    """Members of a zip file, read without unpacking it.

    The list of members is read once. Every process opens the file itself, because forked workers
    would share one file position.
    """

    def __init__(self, path: Path, folder: str, members: list[zipfile.ZipInfo]) -> None:
        self.where = f"{path}/{folder}".rstrip("/")
        self._path = path.resolve()
        images = sorted(
            (member.filename.removeprefix(folder), member)
            for member in members
            if member.filename.startswith(folder) and _is_image(member.filename)
        )
        if not images:
            raise ValueError(
                f"{self.where}: no images in this folder of the zip or below it; expected "
                "files named " + ", ".join(f"*{extension}" for extension in EXTENSIONS)
            )
        self._names = FileNames([name for name, _ in images])
        self._parts = np.array(  # numbers: forks would copy 40,000 objects
            [
                (m.header_offset, m.compress_size, m.file_size, m.compress_type, m.CRC, m.flag_bits)
                for _, m in images
            ],
            dtype=np.int64,
        )
        self._process, self._reading = -1, Lock()
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int) -> bytes:
        start, packed, size, method, checksum, flags = map(int, self._parts[index])
        name = f"{self.where}/{self.name(index)}"
        if method not in (_STORED, _DEFLATED) or flags & _ENCRYPTED:
            raise UnreadableImage(name, "encrypted, or compressed by a method other than deflate")
        if max(size, packed) > MAX_FILE_BYTES:
            raise UnreadableImage(name, f"{size} bytes, at most {MAX_FILE_BYTES} are read")
        try:
            with self._reading:
                file = self._own_file()
                file.seek(start)
                header = file.read(_LOCAL_HEADER)
                name_and_extra = header[26:28], header[28:30]
                file.seek(sum(int.from_bytes(n, "little") for n in name_and_extra), os.SEEK_CUR)
                data = file.read(packed)
            if method == _DEFLATED:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except (OSError, zlib.error) as error:
            raise UnreadableImage(name, str(error)) from error
        if header[:4] != b"PK\3\4" or len(data) != size or zlib.crc32(data) != checksum:
            raise UnreadableImage(name, "damaged in the zip (its checksum differs)")
        return data

    def _own_file(self) -> BinaryIO:
        if self._process != os.getpid():
            self._close()  # in this fork only; the parent keeps its own
            self._process, self._file = os.getpid(), open(self._path, "rb")
        assert self._file is not None
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_process": -1, "_file": None, "_reading": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _reading=Lock())


def _is_image(name: str) -> bool:
    """Tell whether a member is an image outside hidden folders and those that macOS adds."""
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and os.path.splitext(name)[1].lower() in EXTENSIONS

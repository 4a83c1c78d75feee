"""Image files inside a zip, read without unpacking it."""

import os
import zipfile
import zlib
from collections.abc import Iterable
from operator import attrgetter

import numpy as np

from beit.data.folders.image_files import MAX_FILE_BYTES, FileNames, no_fault
from beit.data.folders.listing import Listing, is_system, listed
from beit.data.source import UnreadableImage
from beit.data.stores.blob import Blob

_HEADER = 30  # bytes before a member's name (APPNOTE 4.3.7)
_EXTRA = 512  # bytes between the name and the data that are read with both; usually there are 28
_ENCRYPTED = 1  # a flag bit
_PARTS = attrgetter(
    *("header_offset", "compress_size", "file_size", "compress_type", "CRC", "flag_bits")
)


class ZippedFiles:
    """The image files of a folder inside a zip, sorted; `read` raises UnreadableImage."""

    def __init__(self, blob: Blob, members: list[zipfile.ZipInfo], folder: str = "") -> None:
        """List the files below a `folder`, which ends in /. ValueError if there are no images."""
        self.where = f"{blob.where}/{folder}".rstrip("/")
        self.blob: Blob | None = blob
        inside = {
            name.removeprefix(folder): member
            for member in members
            if (name := member.filename).startswith(folder) and name and not name.endswith("/")
        }
        self.listing: Listing = listed(inside, self.where)
        self._names = FileNames(self.listing.images)
        # Numbers, because forks would copy 40,000 objects.
        self._parts = np.array([_PARTS(inside[name]) for name in self.listing.images], np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int) -> bytes:
        assert self.blob is not None
        start, packed, size, method, checksum, flags = map(int, self._parts[index])
        name = f"{self.where}/{self.name(index)}"
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or flags & _ENCRYPTED:
            raise UnreadableImage(name, "encrypted, or compressed by a method other than deflate")
        if max(size, packed) > MAX_FILE_BYTES:
            raise UnreadableImage(name, f"{size} bytes, at most {MAX_FILE_BYTES} are read")
        try:
            most = _HEADER + len(os.fsencode(name)) + _EXTRA + packed
            found = self.blob.read(start, max(0, min(most, self.blob.size - start)))
            begin = _HEADER + sum(int.from_bytes(found[i : i + 2], "little") for i in (26, 28))
            data = found[begin : begin + packed]
            if len(data) < packed and begin + packed > most:
                data = self.blob.read(start + begin, packed)
            if method == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except (OSError, zlib.error) as error:
            if isinstance(error, OSError) and no_fault(error):
                raise
            raise UnreadableImage(name, getattr(error, "strerror", "") or str(error)) from error
        if found[:4] != b"PK\3\4" or len(data) != size or zlib.crc32(data) != checksum:
            raise UnreadableImage(name, "damaged in the zip (its checksum differs)")
        return data


def zip_members(blob: Blob) -> list[zipfile.ZipInfo]:
    """List the members of a zip. ValueError that names it if it is none, or is cut."""
    try:
        with blob.open() as file, zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"{blob.where}: not a readable zip file: {error}") from error


def wrapping(archive: str, names: Iterable[str]) -> str:
    """Return the folder that holds all files of an archive if it has its name: fruit/ in fruit.zip.

    Empty if there is none; what systems add does not count.
    """
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    top = archive.rpartition(".")[0]
    return f"{top}/" if {name for name in tops if not is_system(name)} == {top} else ""

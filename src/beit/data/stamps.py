"""When the files of images were changed last, to notice images that were replaced."""

from collections.abc import Iterator
from pathlib import Path

from beit.data.source import Named, file_of


def stamps(source: Named) -> Iterator[str]:
    """Yield size and time of change of the file that contains each image; empty for drawn ones."""
    earlier, stamp = None, ""
    for index in range(len(source)):
        file = file_of(source, index)
        if file != earlier:  # an archive has many images
            earlier, stamp = file, "" if file is None else _stamp(file)
        yield stamp


def _stamp(file: Path) -> str:
    try:
        found = file.stat()
    except OSError as error:  # it is named as unreadable when it is read
        return str(error.strerror)
    return f"{found.st_size} {found.st_mtime_ns}"

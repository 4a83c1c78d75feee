"""Lists of image files."""

import os
from pathlib import Path

from beit.data.archives.files import RemoteFiles
from beit.data.archives.source import FilesSource
from beit.data.folders.image_files import FileSource
from beit.data.folders.listing import say_once
from beit.data.spec import AS_IT_IS, Reading
from beit.data.stores.remote import is_remote
from beit.files import user_path


def read_list(
    data: bytes, name: str, reading: Reading = AS_IT_IS, base: str = ""
) -> FileSource | FilesSource:
    """Read a list of image files, one per line or separated by zero bytes as by `find -print0`.

    Order and repetitions are kept; blank lines are skipped, but counted in line numbers. Lists in
    UTF-16 are recognised. Paths can be those of remote files, all of them; in a remote list they
    are relative to its folder, `base`. An empty list or a line that names a folder raises
    ValueError, a missing file on disk FileNotFoundError; the message gives the `name` of the list
    and the line number.
    """
    if encoding := _utf16(data):
        data = data.decode(encoding, errors="replace").encode()
    end, unit = (b"\0", "entry") if b"\0" in data else (b"\n", "line")
    paths = list[str]()
    lines = data.removeprefix(b"\xef\xbb\xbf").removesuffix(end).split(end)  # no byte order mark
    for number, line in enumerate(lines, start=1):
        if line.strip():
            path = os.fsdecode(line if end == b"\0" else line.removesuffix(b"\r"))
            path = f"{base}/{path}" if base and not is_remote(path) else path
            if paths and is_remote(path) != is_remote(paths[0]):
                raise ValueError(
                    f"{name}, {unit} {number}: {path}: expected only remote files or none"
                )
            if not is_remote(path):
                check_file(path, f"{name}, {unit} {number}: ")
            paths.append(path)
    if not paths:
        raise ValueError(f"{name}: the list is empty; expected one image path a line")
    blank, repeated = len(lines) - len(paths), len(paths) - len(set(paths))
    counts = ((len(paths), "images"), (repeated, "of them repeated"), (blank, f"blank {unit}"))
    say_once(f"{name}: {', '.join(f'{count} {what}' for count, what in counts if count)}")
    if is_remote(paths[0]):
        return FilesSource([RemoteFiles("", paths)], reading)
    return FileSource(Path(), paths, reading)  # relative to the working directory


def check_file(path: str, where: str = "") -> None:
    """Raise FileNotFoundError or ValueError, starting with `where`, if the path is not a file."""
    file = user_path(path)
    if os.path.isdir(file):
        raise ValueError(f"{where}{path} is a folder; a list names image files")
    if not os.path.exists(file):  # False for a name that is too long
        advice = "paths are relative to the working directory"
        raise FileNotFoundError(f"{where}{path}: no such file; {advice}")


def _utf16(data: bytes) -> str:
    """Return the encoding of a list in UTF-16; empty for others.

    Without a byte order mark, every second byte of it is zero where letters are Latin. Zero bytes
    that end paths, as by `find -print0`, are rarer: a path of an image has five bytes or more.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    high, low = data[::2].count(0), data[1::2].count(0)
    if len(data) % 2 or bool(high) == bool(low) or high + low <= len(data) / 4:
        return ""
    return "utf-16-be" if high else "utf-16-le"

"""Lists of image files."""

import os
from pathlib import Path

from beit.data.image_files import FileSource
from beit.data.spec import AS_IT_IS, Reading


def read_list(data: bytes, name: str, reading: Reading = AS_IT_IS) -> FileSource:
    """Read a list of image files, one a line or separated by zero bytes as by `find -print0`.

    Order and repetitions are kept; blank lines are skipped, but counted in line numbers. An empty
    list or a line that names a folder raises ValueError, a missing file FileNotFoundError; the
    message gives the `name` of the list and the line number.
    """
    end, unit = (b"\0", "entry") if b"\0" in data else (b"\n", "line")
    paths = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(end), start=1):  # no BOM
        if line.strip():
            path = os.fsdecode(line if end == b"\0" else line.removesuffix(b"\r"))
            check_file(path, f"{name}, {unit} {number}: ")
            paths.append(path)
    if not paths:
        raise ValueError(f"{name}: the list is empty; expected one image path a line")
    return FileSource(Path(), paths, reading)  # relative to the working directory


def check_file(path: str, where: str = "") -> None:
    """Raise FileNotFoundError or ValueError, starting with `where`, if the path is not a file."""
    file = Path(path).expanduser()
    if file.is_dir():
        raise ValueError(f"{where}{path} is a folder; a list names image files")
    if not file.exists():
        advice = "paths are relative to the working directory"
        raise FileNotFoundError(f"{where}{path}: no such file; {advice}")

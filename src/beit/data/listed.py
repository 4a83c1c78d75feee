"""Image files from a list, in its order and with its repetitions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from beit.data.folder import FileNames, read_image


class ListedSource:
    """The files of a list, without labels. Paths are relative to the working directory."""

    labels: Tensor | None = None
    class_names: list[str] | None = None

    def __init__(self, paths: Sequence[str]) -> None:
        self._names = FileNames(paths)

    def __len__(self) -> int:
        return len(self._names)

    def image(self, index: int) -> Tensor:
        name = self.name(index)
        return read_image(Path(name).expanduser(), name)

    def name(self, index: int) -> str:
        return self._names[index]


def read_list(data: bytes, name: str) -> ListedSource:
    """Read a list of image files, one a line or separated by zero bytes as by `find -print0`.

    Args:
        data: content of the list; blank lines are skipped, but counted in line numbers
        name: name of the list in error messages

    Raises:
        ValueError: the list is empty, or a line names a folder.
        FileNotFoundError: the file of a line does not exist; the message gives the line number.
    """
    end, unit = (b"\0", "entry") if b"\0" in data else (b"\n", "line")
    lines = data.removeprefix(b"\xef\xbb\xbf").split(end)  # a UTF-8 byte order mark
    paths = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path = os.fsdecode(line if end == b"\0" else line.removesuffix(b"\r"))
        check_file(path, f"{name}, {unit} {number}: ")
        paths.append(path)
    if not paths:
        raise ValueError(f"{name}: the list is empty; expected one image path a line")
    return ListedSource(paths)


def check_file(path: str, where: str = "") -> None:
    """Raise FileNotFoundError or ValueError, starting with `where`, if the path is not a file."""
    file = Path(path).expanduser()
    if file.is_dir():
        raise ValueError(f"{where}{path} is a folder; a list names image files")
    if not file.exists():
        raise FileNotFoundError(
            f"{where}{path}: no such file; paths are relative to the working directory"
        )

"""Image files by name: in the order of a list, each as often as it stands there."""

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
    """Read a list of image files: one a line, or ended by zero bytes as by `find -print0`.

    Args:
        data: the list; blank lines count as lines and name nothing
        name: what to call the list in errors

    Raises:
        ValueError: the list is empty, or one of its lines names a folder.
        FileNotFoundError: one of its lines names no file; the message has its number.
    """
    end, unit = (b"\0", "entry") if b"\0" in data else (b"\n", "line")
    lines = data.removeprefix(b"\xef\xbb\xbf").split(end)  # editors may mark UTF-8 by three bytes
    paths = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path = os.fsdecode(line if end == b"\0" else line.removesuffix(b"\r"))
        check_file(path, f"{name}, {unit} {number}: ")
        paths.append(path)
    if not paths:
        raise ValueError(f"{name}: the list is empty; expected a path of an image a line")
    return ListedSource(paths)


def check_file(path: str, where: str = "") -> None:
    """Raise FileNotFoundError or ValueError, in words that begin with `where`, if it is no file."""
    file = Path(path).expanduser()
    if file.is_dir():
        raise ValueError(f"{where}{path} is a folder; a list names image files")
    if not file.exists():
        raise FileNotFoundError(
            f"{where}{path}: no such file; paths start at the working directory"
        )

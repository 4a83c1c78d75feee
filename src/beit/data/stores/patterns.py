"""Names with patterns: braces, as in train-{000..146}.tar, and * ? [ ]; each expands to files."""

import glob
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from beit.data.stores.blob import Blob, LocalBlob
from beit.data.stores.remote import RemoteBlob, is_remote, is_web, matching
from beit.files import user_path

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_MOST = 1_000_000  # names of one pattern
_CONNECTIONS = 16


def expanded(name: str) -> list[str] | None:
    """Return the names that a pattern stands for, in order; None if it has none.

    Names in braces are those that are written, whether they exist or not. ValueError if braces
    give too many names or a pattern is one of a web server, which lists no files.
    """
    if os.path.exists(user_path(name)):
        return None
    names = _without_braces(name)
    if not any(map(_has_magic, names)):
        return None if names == [name] else names
    return [found for each in names for found in (_matching(each) if _has_magic(each) else [each])]


def open_blob(name: str) -> Blob:
    """Look at a file. FileNotFoundError or another OSError that names it."""
    if is_remote(name):
        return RemoteBlob(name)
    try:
        return LocalBlob(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: no such file") from error


def open_blobs(names: list[str]) -> list[Blob]:
    """Look at files, remote ones several at a time."""
    if not any(map(is_remote, names)):
        return list(map(open_blob, names))
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        return list(pool.map(open_blob, names))


def ending_of(name: str) -> str:
    """Return the ending of a file in lower case: .tar, but .tar.gz for such an archive."""
    path = name.partition("?")[0] if is_web(name) else name
    suffixes = PurePosixPath(path.lower()).suffixes
    return "".join(suffixes[-2:]) if ".tar" in suffixes[-2:-1] else "".join(suffixes[-1:])


def _without_braces(name: str) -> list[str]:
    names = [name]
    while braces := _BRACES.search(names[0]):
        first, last, words = braces.groups()
        if words is None:
            count = abs(int(last) - int(first)) + 1
            if count * len(names) > _MOST:
                raise ValueError(f"{name}: {count} names in braces; expected at most {_MOST}")
            padded = any(number.startswith("0") for number in (first, last))
            width = max(len(first), len(last)) if padded else 0
            step = 1 if int(first) <= int(last) else -1
            numbers = range(int(first), int(last) + step, step)
            parts = [str(number).zfill(width) for number in numbers]
        else:
            parts = words.split(",")
        names = [head + part + tail for head, tail in map(_around, names) for part in parts]
    return names


def _around(name: str) -> tuple[str, str]:
    """Return what stands before and behind the first braces."""
    braces = _BRACES.search(name)
    assert braces
    return name[: braces.start()], name[braces.end() :]


def _has_magic(name: str) -> bool:
    if is_web(name):  # ? begins the query of an address
        return "*" in name
    return glob.has_magic(name)


def _matching(pattern: str) -> list[str]:
    if is_remote(pattern):
        return matching(pattern)
    folder, last = os.path.split(user_path(pattern))
    if os.path.isdir(folder):  # whose name may have brackets
        folder = glob.escape(folder)
    return sorted(glob.glob(os.path.join(folder, last)))

"""Downloads that go on where they were cut off, and are checked before they get their name."""

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

from beit.files import PARTIAL_SUFFIX
from beit.weights.manifest import sha256_of

ANSWER_SECONDS = 20  # without a byte for so long, a try has failed
PIECE = 1 << 20
WHOLE = 416  # what a server answers to one who has all of it: there is no such range


def download(url: str, path: Path, sha256: str | None = None) -> None:
    """Fetch `url` into `path`, which is there whole and checked, or not at all.

    What arrives grows in `NAME.partial` beside it. A cut connection is taken up again for as long
    as that brings more; what is left at the end of that is taken up by the next call. Processes
    that want the same file wait for the first of them.

    (torch.hub cannot resume, and in huggingface_hub that is internal and changes by release.)

    Args:
        sha256: first digits of the checksum that it must have

    Raises:
        OSError: it could not be fetched; what came of it is kept.
        ValueError: it has another checksum, and was removed.
    """
    from filelock import FileLock  # which torch brings along

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.is_file():
            return
        print(f"fetching {url} into {path}", file=sys.stderr, flush=True)
        _complete(url, partial)
        found = sha256_of(partial)
        right = sha256 is None or found.startswith(sha256)
        if right:
            partial.replace(path)
        else:
            partial.unlink()
        _version_of(partial).unlink(missing_ok=True)
    if not right:
        raise ValueError(
            f"{url} does not give the published {path.name}: its sha256 begins with "
            f"{found[: len(sha256 or '')]} instead of {sha256}; it was removed"
        )


def _complete(url: str, partial: Path) -> None:
    """Fetch what is missing, again and again as long as a try brings something."""
    while True:
        before = _size(partial)
        try:
            _continue(url, partial)
            return
        except urllib.error.HTTPError:
            raise
        except (OSError, HTTPException) as error:
            if _size(partial) <= before:
                reason = getattr(error, "reason", error)  # an URLError wraps it
                raise OSError(str(reason) or repr(reason)) from error


def _continue(url: str, partial: Path) -> None:
    """Fetch what is missing of the version that was begun, or all of another."""
    have, version = _size(partial), _version_of(partial)
    headers = {"User-Agent": "beit"}
    if have and version.is_file():
        headers |= {"Range": f"bytes={have}-", "If-Range": version.read_text(encoding="latin-1")}
    request = urllib.request.Request(url, headers=headers)
    try:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=ANSWER_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == WHOLE and error.headers["Content-Range"] == f"bytes */{have}":
            return
        raise
    with answer:
        resumed = answer.status == 206
        part = answer.headers["Content-Range"] or "none named"
        if resumed and not part.startswith(f"bytes {have}-"):
            raise OSError(f"asked for bytes from {have}, got {part}")
        _note_version(answer, version)
        length = answer.headers["Content-Length"]
        total = None if length is None else int(length) + (have if resumed else 0)
        with partial.open("ab" if resumed else "wb") as file, _shown(partial, total) as show:
            while piece := answer.read(PIECE):
                file.write(piece)
                show(file)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(partial) != total:
        raise OSError(f"the connection was cut after {_size(partial)} of {total} bytes")


def _note_version(answer: HTTPResponse, version: Path) -> None:
    """Keep the mark by which the server knows this version again, or nothing, if it has none."""
    tag = answer.headers["ETag"] or "W/"
    mark = answer.headers["Last-Modified"] if tag.startswith("W/") else tag  # weak ones do not do
    if mark:
        version.write_text(mark, encoding="latin-1")
    else:
        version.unlink(missing_ok=True)


@contextmanager
def _shown(partial: Path, total: int | None) -> Iterator[Callable[[BinaryIO], None]]:
    """Show on a terminal how much is there."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, TransferSpeedColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task(partial.stem, total=total)
        yield lambda file: progress.update(task, completed=file.tell())


def _version_of(partial: Path) -> Path:
    return partial.with_name(f".{partial.name}.version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0

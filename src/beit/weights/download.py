"""Downloads that resume after a broken connection and are checked before they get their name."""

import os
import shutil
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from beit.files import PARTIAL_SUFFIX
from beit.weights.manifest import sha256_of

TIMEOUT_SECONDS = 20  # without a byte for this long, an attempt has failed
CHUNK_BYTES = 1 << 20


def download(url: str, path: Path, sha256: str | None = None) -> None:
    """Download `url` to `path`: the complete, checked file, or none.

    Data is appended to `NAME.partial` beside `path`. A broken connection is resumed as long as each
    attempt brings new bytes; after that OSError is raised, and the next call resumes. Processes
    that need the same file wait for the first one. `sha256` has the first digits of the checksum;
    a file with another one is deleted.

    (torch.hub does not resume. huggingface_hub's http_get is internal and does not notice that a
    file changed on the server between two attempts.)
    """
    from filelock import FileLock  # a dependency of torch

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.is_file():
            return
        print(f"fetching {url} into {path}", file=sys.stderr, flush=True)
        _retry(url, partial)
        _version_file(partial).unlink(missing_ok=True)
        expected = sha256 or ""
        checksum = sha256_of(partial)[: len(expected)]
        if checksum != expected:
            partial.unlink()
            raise ValueError(
                f"{url} does not give the published {path.name}: its sha256 begins with "
                f"{checksum} instead of {expected}; the file was deleted"
            )
        partial.replace(path)


def _retry(url: str, partial: Path) -> None:
    """Download the missing bytes; try again as long as an attempt brings any."""
    while True:
        before = _size(partial)
        try:
            _resume(url, partial)
            return
        except urllib.error.HTTPError:
            raise
        except (OSError, HTTPException) as error:
            if _size(partial) <= before:
                reason = getattr(error, "reason", error)  # a URLError wraps it
                raise OSError(str(reason) or repr(reason)) from error


def _resume(url: str, partial: Path) -> None:
    """Append the missing bytes; start again if the file on the server has changed."""
    from rich.console import Console
    from rich.progress import wrap_file

    start, version = _size(partial), _version_file(partial)
    headers = {"User-Agent": "beit"}
    if start and version.is_file():
        headers |= {"Range": f"bytes={start}-", "If-Range": version.read_text(encoding="latin-1")}
    request = urllib.request.Request(url, headers=headers)
    try:
        response: Any = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        # 416, range not satisfiable: there is nothing after `start`, the file is complete.
        if error.code == 416 and error.headers["Content-Range"] == f"bytes */{start}":
            return
        raise
    with response:
        resumed = response.status == 206
        content_range = response.headers["Content-Range"] or "no Content-Range"
        if resumed and not content_range.startswith(f"bytes {start}-"):
            raise OSError(f"requested bytes from {start}, got {content_range}")
        # The validator of this version, for If-Range, which does not accept weak ETags.
        tag = response.headers["ETag"] or "W/"
        validator = response.headers["Last-Modified"] if tag.startswith("W/") else tag
        version.unlink(missing_ok=True)
        if validator:
            version.write_text(validator, encoding="latin-1")
        length, console = int(response.headers["Content-Length"] or 0), Console(stderr=True)
        progress = wrap_file(
            response, length, description=partial.stem, console=console, transient=True,
            disable=not console.is_terminal,
        )  # fmt: skip
        with partial.open("ab" if resumed else "wb") as file, progress as shown:
            shutil.copyfileobj(shown, file, CHUNK_BYTES)
            file.flush()
            os.fsync(file.fileno())
    total = length + (start if resumed else 0)
    if length and _size(partial) != total:
        raise OSError(f"the connection was cut after {_size(partial)} of {total} bytes")


def _version_file(partial: Path) -> Path:
    return partial.with_name(f".{partial.name}.version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0

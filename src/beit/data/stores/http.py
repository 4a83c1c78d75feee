"""Parts of files on web servers; what a server sends is checked before it is used."""

import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

_SILENCE = 20  # seconds without a byte, after which a request has failed
_SLOWEST = 20_000  # bytes a second, on average, below which a request has failed
_CHUNK = 1 << 18
_LASTING = (400, 401, 403, 404, 405, 410, 416)  # states that another try does not change
_HEADERS = {"User-Agent": "beit", "Accept-Encoding": "identity"}  # lengths are those of the file


class Refused(OSError):  # noqa: N818 - reads as the answer
    """A store says no; another try would not help."""


def look(url: str) -> tuple[int, str]:
    """Return the size of a file in bytes, and its version. OSError if the server does not tell."""
    _, total, version = _part(url, 0, 1)
    return total, version


def fetch(url: str, start: int, end: int, size: int, version: str) -> bytes:
    """Read bytes from `start` to `end` of a file of this size and version, or raise OSError."""
    data, total, found = _part(url, start, end)
    if (total, found) != (size, version):
        raise Refused(f"the file has changed since it was opened ({total} bytes, {size} before)")
    return data


def _part(url: str, start: int, end: int) -> tuple[bytes, int, str]:
    """Request a part of a file. Returns: the bytes, the size of the file and its version."""
    request = urllib.request.Request(url, headers=_HEADERS | {"Range": f"bytes={start}-{end - 1}"})
    began = time.monotonic()
    try:
        response: Any = urllib.request.urlopen(request, timeout=_SILENCE)
        with response:
            if response.status != 206:
                raise Refused("the server sends whole files only (no ranges); download the file")
            data = bytearray()
            while len(data) < end - start and (chunk := response.read1(_CHUNK)):
                data += chunk
                if time.monotonic() - began > _SILENCE + len(data) / _SLOWEST:
                    raise TimeoutError(f"only {len(data)} bytes in {_SILENCE} seconds and more")
            headers = response.headers
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers["Content-Range"] == "bytes */0":
            return b"", 0, ""
        kind = Refused if error.code in _LASTING else OSError
        raise kind(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from error
    except HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    said = headers["Content-Range"] or "no Content-Range"
    span, _, total = said.removeprefix("bytes ").partition("/")
    if span != f"{start}-{end - 1}" or not total.isdecimal():
        raise OSError(f"requested bytes {start}-{end - 1}, the server says {said}")
    if headers["Content-Length"] not in (None, str(end - start)):
        raise OSError(f"requested {end - start} bytes, the server says {headers['Content-Length']}")
    if len(data) != end - start:
        raise OSError(f"the connection ended after {len(data)} of {end - start} bytes")
    return bytes(data), int(total), headers["ETag"] or headers["Last-Modified"] or ""

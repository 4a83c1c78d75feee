"""Paths as users write them, files replaced whole or not at all, errors of disks and memory."""

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL_SUFFIX = ".partial"
# What torch says instead of a MemoryError: of GPUs; of the CPU.
NO_MEMORY = re.compile(r"out of memory|allocate memory|not enough memory")
# What torch, NumPy and safetensors say instead of an OSError with its number.
NO_SPACE = re.compile(r"unexpected pos \d|\d requested and \d|No space left|quota exceeded")
NUMBER = re.compile(r"\(os error (\d+)\)")


def user_path(name: str | Path) -> Path:
    """Return the path that a user means: ~ is a home folder, unless something has that very name.

    ~name stays as it is if there is no user of that name. Raises ValueError if the home folder is
    not known.
    """
    if not str(name).startswith("~") or os.path.lexists(name):
        return Path(name)
    path = Path(os.path.expanduser(name))
    if path.parts[0] == "~":
        raise ValueError(f"{name}: the home folder is not known; set HOME, or give the whole path")
    return path


def refuse_existing(output: Path | None, kind: str = "directory") -> None:
    """Raise FileExistsError if an output is there already; `kind` says what it is to be.

    Raises ValueError for a directory that would be taken for a page.
    """
    if output is None:
        return
    if kind == "directory" and output.suffix.lower() == ".html":
        name = output.with_suffix("")
        raise ValueError(f"{output} is to be a directory, with the page in it; name it {name}")
    if output.exists():
        raise FileExistsError(f"{output} exists and is not overwritten; name another {kind}")


def at_once(path: str, flags: int) -> int:
    """Open a file, as `opener` of `open`; a pipe that nothing writes to is not waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def out_of_memory(error: Exception) -> bool:
    """Tell whether the memory of the machine or of a GPU was too small."""
    of_torch = isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))
    return bool(of_torch) or isinstance(error, MemoryError)


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success the file written there replaces `path`.

    The file is flushed to disk before it is renamed, so `path` is complete even after a kill or a
    power cut. If the block raises, the temporary file is deleted and `path` is unchanged. One
    writer at a time: the temporary name is fixed, so the next writer overwrites what a killed one
    left. Errors of the disk are an OSError that names the file, whatever library wrote to it.

    With `shared`, several may write: each has its own name, and what a killed one left stays.
    Nothing is flushed, so `path` is complete after a kill, but may not be after a power cut.
    """
    writer = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    temporary = path.with_name(f".{path.name}{writer}{PARTIAL_SUFFIX}")
    try:
        yield temporary
        if not shared:
            flush_to_disk(temporary)
        temporary.replace(path)
    except BaseException as error:
        size = temporary.stat().st_size if temporary.exists() else 0
        temporary.unlink(missing_ok=True)
        number = _number_of(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            words = f"no space left on the disk or in its quota, after writing {size / 1e6:.1f} MB"
            raise OSError(number, words, str(path)) from error
        if isinstance(error, OSError):
            if error.errno is not None and not error.filename:
                error.filename = str(path)
        elif number is not None:
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
    if not shared:
        flush_to_disk(path.parent)


def _number_of(error: BaseException) -> int | None:
    """Return the number of the disk's error behind what a library has raised, if there is one."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if NO_SPACE.search(str(error)):  # torch says this of any error
        return getattr(error.__context__, "errno", None) or errno.ENOSPC
    return int(match[1]) if (match := NUMBER.search(str(error))) else None


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

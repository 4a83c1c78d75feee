"""Files that are there whole or not at all, whatever interrupts the writer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL_SUFFIX = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there replaces `path` at the end.

    The bytes are on the disk before the name changes (fsync, then rename), so that a reader, or
    the next start after a kill or a power cut, finds the old file or the new one. When the block
    raises, the temporary file goes and `path` is untouched. One writer at a time: the temporary
    name is fixed, so that what a killed writer left is overwritten by the next.
    """
    temporary = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_to_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    """Put `text` into `path` in one piece."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

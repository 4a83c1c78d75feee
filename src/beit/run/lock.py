"""The lock of a run directory: one process at a time trains in it. It ends with its process.

It is flock on the file `lock`, whose text names the process. Several machines see each other's on
NFS (Linux 2.6.12 or later, not mounted with local_lock), CephFS, GPFS and Lustre (mounted with
flock). Where a file system or an operating system has no flock, a warning says so.
"""

import errno
import logging
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from beit.files import PARTIAL_SUFFIX
from beit.run.directory import RunDirectory, partial_path

logger = logging.getLogger(__name__)
NAME = "lock"


class Lock:
    """A lock that this process holds; `release` it, or end."""

    def __init__(self, file: int, path: Path) -> None:
        """Keep the descriptor of a locked file, and its path then."""
        self.file, self._path = file, path

    def release(self) -> None:
        """Let others lock the directory; remove it if it was only reserved."""
        if self not in _held:
            return
        _held.remove(self)
        reserved = self._path.parent.name.endswith(PARTIAL_SUFFIX) and self._path.exists()
        if reserved and os.path.samestat(os.fstat(self.file), self._path.stat()):
            shutil.rmtree(self._path.parent, ignore_errors=True)
        os.close(self.file)


_held: list[Lock] = []


def hold(directory: Path) -> Lock | None:
    """Lock a directory. Returns: None if this process holds it already, or it cannot be locked.

    Raises:
        BlockingIOError: another process has locked it; names that process.
    """
    if sys.platform == "win32":
        logger.warning("%s is not locked: Windows has no flock", directory)
        return None
    import fcntl

    _close_in_workers()
    file = os.open(directory / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        own = any(os.path.samestat(os.fstat(file), os.fstat(lock.file)) for lock in _held)
        holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(file)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            text = "%s cannot be locked (%s): see to it that no other process trains in it"
            logger.warning(text, directory, error)
        elif not own:
            run = directory
            if directory.name.endswith(PARTIAL_SUFFIX):
                run = directory.with_name(directory.name[1 : -len(PARTIAL_SUFFIX)])
            text = f"{run} is in use by {holder}; wait until it ends, or stop it"
            if not holder.endswith(f" on {socket.gethostname()}"):
                text += f". If that machine is gone, delete {directory / NAME}"
            raise BlockingIOError(text) from None
        return None
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _held.append(lock := Lock(file, directory / NAME))
    return lock


def reserve(run: Path) -> Lock | None:
    """Make and lock the directory that `RunDirectory.create` renames to `run`.

    What a killed start left in it is removed.

    Raises:
        BlockingIOError: another process starts a run there.
        FileExistsError: `run` exists.
    """
    partial = partial_path(run)
    partial.mkdir(parents=True, exist_ok=True)
    lock = hold(partial)
    try:
        RunDirectory.check_new(run)  # another process may have renamed its directory just now
    except FileExistsError:
        if lock is not None:
            lock.release()
        raise
    for leftover in partial.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover)
        elif leftover.name != NAME:
            leftover.unlink()
    return lock


@contextmanager
def releasing() -> Iterator[None]:
    """Release at the end what is locked in this context."""
    before = set(_held)
    try:
        yield
    finally:
        for lock in [lock for lock in _held if lock not in before]:
            lock.release()


@cache
def _close_in_workers() -> None:
    """Let forked workers close the locks: they would keep them when the training process dies."""
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    for lock in _held:
        os.close(lock.file)
    _held.clear()

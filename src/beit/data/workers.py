"""Worker processes that compute ahead; the death of one is an error that names the cause.

Each worker has a socket of its own and shares nothing else: no lock that a killed process would
keep, and nothing in /dev/shm, which has only 64 MB in most containers.
"""

import io
import multiprocessing
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch import Tensor

# What a scheduler and Ctrl-C send to all processes.
SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, n)]
_AHEAD = 2  # results per worker, computed before they are asked for
Function = Callable[[Any], Any]


def computed(
    compute: Function, tasks: Iterable[Any], num_workers: int, named: Callable[[Any], str]
) -> Iterator[Any]:
    """Yield `compute(task)` for each task, in order, whatever the number of workers; 0 for none.

    Results are pickled, and their tensors must be on the CPU. `named` says what a task reads.

    Raises:
        ChildProcessError: a worker died
        Exception: an error of `compute`, in its turn; a note has the worker's traceback
    """
    if num_workers == 0:
        yield from map(compute, tasks)
        return
    workers = [_Worker(f"{n} of {num_workers}", compute, named) for n in range(1, num_workers + 1)]
    numbered, results, turn = enumerate(tasks), dict[int, Any](), 0
    try:
        while True:
            idle = [worker for worker in workers if not worker.task]
            room = _AHEAD * num_workers - len(results) - (num_workers - len(idle))
            for worker, task in zip(idle, islice(numbered, max(0, room)), strict=False):
                worker.give(task)
            busy = [worker.socket for worker in workers if worker.task]
            if not busy and not results:
                return
            sentinels = [worker.process.sentinel for worker in workers]
            ready = wait([*busy, *sentinels], 0 if turn in results else None)
            for worker in workers:
                if worker.process.sentinel in ready:
                    raise worker.death()
                if worker.socket in ready:
                    results |= [worker.take()]
            if not ready:
                result, turn = results.pop(turn), turn + 1
                if isinstance(result, Exception):
                    raise result
                yield result
    finally:
        for worker in workers:
            worker.end()
            worker.process.join()


def computed_each(
    compute: Callable[[int], Any],
    indices: range,
    num_workers: int,
    size: int,
    name: Callable[[int], str],
) -> Iterator[Any]:
    """Yield `compute(index)` for each image, in order; a task is `size` images.

    Args:
        name: of an image
    """
    tasks = [indices[first : first + size] for first in range(0, len(indices), size)]

    def named(task: range) -> str:
        return f"{name(task.start)} to {name(task.stop - 1)}"

    for results in computed(partial(_of_each, compute), tasks, num_workers, named):
        yield from results


def _of_each(compute: Callable[[int], Any], task: range) -> list[Any]:
    return [compute(index) for index in task]


class _Worker:
    """A process that computes one task at a time; `task` is (number, task), or None if idle."""

    def __init__(self, name: str, compute: Function, named: Callable[[Any], str]) -> None:
        self._name, self._named = name, named
        self.task: tuple[int, Any] | None = None
        # Forked workers share the images cached in memory; spawned ones would copy them.
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self.socket, other = context.Pipe()
        sockets = (other, self.socket)
        self.process = context.Process(target=_work, args=(*sockets, compute), daemon=True)
        with _signals_held():  # until the worker ignores them, and it is known how to end it
            self.process.start()
            # At exit, too, before multiprocessing sends SIGTERM to its processes and waits.
            self.end = Finalize(self, self.process.kill, exitpriority=0)
        other.close()  # now the worker alone holds it, and the stream ends with the worker
        self._stream = open(self.socket.fileno(), "rb", closefd=False)

    def give(self, task: tuple[int, Any]) -> None:
        self.task = task
        with suppress(OSError):  # dead, as its sentinel says
            self.socket.send(task[1])

    def take(self) -> tuple[int, Any]:
        """Receive the result. Returns: the task's number; the result, or the error."""
        assert self.task
        try:
            parts = [bytearray(size) for size in pickle.load(self._stream)]
            if any(self._stream.readinto(part) < len(part) for part in parts):
                raise EOFError
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise self.death() from error
        number, self.task = self.task[0], None
        return number, pickle.loads(parts[0], buffers=parts[1:])

    def death(self) -> ChildProcessError:
        """Return the error that says how the process ended, and what it was reading."""
        self.process.join()
        code = self.process.exitcode
        name = {-number: number.name for number in signal.Signals}.get(code, f"exit code {code}")
        reading = f" while it read {self._named(self.task[1])}" if self.task else ""
        hint = "; if memory ran out, use fewer workers (num_workers) or smaller batches"
        died = f"data worker {self._name} (process {self.process.pid}) died ({name}){reading}"
        return ChildProcessError(died + (hint if name == "SIGKILL" else ""))


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let signals wait, in this thread and in processes that it starts."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(own: Connection, other: Connection, compute: Function) -> None:
    """Compute tasks until the main process closes its socket or dies."""
    for number in SIGNALS:  # the main process ends the workers, after a last step
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    torch.set_num_threads(1)
    other.close()
    stream = open(own.fileno(), "wb", closefd=False)
    with suppress(EOFError, ConnectionError):
        while True:
            task = own.recv()
            try:
                parts = _pickled(compute(task))
            except Exception as error:  # raised in the main process
                error.add_note(f"in a data worker:\n{traceback.format_exc()}")
                parts = _pickled(error)
                pickle.loads(parts[0])  # one that cannot be sent ends this process, with traceback
            pickle.dump([len(part) for part in parts], stream)
            stream.writelines(parts)
            stream.flush()


def _pickled(result: Any) -> list[bytes | memoryview]:
    """Pickle a result, and keep the contents of its tensors apart, without a copy."""
    file, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    pickler = pickle.Pickler(file, protocol=5, buffer_callback=buffers.append)
    pickler.dispatch_table = {Tensor: _array_of}
    pickler.dump(result)
    return [file.getvalue(), *(buffer.raw() for buffer in buffers)]


def _array_of(tensor: Tensor) -> tuple[Function, tuple[Any]]:
    return torch.from_numpy, (tensor.contiguous().numpy(),)

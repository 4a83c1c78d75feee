"""Worker processes that compute ahead; the death of one is an error that names the cause.

Each worker has a socket of its own and shares nothing else: no lock that a killed process would
keep, no signal handler, and nothing in /dev/shm, which has only 64 MB in most containers.
"""

import copyreg
import io
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch import Tensor

Task = TypeVar("Task")
Result = TypeVar("Result")
_AHEAD = 2  # results per worker, computed before they are asked for
_LIKELY = {
    "SIGKILL": "if memory ran out, use fewer workers (num_workers) or smaller batches",
    "SIGSEGV": "one of these images may have crashed its decoder",
    "SIGBUS": "one of these files may have changed, or its disk may have failed",
}


def computed(
    compute: Callable[[Task], Result],
    tasks: Iterable[Task],
    num_workers: int,
    named: Callable[[Task], str],
) -> Iterator[Result]:
    """Yield the results of `compute` in the order of the tasks, for any number of workers.

    Args:
        compute: its results are pickled; their tensors must be on the CPU
        num_workers: processes, which end with the iterator; 0 to compute in this one
        named: says what a task reads, for the error of a dead worker

    Raises:
        ChildProcessError: a worker died
        Exception: an error of `compute`, raised in its turn; a note has the worker's traceback
    """
    if num_workers == 0:
        yield from map(compute, tasks)
        return
    workers = [_Worker(f"{n} of {num_workers}", compute, named) for n in range(1, num_workers + 1)]
    numbered, results, turn = enumerate(tasks), dict[int, Any](), 0
    try:
        while True:
            idle = [worker for worker in workers if worker.task is None]
            room = _AHEAD * num_workers - len(results) - (num_workers - len(idle))
            for worker, (number, task) in zip(idle, islice(numbered, max(0, room)), strict=False):
                worker.give(number, task)
            busy = [worker.connection for worker in workers if worker.task is not None]
            if not busy and not results:
                return
            sentinels = [worker.process.sentinel for worker in workers]
            ready = wait([*busy, *sentinels], 0 if turn in results else None)
            for worker in workers:
                if worker.process.sentinel in ready:
                    raise worker.death()
                if worker.connection in ready:
                    results[worker.number] = worker.take()
            if not ready:
                result, turn = results.pop(turn), turn + 1
                if isinstance(result, Exception):
                    raise result
                yield result
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that computes one task at a time."""

    def __init__(self, name: str, compute: Callable[[Any], Any], named: Callable[[Any], str]):
        # Forked workers share the images cached in memory; spawned ones would copy them.
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self.connection, other = context.Pipe()
        self.process = context.Process(
            target=_work, args=(other, self.connection, compute), daemon=True
        )
        with warnings.catch_warnings():
            # Python 3.12 and later warn about a fork beside threads; the workers use no threads.
            warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
            self.process.start()
        other.close()  # the worker alone holds it now: its death ends the stream
        self.end = weakref.finalize(self, _end, self.process)  # at the exit at the latest
        self._name, self._named = name, named
        self.number, self.task = -1, None

    def give(self, number: int, task: Any) -> None:
        self.number, self.task = number, task
        with suppress(OSError):  # dead: the sentinel says so
            self.connection.send(task)

    def take(self) -> Any:
        """Receive the result of the task, or the error; ChildProcessError if the stream ends."""
        try:
            pickled, sizes = self.connection.recv()
            buffers = [bytearray(size) for size in sizes]
            for buffer in buffers:
                rest = memoryview(buffer)
                while rest and (count := os.readv(self.connection.fileno(), [rest])):
                    rest = rest[count:]
                if rest:
                    raise EOFError
        except (EOFError, OSError) as error:
            raise self.death() from error
        self.task = None
        return pickle.loads(pickled, buffers=buffers)

    def death(self) -> ChildProcessError:
        """Return the error that says how the process ended and what it was reading."""
        self.process.join()
        code = self.process.exitcode
        name = {-number: number.name for number in signal.Signals}.get(code, f"exit code {code}")
        reading = "" if self.task is None else f" while it read {self._named(self.task)}"
        likely = _LIKELY.get(name, "it may have said more above")
        process = f"data worker {self._name} (process {self.process.pid})"
        return ChildProcessError(f"{process} died ({name}){reading}; {likely}")


def _end(process: BaseProcess) -> None:
    process.kill()  # it holds nothing that others wait for
    process.join()


def _work(connection: Connection, other: Connection, compute: Callable[[Any], Any]) -> None:
    """Compute tasks until the main process closes its end or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the main process ends the workers
    torch.set_num_threads(1)
    other.close()
    with suppress(EOFError, ConnectionError):
        while True:
            task = connection.recv()
            try:
                pickled, buffers = _pickled(compute(task))
            except Exception as error:  # for the main process to raise
                error.add_note(f"in a data worker:\n{traceback.format_exc()}")
                pickled, buffers = _pickled(error)
                pickle.loads(pickled)  # one that cannot be sent ends this process with a traceback
            connection.send((pickled, [buffer.nbytes for buffer in buffers]))
            for buffer in buffers:
                while buffer:
                    buffer = buffer[os.write(connection.fileno(), buffer) :]


def _pickled(result: Any) -> tuple[bytes, list[memoryview]]:
    """Pickle a result except for the contents of its tensors, which are not copied."""
    file, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    pickler = pickle.Pickler(file, 5, buffer_callback=buffers.append)
    pickler.dispatch_table = copyreg.dispatch_table | {Tensor: _array_of}
    pickler.dump(result)
    return file.getvalue(), [buffer.raw() for buffer in buffers]


def _array_of(tensor: Tensor) -> tuple[Callable[[Any], Tensor], tuple[Any]]:
    return torch.from_numpy, (tensor.contiguous().numpy(),)

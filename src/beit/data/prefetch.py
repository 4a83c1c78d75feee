"""Copy the next batches to the device while the current step runs."""

import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from itertools import chain, islice
from typing import Any, Self

import torch
from torch import Tensor

from beit.data.batch import Batch

_AHEAD = 2  # batches waiting on the device


class Prefetch:
    """Iterator over batches on a device; `wait_seconds` is the total time waited for them."""

    def __init__(self, batches: Iterable[Batch], device: torch.device) -> None:
        self.wait_seconds = 0.0
        self._moved: Generator[Batch] = (on_device(batch, device) for batch in batches)
        if device.type == "cuda":
            self._moved = _ahead(batches, device)
        self._batches: Iterator[Batch] = self._moved

    def __iter__(self) -> Self:
        return self

    def begin(self) -> None:
        """Read the first batch now, so that errors in the data are raised before a run starts."""
        self._batches = chain(list(islice(self._batches, 1)), self._batches)

    def close(self) -> None:
        """End the thread and the workers that read ahead, also if an error keeps this object."""
        self._moved.close()

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.wait_seconds += time.perf_counter() - started


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Copy what is not there yet to a device."""
    if device.type == "cpu":
        return batch
    cuda = device.type == "cuda"
    moved: dict[str, Any] = {
        name: (tensor.pin_memory() if cuda and tensor.is_cpu else tensor).to(
            device, non_blocking=cuda
        )
        for name, tensor in _tensors(batch).items()
        if name != "target_images" or tensor is not batch.images  # copied once
    }
    return batch._replace(**{"target_images": moved["images"], **moved})


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: part for name, part in batch._asdict().items() if isinstance(part, Tensor)}


def _ahead(batches: Iterable[Batch], device: torch.device) -> Generator[Batch]:
    """Copy batches ahead, in a thread and on its own CUDA stream."""
    stream = torch.cuda.Stream(device)
    ready: queue.Queue[tuple[Batch, torch.cuda.Event] | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def offer(item: tuple[Batch, torch.cuda.Event] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            with torch.cuda.device(device), torch.cuda.stream(stream):
                for batch in batches:
                    offer((on_device(batch, device), stream.record_event()))
                    if stopped.is_set():
                        return
            offer(None)
        except BaseException as error:  # passed to the consumer, which raises it
            offer(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            batch, copied = item
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for tensor in _tensors(batch).values():
                tensor.record_stream(current)  # keep its memory until this stream is done
            yield batch
    finally:
        stopped.set()
        thread.join()

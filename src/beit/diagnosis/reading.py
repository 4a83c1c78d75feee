"""How long the parts of reading a training's images take, measured in a data worker."""

import os
import random
import time
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch

from beit.data.batch import Batch
from beit.data.cached import CachedSource
from beit.data.prefetch import on_device
from beit.data.reader import Key, Reader
from beit.data.resident import ResidentReader
from beit.data.source import PartSource, Source, UnreadableImage
from beit.diagnosis.machine import own_memory
from beit.diagnosis.scan import file_of_image

SAMPLE = 48  # images that are read at most
FEWEST = 2  # of them at least, whatever they take
READING = 12.0  # seconds in which they are read
CUTS, CUTTING = 16, 2.0  # times that views of these are cut, and seconds of it
HELD = 1 << 25  # bytes of them that are in memory at once, about


class Sample(NamedTuple):
    """What reading some images takes in a worker.

    Attributes:
        seconds: of an image: `read` its file as it is now, in the cache or not; `disk`, not from
            the cache; `decode` it; `again`, to decode it for the second time, or to read it back
            shrunk; `views` to cut and to stack
        file_bytes: of a file
        image_bytes: of a decoded image, shrunk if the training does so
        memory: bytes that the worker has for itself
        shapes: of the views of an image
    """

    seconds: dict[str, float]
    file_bytes: float
    image_bytes: float
    memory: int
    shapes: list[tuple[int, ...]]


def read_sample(reader: Reader, resident: ResidentReader | None, task: tuple[int, bool]) -> Sample:
    """Read some images of the whole set at random, in a worker, and time the parts of it.

    Args:
        task: images of a batch, and whether a GPU changes colours and cuts what is in memory
    """
    (batch_size, on_gpu), source = task, reader.source
    if isinstance(source, CachedSource):
        source = source._source
    if isinstance(source, PartSource):  # of the trial
        source = source._source
    indices = random.sample(range(len(source)), min(SAMPLE, len(source)))
    seconds = dict.fromkeys(("read", "disk", "decode", "again", "views"), 0.0)
    sizes, pixels, held = list[int](), dict[int, int](), list[torch.Tensor]()
    started = time.perf_counter()
    for index in indices:
        if len(pixels) >= FEWEST and time.perf_counter() - started > READING:
            break
        file, cached = file_of_image(source, index), 0.0
        try:
            if file is not None:
                seconds["read"] += _seconds_to_read(file)
                cached = _seconds_to_read(file)
                sizes.append(file.stat().st_size)
            decoding = time.perf_counter()
            image = source.image(index)
            seconds["decode"] += max(0.0, time.perf_counter() - decoding - cached)
            pixels[index] = image.numel()
            if not held or sum(pixels.values()) < HELD:
                held.append(image)
            del image
            if file is not None:
                _forget(file)
                seconds["disk"] += _seconds_to_read(file)
        except (UnreadableImage, OSError):
            continue
    if not pixels:
        raise ValueError(f"none of {len(indices)} images can be read, as {source.name(indices[0])}")
    for index in pixels:
        if (file := file_of_image(source, index)) is not None:
            _seconds_to_read(file)  # into the cache
        again = time.perf_counter()
        source.image(index)
        seconds["again"] += time.perf_counter() - again
    seconds = {name: value / len(pixels) for name, value in seconds.items()}
    if not sizes:  # rows of tables, whose first one in a group reads the whole group
        seconds["decode"] = min(seconds["decode"], seconds["again"])
    seconds["views"], shapes = _seconds_of_views(reader, resident, held, batch_size, on_gpu)
    mean = sum(pixels.values()) / len(pixels)
    return Sample(seconds, sum(sizes) / max(1, len(sizes)), mean, own_memory(), shapes)


def _seconds_of_views(
    reader: Reader,
    resident: ResidentReader | None,
    images: list[torch.Tensor],
    batch_size: int,
    on_gpu: bool,
) -> tuple[float, list[tuple[int, ...]]]:
    """Return the seconds of an image to cut and stack its views, and their shapes."""
    read: Callable[[Key], Any]
    if resident is not None:
        count, read = batch_size, resident.draw if on_gpu else resident
    else:
        decoded = copy(reader)
        decoded.source, decoded.labels = _Decoded(reader.source, images), None
        count, read = len(images), decoded.read if on_gpu else decoded
    keys = [Key(epoch, list(range(count)), [0] * count) for epoch in range(1 + CUTS)]
    result = read(keys[0])  # once before: allocates memory
    started, times = time.perf_counter(), 0
    while times < CUTS and (not times or time.perf_counter() - started < CUTTING):
        times += 1
        result = read(keys[times])
    seconds = (time.perf_counter() - started) / (times * count)
    batch = result[0] if on_gpu and resident is None else result
    shapes = [batch.images.shape[1:]] if isinstance(batch, Batch) else []
    if isinstance(batch, Batch) and batch.target_images is not batch.images:
        shapes.append(batch.target_images.shape[1:])
    return seconds, [tuple(shape) for shape in shapes]


class _Decoded:
    """A source of images that are decoded."""

    def __init__(self, source: Source, images: list[torch.Tensor]) -> None:
        self._source, self._images = source, images
        self.labels, self.class_names, self.why_unlabelled = None, None, ""

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> torch.Tensor:
        return self._images[index]

    def name(self, index: int) -> str:
        return self._source.name(index)


def _seconds_to_read(file: Path) -> float:
    started = time.perf_counter()
    file.read_bytes()
    return time.perf_counter() - started


def _forget(file: Path) -> None:
    """Let the system drop a file from its cache, where it can."""
    if hasattr(os, "posix_fadvise"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_to_move(shapes: list[tuple[int, ...]], count: int, device: torch.device) -> float:
    """Time the copy of the views of a batch to a GPU."""
    views = [torch.zeros(count, *shape, dtype=torch.uint8) for shape in shapes]
    none = torch.zeros(count, dtype=torch.int64)
    batch = Batch(views[0], views[-1], none, none, [])
    on_device(batch, device)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    on_device(batch, device)
    torch.cuda.synchronize(device)
    return time.perf_counter() - started

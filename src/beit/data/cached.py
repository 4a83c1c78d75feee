"""A source whose images are decoded once and held in memory."""

import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from beit.data.source import Source, UnreadableImage, file_of

_log = logging.getLogger(__name__)

_SIZE_SAMPLE = 64  # images decoded to estimate the memory that all need
_PIECE = 512  # decoded images waiting in memory at most
_SAY_EVERY = 20  # seconds between two lines of progress


class CachedSource:
    """A source decoded in memory, which forked workers share; with reasons by unreadable index."""

    def __init__(
        self, source: Source, images: Tensor | list[Tensor], unreadable: dict[int, str]
    ) -> None:
        self._source, self._images, self._unreadable = source, images, unreadable
        self.labels, self.class_names = source.labels, source.class_names
        self.why_unlabelled = source.why_unlabelled

    @property
    def whole(self) -> Tensor | None:
        """All images (n, c, H, W) uint8 if they have one size and can be read."""
        if isinstance(self._images, list) or self._unreadable:
            return None
        return self._images

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int) -> Tensor:
        if index in self._unreadable:
            raise UnreadableImage(self.name(index), self._unreadable[index])
        return self._images[index]

    def name(self, index: int) -> str:
        return self._source.name(index)

    def file(self, index: int) -> Path | None:
        return file_of(self._source, index)


def cached(source: Source, budget: int, shrunk: bool = False) -> Source:
    """Decode a source into memory if it fits into `budget` bytes; else return it unchanged."""
    count, started = len(source), time.monotonic()
    sample = range(0, count, max(1, count // _SIZE_SAMPLE))
    sizes = [image.numel() for image, _ in _decoded(source, sample)]
    expected, seconds = sum(sizes) / len(sizes) * count, time.monotonic() - started
    if expected > budget:
        _say_too_large(count, expected, budget, shrunk)
        return source
    minutes = seconds / len(sizes) * count / 60
    costs = f": {expected / 1e9:.1f} GB, about {minutes:.1f} minutes" if minutes > 0.5 else ""
    _log.info("decoding %d images into memory%s", count, costs)
    used, unreadable, said = 0, dict[int, str](), time.monotonic()
    images: Tensor | list[Tensor] = []  # (n, c, H, W) while all have the first one's size
    for index, (image, reason) in enumerate(_decoded(source, range(count))):
        if reason is not None:
            unreadable[index] = reason
            image = image if isinstance(images, list) else images[0]  # a placeholder of that size
        used += image.numel()
        if used > budget:
            _say_too_large(count, used / (index + 1) * count, budget, shrunk)
            return source
        if index == 0 and reason is None and image.numel() * count <= budget:
            images = torch.empty((count, *image.shape), dtype=torch.uint8)
        if isinstance(images, Tensor) and image.shape != images.shape[1:]:
            images = list(images[:index])  # pages that nobody has written take no memory
        if isinstance(images, Tensor):
            images[index] = image
        else:
            images.append(image)
        if time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            _log.info("decoded %d of %d images", index + 1, count)
    if unreadable:
        first, reason = next(iter(unreadable.items()))
        what = f"{source.name(first)}: {reason}"
        _log.warning("%d of the %d images cannot be read, as %s", len(unreadable), count, what)
    return CachedSource(source, images, unreadable)


def _say_too_large(count: int, expected: float, budget: int, shrunk: bool) -> None:
    sizes = f"{expected / 1e9:.3g} GB, more than cache_gigabytes {budget / 1e9:.3g}"
    advice = "raise it" if shrunk else "raise it, or let a training shrink them: --data.shrink true"
    what = "shrunk" if shrunk else "decoded"
    _log.info("%d images are %s %s: each is read for every view; %s", count, what, sizes, advice)


def _decoded(source: Source, indices: range) -> Iterator[tuple[Tensor, str | None]]:
    """Decode in order, by several threads. Yields (image, None), or (empty tensor, reason)."""

    def read(index: int) -> tuple[Tensor, str | None]:
        try:
            return source.image(index), None
        except UnreadableImage as error:
            return torch.empty((3, 0, 0), dtype=torch.uint8), error.reason

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for first in range(0, len(indices), _PIECE):
            yield from pool.map(read, indices[first : first + _PIECE])

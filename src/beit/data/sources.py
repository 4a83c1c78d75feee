"""Open a source of images by one string: a folder, Parquet files, a list, or drawn shapes."""

import glob
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from beit.data.decoding import UnreadableImage
from beit.data.image_files import EXTENSIONS, FileSource, check_file, open_folder, read_list
from beit.data.parquet import ParquetSource
from beit.data.shapes import ShapesSource

_log = logging.getLogger(__name__)

KINDS = (
    "a folder of images, *.parquet files or shapes://COUNT?size=64&seed=0, "
    "or a part of one, as in folder[:90%]; or image files, or @FILE that lists them"
)
STANDARD_INPUT = ("-", ["-"])  # as data of `open_images`
# some/folder[:90%] and some/folder[90%:] split the images at random, always in the same way
PART = re.compile(r"(?P<whole>.+)\[(?:(?P<first>\d+)%)?:(?:(?P<end>\d+)%)?\]")
_SHUFFLE_SEED = 2022  # fixed: a part or limit has the same images in every run
_SIZE_SAMPLE = 64  # images decoded to estimate the memory that all need
_PIECE = 512  # decoded images waiting in memory at most


class Source(Protocol):
    """Images that any process can read in any order.

    `image(index)` is (3, H, W) uint8 or raises UnreadableImage; by `name(index)` a person can find
    it. `labels` are the classes (n,) int64, -1 where unknown; None without labels. `class_names`
    are None if unknown.
    """

    def __len__(self) -> int: ...
    def image(self, index: int) -> Tensor: ...
    def name(self, index: int) -> str: ...
    @property
    def labels(self) -> Tensor | None: ...
    @property
    def class_names(self) -> list[str] | None: ...


def open_source(
    spec: str | Sequence[str],
    *,
    cache_gigabytes: float = 0.0,
    limit: int | None = None,
    index_cache: bool = True,
) -> Source:
    """Open a source of images.

    Args:
        spec: one string (see `KINDS`), or several paths of image files, whose order is kept
        cache_gigabytes: keep the images decoded in memory if they fit into this size
        limit: use this many images, a fixed random subset; smaller limits give subsets of larger
        index_cache: keep the list of a folder's files in the user's cache folder
    """
    paths = [spec] if isinstance(spec, str) else spec or [""]
    if len(paths) == 1:
        source = _open(paths[0], index_cache)
    else:
        for path in paths:
            check_file(path)
        source = FileSource(Path(), paths)
    source = limited(source, limit)
    if cache_gigabytes < 0:
        raise ValueError(f"cache_gigabytes must not be negative, got {cache_gigabytes}")
    return cached(source, int(cache_gigabytes * 1e9)) if cache_gigabytes > 0 else source


def open_images(data: str | Sequence[str], limit: int | None) -> Source:
    """Open data like `open_source`; for "-" read a list of files from standard input."""
    if data in STANDARD_INPUT:
        return limited(read_list(sys.stdin.buffer.read(), "standard input"), limit)
    return open_source(data, limit=limit)


def limited(source: Source, limit: int | None) -> Source:
    """Return a fixed random subset of `limit` images, or all if there are no more than that."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 image, got {limit}")
    if limit is None or limit >= len(source):
        return source
    return PartSource(source, shuffled(len(source))[:limit])


def _open(spec: str, index_cache: bool) -> Source:
    if not spec:
        raise ValueError(f"no data given: expected {KINDS}")
    if (part := PART.fullmatch(spec)) and not os.path.exists(spec):
        first, end = int(part["first"] or 0), int(part["end"] or 100)
        whole = _open(part["whole"], index_cache)
        total = len(whole)
        indices = shuffled(total)[total * first // 100 : total * end // 100]
        if not len(indices):
            raise ValueError(f"{spec}: none of the {total} images is in this part; make it larger")
        return PartSource(whole, indices)
    if spec.startswith("shapes://"):
        return ShapesSource.from_spec(spec)
    if "://" in spec:
        raise ValueError(f"{spec}: unknown kind of data; expected {KINDS}")
    if spec.startswith("@") and not os.path.exists(spec):
        return read_list(Path(spec[1:]).expanduser().read_bytes(), spec)
    if glob.has_magic(spec) and not os.path.exists(spec):
        files = sorted(Path(path) for path in glob.glob(spec) if path.endswith(".parquet"))
        if not files:
            raise FileNotFoundError(f"{spec}: no Parquet file matches; expected {KINDS}")
        return ParquetSource(files)
    path = Path(spec).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{spec}: no such file or folder; expected {KINDS}")
    if path.suffix == ".parquet" and path.is_file():
        return ParquetSource([path])
    if path.suffix.lower() in EXTENSIONS and path.is_file():
        return FileSource(Path(), [spec])
    if not path.is_dir():
        raise ValueError(f"{spec}: neither a folder nor a .parquet file; expected {KINDS}")
    files = sorted(path.glob("*.parquet"))
    if not files:
        return open_folder(path, index_cache)
    splits = sorted({file.stem.split("-")[0] for file in files})
    if len(splits) > 1:
        raise ValueError(
            f"{spec}: contains Parquet files of several sets ({', '.join(splits)}); "
            f"name one of them, as in '{path / splits[0]}*.parquet'"
        )
    return ParquetSource(files)


def shuffled(length: int) -> Tensor:
    """Return the fixed random order of indices from which parts and limits are cut."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(_SHUFFLE_SEED))


class PartSource:
    """A subset of a source, in the source's order."""

    def __init__(self, source: Source, indices: Tensor) -> None:
        self._source, self._indices = source, indices.sort().values
        self.labels = None if source.labels is None else source.labels[self._indices]
        self.class_names = source.class_names

    def __len__(self) -> int:
        return len(self._indices)

    def image(self, index: int) -> Tensor:
        return self._source.image(int(self._indices[index]))

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))


class CachedSource:
    """A source decoded in memory, which forked workers share; with reasons by unreadable index."""

    def __init__(
        self, source: Source, images: Tensor | list[Tensor], unreadable: dict[int, str]
    ) -> None:
        self._source, self._images, self._unreadable = source, images, unreadable
        self.labels, self.class_names = source.labels, source.class_names

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int) -> Tensor:
        if index in self._unreadable:
            raise UnreadableImage(self.name(index), self._unreadable[index])
        return self._images[index]

    def name(self, index: int) -> str:
        return self._source.name(index)


def cached(source: Source, budget: int) -> Source:
    """Decode a source into memory if it fits into `budget` bytes; else return it unchanged."""
    count = len(source)
    sample = range(0, count, max(1, count // _SIZE_SAMPLE))
    sizes = [image.numel() for image, _ in _decoded(source, sample)]
    if sum(sizes) / len(sizes) * count > budget:
        _log.info("%d images do not fit into the cache of %.1f GB", count, budget / 1e9)
        return source
    _log.info("decoding %d images into memory", count)
    used, unreadable = 0, dict[int, str]()
    images: Tensor | list[Tensor] = []  # (n, 3, H, W) while all have the first one's size
    for index, (image, reason) in enumerate(_decoded(source, range(count))):
        if reason is not None:
            unreadable[index] = reason
            image = image if isinstance(images, list) else images[0]  # a placeholder of that size
        used += image.numel()
        if used > budget:
            _log.info("%d images do not fit into the cache of %.1f GB", count, budget / 1e9)
            return source
        if index == 0 and reason is None and image.numel() * count <= budget:
            images = torch.empty((count, *image.shape), dtype=torch.uint8)
        if isinstance(images, Tensor) and image.shape != images.shape[1:]:
            images = [earlier.clone() for earlier in images[:index]]
        if isinstance(images, Tensor):
            images[index] = image
        else:
            images.append(image)
    return CachedSource(source, images, unreadable)


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

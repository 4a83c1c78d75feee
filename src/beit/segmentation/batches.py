"""Batches of images with label maps, in the order and with the draws of all other batches.

The machinery of `TrainBatches` and `EvalBatches` reads images; here an image carries its label map
as a fourth channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from beit.data.batches import Batch, EvalBatches, TrainBatches
from beit.data.prefetch import Prefetch, prefetch
from beit.data.sources import Source, cached
from beit.segmentation.label_maps import LabelMaps, read_pair
from beit.segmentation.views import SegmentViews


class SegmentBatch(NamedTuple):
    """Images and label maps of one micro-step."""

    images: Tensor  # (B, 3, H, W) uint8
    label_maps: Tensor  # (B, H, W) uint8, 255 where ignored
    indices: Tensor  # (B,) int64, of the images shown
    unreadable: list[str]  # "name: reason" of images that others stand in for


class SegmentBatches:
    """Training batches from `start_step` to `num_steps`, `accumulate` for each step.

    Which images a step has is as in `TrainBatches`, whatever the ranks, workers and restarts; how
    each is drawn is a function of (seed, epoch, index).
    """

    def __init__(
        self,
        source: LabelMaps,
        views: SegmentViews,
        *,
        batch_size: int,
        seed: int,
        start_step: int,
        num_steps: int,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        cache_gigabytes: float = 0.0,
    ) -> None:
        """Build it; a set that fits into `cache_gigabytes` is decoded into memory once."""
        self._batches = TrainBatches(
            _stacked(source, cache_gigabytes),
            _StackedViews(views),
            batch_size=batch_size,
            seed=seed,
            start_step=start_step,
            num_steps=num_steps,
            accumulate=accumulate,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
        )
        self.steps_per_epoch = self._batches.steps_per_epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[SegmentBatch]:
        return map(_of_views, self._batches)

    def on(self, device: torch.device | str) -> SegmentPrefetch:
        """Iterate over the batches on a device, copied ahead on CUDA."""
        return SegmentPrefetch(self._batches, device, whole=False)


class SegmentEvalBatches:
    """Every image and map once, in order and at their own size, `batch_size` of them at a time.

    Of several ranks each takes every world_size-th batch. More than one at a time need images of
    one size.
    """

    def __init__(
        self,
        source: LabelMaps,
        batch_size: int = 1,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        cache_gigabytes: float = 0.0,
    ) -> None:
        self._batches = EvalBatches(
            _stacked(source, cache_gigabytes),
            _unchanged,
            batch_size,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[SegmentBatch]:
        return map(_of_whole, self._batches)

    def on(self, device: torch.device | str) -> SegmentPrefetch:
        """Iterate over the batches on a device, copied ahead on CUDA."""
        return SegmentPrefetch(self._batches, device, whole=True)


class SegmentPrefetch:
    """Iterator over batches on a device; `wait_seconds` sums up the time spent waiting for them."""

    def __init__(
        self, batches: Iterable[Batch], device: torch.device | str, *, whole: bool
    ) -> None:
        self._prefetch: Prefetch = prefetch(batches, device)
        self._parts = _of_whole if whole else _of_views

    def __iter__(self) -> SegmentPrefetch:
        return self

    def __next__(self) -> SegmentBatch:
        return self._parts(next(self._prefetch))

    def begin(self) -> None:
        """Read the first batch, so that data that cannot be read is told before a run begins."""
        self._prefetch.begin()

    @property
    def wait_seconds(self) -> float:
        return self._prefetch.wait_seconds


class _StackedSource:
    """Images of four channels, the last of which is the label map."""

    labels: Tensor | None = None
    class_names: list[str] | None = None

    def __init__(self, source: LabelMaps) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int) -> Tensor:
        image, label_map = read_pair(self._source, index)
        return torch.cat([image, label_map[None]])  # (4, H, W)

    def name(self, index: int) -> str:
        return self._source.name(index)


class _StackedViews:
    def __init__(self, views: SegmentViews) -> None:
        self._views = views

    def __call__(self, stacked: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self._views(stacked[:3], stacked[3], generator)


def _stacked(source: LabelMaps, cache_gigabytes: float) -> Source:
    if cache_gigabytes < 0:
        raise ValueError(f"cache_gigabytes must not be negative, got {cache_gigabytes}")
    stacked: Source = _StackedSource(source)
    return cached(stacked, int(cache_gigabytes * 1e9)) if cache_gigabytes else stacked


def _unchanged(stacked: Tensor) -> Tensor:
    return stacked


def _of_views(batch: Batch) -> SegmentBatch:
    return SegmentBatch(batch.student, batch.tokenizer, batch.indices, batch.unreadable)


def _of_whole(batch: Batch) -> SegmentBatch:
    return SegmentBatch(batch.student[:, :3], batch.student[:, 3], batch.indices, batch.unreadable)

"""Batches of images with label maps, with the order and random draws of all other batches.

An image carries its label map as a fourth channel through `TrainBatches` and `EvalBatches`. Its
views fill `Batch.images` and `Batch.label_maps`.
"""

from typing import Any

import torch
from torch import Tensor

from beit.data.batches import EvalBatches, TrainBatches
from beit.data.sources import Source, cached
from beit.segmentation.label_maps import LabelMaps, read_pair
from beit.segmentation.views import SegmentViews

FIELDS = ("images", "label_maps")


def train_batches(
    source: LabelMaps, views: SegmentViews, cache_gigabytes: float = 0.0, **settings: Any
) -> TrainBatches:
    """Return training batches of random views of images and their label maps.

    Args:
        cache_gigabytes: a set that fits is decoded once and kept in memory
        settings: of `TrainBatches`
    """
    stacked = _stacked(source, cache_gigabytes)
    return TrainBatches(stacked, _StackedViews(views), fields=FIELDS, **settings)


def eval_batches(
    source: LabelMaps, batch_size: int = 1, cache_gigabytes: float = 0.0, **settings: Any
) -> EvalBatches:
    """Return batches of every image and map once, in order and at their own size.

    Args:
        batch_size: more than 1 only for images of one size
        cache_gigabytes: a set that fits is decoded once and kept in memory
        settings: of `EvalBatches`
    """
    stacked = _stacked(source, cache_gigabytes)
    return EvalBatches(stacked, _whole, batch_size, fields=FIELDS, **settings)


class _StackedSource:
    """Images of four channels; the last is the label map."""

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


def _whole(stacked: Tensor) -> tuple[Tensor, Tensor]:
    return stacked[:3], stacked[3]

"""Batches of images with label maps, with the order and random draws of all other batches.

An image carries its label map as a fourth channel through `TrainBatches` and `EvalBatches`. Its
views fill `Batch.images` and `Batch.label_maps`.
"""

import torch
from torch import Tensor

from beit.data.cached import cached
from beit.data.source import Source
from beit.segmentation.label_maps import LabelMaps, read_pair
from beit.segmentation.views import SegmentViews

FIELDS = ("images", "label_maps")


class _StackedSource:
    """Images of four channels; the last is the label map."""

    labels: Tensor | None = None
    class_names: list[str] | None = None
    why_unlabelled = "label maps have none"

    def __init__(self, source: LabelMaps) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int) -> Tensor:
        image, label_map = read_pair(self._source, index)
        return torch.cat([image, label_map[None]])  # (4, H, W)

    def name(self, index: int) -> str:
        return self._source.name(index)


def stacked(source: LabelMaps, cache_gigabytes: float = 0.0) -> Source:
    """Return a source of images (4, H, W) whose last channel is the label map.

    A set that fits into `cache_gigabytes` is decoded into memory once.
    """
    images: Source = _StackedSource(source)
    return cached(images, int(cache_gigabytes * 1e9)) if cache_gigabytes else images


def whole(image: Tensor) -> tuple[Tensor, Tensor]:
    """Split an image (4, H, W) into (3, H, W) and its label map (H, W)."""
    return image[:3], image[3]


def views_of(
    views: SegmentViews, image: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw views of an image (4, H, W): of (3, H, W), and of its label map (H, W)."""
    return views(*whole(image), generator)

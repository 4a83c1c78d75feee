"""Batches from images of one size in memory: cut and resized a batch at a time, on any device.

The batches are those of `Reader`. Resampling is a matrix product with all pixels of an image, so
on a CPU it is faster than image by image only for small ones.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from beit.data.batch import Batch
from beit.data.cached import CachedSource
from beit.data.colours import grey_mean
from beit.data.reader import Key, with_colours
from beit.data.source import Source
from beit.data.views import NUM_DRAWS, TrainViews
from beit.nn.resample import bicubic_crops

_LONGEST = {"cpu": 48, "cuda": 256}  # sides of images and views


class Drawn(NamedTuple):
    """All that is random in a batch."""

    indices: Tensor  # (B,) int64
    boxes: Tensor  # (B, 4) int64: top, left, height, width
    mirrored: Tensor  # (B,) bool
    crops: Tensor  # (B, 5), see `Batch.crops`
    changes: Tensor  # (B, 3, 3) for `recoloured`; empty without jitter


class ResidentReader:
    """Reads the batch of a key from all `images` (n, 3, H, W) uint8 of a source."""

    def __init__(self, images: Tensor, source: Source, views: TrainViews, seed: int) -> None:
        self.images, self._views, self._seed = images, views, seed
        self._labels = torch.full((len(images),), -1) if source.labels is None else source.labels
        self._grey_means = np.zeros(len(images))
        if views.config.color_jitter > 0:
            self._grey_means = grey_mean(images)

    def __call__(self, key: Key) -> Batch:
        """Read a batch whole, on the device of the images."""
        return self.cut(self.draw(key), self.images)

    def draw(self, key: Key) -> Drawn:
        """Draw the crops of a batch and the changes of its colours."""
        draws = torch.empty(len(key.indices), NUM_DRAWS, dtype=torch.float64)
        for row, generator in zip(draws.unbind(), key.generators(self._seed), strict=True):
            row.uniform_(generator=generator)
        height, width = self.images.shape[-2:]
        pairs = zip(draws.tolist(), self._grey_means[key.indices].tolist(), strict=True)
        plans = [self._views.plan(height, width, row, mean) for row, mean in pairs]
        boxes, mirrored, changes = (torch.tensor(column) for column in zip(*plans, strict=True))
        shares = boxes.double() / torch.tensor([height, width, height, width])
        crops = torch.cat([shares, mirrored[:, None]], dim=1).float()
        indices = torch.tensor(key.indices)
        return Drawn(indices, boxes, mirrored, crops, changes)

    def cut(self, drawn: Drawn, images: Tensor) -> Batch:
        """Cut the views of a batch out of all images, on their device."""
        indices, boxes, mirrored, crops, changes = drawn
        chosen = images.index_select(0, indices.to(images.device, non_blocking=True))
        sizes = dict.fromkeys((self._views.size, self._views.target_size))
        views = [bicubic_crops(chosen, boxes, mirrored, size) for size in sizes]
        batch = Batch(views[0], views[-1], self._labels[indices], indices, [], crops=crops)
        return with_colours(batch, changes)


def resident_reader(
    source: Source, views: object, seed: int, device: torch.device
) -> ResidentReader | None:
    """Return the reader of a set that is in memory, if it is faster on the device; else None."""
    images = source.whole if isinstance(source, CachedSource) else None
    if images is None or images.shape[1] != 3 or not isinstance(views, TrainViews):
        return None
    longest = max(*images.shape[-2:], *views.size, *views.target_size)
    lanczos = views.by_lanczos and views.size != views.target_size
    if lanczos or longest > _LONGEST.get(device.type, 0):
        return None
    return ResidentReader(images, source, views, seed)

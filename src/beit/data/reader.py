"""Read a batch: decode its images one by one, cut their views and stack them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from beit.data.batch import Batch
from beit.data.colours import recoloured
from beit.data.order import sample_generator
from beit.data.source import Source, UnreadableImage
from beit.data.unreadable import described
from beit.data.views import Sample, TrainViews
from beit.wording import some

_MAX_REPLACEMENTS = 100  # unreadable images in a row
_NO_CHANGES = torch.empty(0)


class Key(NamedTuple):
    """Images and views of one batch."""

    epoch: int
    indices: list[int]
    repeats: list[int]  # number of each view among the epoch's views of its image, from 0

    def generators(self, seed: int) -> list[torch.Generator]:
        """Return the generator of each view."""
        views = zip(self.indices, self.repeats, strict=True)
        return [sample_generator(seed, self.epoch, *view) for view in views]


class Reader:
    """Reads the batch of a key; with a seed, views are random and unreadable images replaced."""

    def __init__(
        self, source: Source, view: Callable[..., Any], fields: Sequence[str], seed: int | None
    ) -> None:
        self.source, self.view, self.fields, self.seed = source, view, fields, seed
        if isinstance(view, TrainViews):
            self.view, self.fields = view.sample, Sample._fields
        self.labels = source.labels

    def __call__(self, key: Key) -> Batch:
        """Read a batch whole."""
        return with_colours(*self.read(key))

    def read(self, key: Key) -> tuple[Batch, Tensor]:
        """Read a batch, and the changes of its colours that `with_colours` is to make."""
        shown, unreadable, views = list[int](), list[str](), list[tuple[Any, ...]]()
        generators = None if self.seed is None else key.generators(self.seed)
        for place, index in enumerate(key.indices):
            image, used = self._read(index, unreadable)
            if image is None:
                continue
            view = self.view(image, generators[place]) if generators else self.view(image)
            views.append(view if isinstance(view, tuple) else (view,))
            shown.append(used)
        indices = torch.tensor(shown, dtype=torch.int64)
        labels = torch.full_like(indices, -1) if self.labels is None else self.labels[indices]
        if not views:
            empty = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
            return Batch(empty, empty, labels, indices, unreadable), _NO_CHANGES
        columns = list(zip(*views, strict=True))
        images = torch.stack(columns[0])
        tensors = {"target_images": images}
        for name, column in zip(self.fields, columns, strict=True):
            if isinstance(column[0], Tensor):
                same = column[0] is columns[0][0]  # of one size
                tensors[name] = images if same else torch.stack(column)
            else:
                tensors[name] = torch.tensor(column)
        changes = tensors.pop("changes", _NO_CHANGES)
        return Batch(**tensors, labels=labels, indices=indices, unreadable=unreadable), changes

    def _read(self, index: int, unreadable: list[str]) -> tuple[Tensor | None, int]:
        """Read an image, or with a seed the next readable one; return its index too."""
        tries = 1 if self.seed is None else min(len(self.source), _MAX_REPLACEMENTS)
        for attempt in range(tries):
            used = (index + attempt) % len(self.source)
            try:
                return self.source.image(used), used
            except UnreadableImage as error:
                unreadable.append(str(error))
        if self.seed is None:
            return None, index
        why = described(unreadable[-tries:], "Repair or remove them")
        raise ValueError(f"{tries} images in a row cannot be read: {why}")

    def named(self, key: Key) -> str:
        """Name the images of a key, a few of them if there are many."""
        return some([self.source.name(index) for index in key.indices], 3)


def with_colours(batch: Batch, changes: Tensor) -> Batch:
    """Change the colours of a batch's views, on their device."""
    images = recoloured(batch.images, changes)
    same = batch.target_images is batch.images
    targets = images if same else recoloured(batch.target_images, changes)
    return batch._replace(images=images, target_images=targets)

"""The images of a codebook: which of them have patches, and reading some of them again."""

from collections.abc import Callable, Iterator
from math import prod

import torch
from torch import Tensor

from beit.codebook.contents import WholeImage
from beit.codebook.crops import Crop, crop_patch, thumbnail
from beit.data.batches import EvalBatches
from beit.data.decoding import UnreadableImage
from beit.data.sources import PartSource, Source
from beit.data.views import EvalView
from beit.rows.lines import printable


class CodebookSource:
    """A source with printable names, whose images smaller than a patch count as unreadable."""

    def __init__(self, source: Source, patch_size: int) -> None:
        self._source, self._patch_size = source, patch_size
        self.labels, self.class_names = source.labels, source.class_names

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int) -> Tensor:
        image, P = self._source.image(index), self._patch_size
        _, height, width = image.shape
        if min(height, width) < P:
            reason = f"{height} x {width} pixels are smaller than a patch of {P} x {P}"
            raise UnreadableImage(self.name(index), reason)
        return image

    def name(self, index: int) -> str:
        return printable(self._source.name(index))


def label_names(source: Source) -> list[str]:
    """Return the names of the labels, numbers for those without one; empty without labels."""
    if source.labels is None or not bool((source.labels >= 0).any()):
        return []
    names = [printable(name) for name in source.class_names or []]
    return names + [f"label {number}" for number in range(len(names), int(source.labels.max()) + 1)]


class ImageReader:
    """Reads some images of a source again, each once, in order."""

    def __init__(
        self,
        source: Source,
        view: EvalView,
        grid: tuple[int, int],
        *,
        batch_size: int,
        num_workers: int,
    ) -> None:
        self._source, self._view, self._grid = source, view, grid
        self._batch_size, self._num_workers = batch_size, num_workers

    def crops(self, places: Tensor, context: int) -> Iterator[tuple[int, Crop]]:
        """Yield the crop of each place (m,) int64 sorted; images now unreadable are skipped."""
        N = prod(self._grid)
        positions: dict[int, list[int]] = {}
        for image, position in zip((places // N).tolist(), (places % N).tolist(), strict=True):
            positions.setdefault(image, []).append(position)
        for images, indices in self._read(torch.tensor(list(positions), dtype=torch.int64)):
            for image, index in zip(images, indices, strict=True):
                for position in positions[index]:
                    yield index * N + position, crop_patch(image, position, self._grid, context)

    def whole_images(
        self,
        number: int,
        encode: Callable[[Tensor], Tensor],
        label: Callable[[int], str | None],
    ) -> Iterator[WholeImage]:
        """Yield `number` images, evenly spaced in the source, with their codes.

        Args:
            encode: from images (B, 3, H, W) to codes (B, N)
            label: from the number of an image to the name of its label
        """
        total = len(self._source)
        chosen = torch.linspace(0, total - 1, min(number, total)).round().long().unique()
        for images, indices in self._read(chosen):
            rows = encode(images).cpu().numpy()
            for image, codes, index in zip(images, rows, indices, strict=True):
                small = thumbnail(image.permute(1, 2, 0).numpy())
                yield WholeImage(index, self._source.name(index), small, codes, label(index))

    def _read(self, indices: Tensor) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield images (B, 3, H, W) and their numbers, for sorted numbers (n,) int64."""
        if not len(indices):
            return
        part = PartSource(self._source, indices)
        for batch in EvalBatches(part, self._view, self._batch_size, num_workers=self._num_workers):
            if len(batch.indices):
                yield batch.images, indices[batch.indices].tolist()

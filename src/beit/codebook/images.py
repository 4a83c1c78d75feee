"""The images of a codebook: which of them have patches, and reading some of them again."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from beit.codebook.contents import Codebook, WholeImage
from beit.codebook.crops import Crop, crop_patch
from beit.data.batches import EvalBatches
from beit.data.source import PartSource, Source, UnreadableImage
from beit.data.views import EvalView
from beit.draw.canvas import shown
from beit.draw.components import directions, feature_colours
from beit.draw.thumbnails import thumbnail
from beit.rows.lines import printable

Read = Callable[[Tensor], Iterable[tuple[Tensor, list[int]]]]


class CodebookSource:
    """A source with printable names, whose images smaller than a patch count as unreadable."""

    def __init__(self, source: Source, patch_size: int) -> None:
        self._source, self._patch_size = source, patch_size
        self.labels, self.class_names = _known_labels(source)
        self.why_unlabelled = source.why_unlabelled

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


def _known_labels(source: Source) -> tuple[Tensor | None, list[str] | None]:
    """Return the labels and their names; of labels without a name, only those that occur."""
    labels = source.labels
    if labels is None or not bool((labels >= 0).any()):
        return None, None
    names = [printable(name) for name in source.class_names or []]
    nameless = labels >= len(names)
    values, places = labels[nameless].unique(return_inverse=True)
    labels = labels.clone()
    labels[nameless] = len(names) + places
    return labels, names + [f"label {value}" for value in values.tolist()]


def read_again(
    source: Source, view: EvalView, batch_size: int, num_workers: int, indices: Tensor
) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield the readable ones of some images, sorted (n,) int64: (B, 3, H, W) and their numbers."""
    if not len(indices):
        return
    part = PartSource(source, indices)
    for batch in EvalBatches(part, view, batch_size, num_workers=num_workers):
        if len(batch.indices):
            yield batch.images, indices[batch.indices].tolist()


def read_crops(
    read: Read, grid: tuple[int, int], context: int, places: Tensor
) -> Iterator[tuple[int, Crop]]:
    """Yield the crop of each place (m,) int64 sorted; those of unreadable images are skipped."""
    N = prod(grid)
    positions: dict[int, list[int]] = {}
    for image, position in zip((places // N).tolist(), (places % N).tolist(), strict=True):
        positions.setdefault(image, []).append(position)
    for images, indices in read(torch.tensor(list(positions), dtype=torch.int64)):
        for image, index in zip(images, indices, strict=True):
            for position in positions[index]:
                yield index * N + position, crop_patch(image, position, grid, context)


def read_whole_images(
    read: Read,
    book: Codebook,
    number: int,
    encode: Callable[[Tensor], Tensor],
    features_of: Callable[[Tensor], Tensor] | None,
) -> Iterator[WholeImage]:
    """Yield `number` images, evenly spaced in the source, with their codes and features.

    Args:
        encode: gives the codes (B, N) of images
        features_of: gives their features (B, N, D); None for images without
    """
    total = len(book.source)
    chosen = torch.linspace(0, total - 1, min(number, total)).round().long().unique()
    found: list[WholeImage] = []
    features: list[Tensor] = []
    for images, indices in read(chosen):
        rows = encode(images).cpu().numpy()
        for image, codes, index in zip(images, rows, indices, strict=True):
            small = thumbnail(shown(image).permute(1, 2, 0).contiguous().numpy())
            name, label = book.source.name(index), book.label(index)
            found.append(WholeImage(index, name, small, codes, label))
        if features_of is not None:
            features += features_of(images).float().cpu()  # (N, D) each
    if not features:
        yield from found
        return
    colours = feature_colours(torch.stack(features))  # of all images in the same components
    for image, rgb, patches in zip(found, colours, features, strict=True):
        units = directions(patches).double()
        yield replace(image, colours=rgb, cosines=(units @ units.T).numpy())

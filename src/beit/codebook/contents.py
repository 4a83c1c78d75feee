"""The contents of a codebook: what is collected from images, codes, their patches, codes.json.

A `Codebook` makes one `Code` at a time from its statistics, so that memory does not grow with the
number of patches.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.codebook.crops import Crop
from beit.data.batch import Batch
from beit.data.source import Source
from beit.draw.canvas import Pixels
from beit.nn.code_statistics import CodeStatistics, measures, nearest_codes
from beit.nn.reservoir import EMPTY, Reservoir, in_steps, random_keys
from beit.run.device import gathered, summed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NEAREST = 6  # codes nearest to each code
LABELS = 5  # most frequent labels kept for each code
_FIELDS = (  # of a code in codes.json
    *("uses", "images", "closeness", "purity", "label", "label_entropy", "position_entropy"),
    *("labels", "nearest"),
)


class Collected(NamedTuple):
    """Sums over all patches, and the closest and random patches of each code."""

    statistics: CodeStatistics
    closest: Reservoir
    random: Reservoir

    def megabytes(self) -> float:
        """Return the memory that it takes."""
        tensors = [*self.statistics.tensors(), self.closest.entries, self.random.entries]
        return sum(tensor.nbytes for tensor in tensors) / 1e6

    def add(self, seed: int, batch: Batch, codes: Tensor, scores: Tensor) -> None:
        """Add the images of a batch with their codes and scores (B, N)."""
        device, N = self.statistics.total.device, codes.shape[1]
        parts = (batch.images, codes, scores, batch.labels, batch.indices)
        images, codes, scores, labels, indices = (part.to(device) for part in parts)
        self.statistics.add(images, codes, scores, labels)
        places = (indices[:, None] * N + torch.arange(N, device=device)).flatten()
        codes, scores = codes.flatten(), in_steps(scores).flatten()
        self.closest.add(codes, scores, places, scores)
        self.random.add(codes, random_keys(seed, places), places, scores)

    def reduce(self, fabric: "Fabric") -> None:
        """Combine the statistics and patches of all processes, in place."""
        if fabric.world_size == 1:
            return
        for tensor in self.statistics.tensors():
            tensor.copy_(summed(fabric, tensor.to(fabric.device)))
        for reservoir in (self.closest, self.random):
            K, device = len(reservoir.entries), reservoir.entries.device
            rows = gathered(fabric, reservoir.entries.to(fabric.device)).to(device)
            reservoir.entries = rows[:K].clone()
            for entries in rows[K:].split(K):
                reservoir.merge(entries)


@dataclass(frozen=True)
class Patch:
    """A patch of an image."""

    image: int  # number of its image in the source
    position: int  # in [0, N)
    closeness: float | None = None  # to its code, larger is closer; None if unknown
    name: str = ""  # of its image
    label: str | None = None  # of its image, None if unknown
    crop: Crop | None = None  # its pixels and surroundings, None until the image is read again


@dataclass(frozen=True)
class Code:
    """A code and its statistics; None where a statistic is undefined, as for an unused code."""

    index: int  # in [0, K)
    uses: int  # number of patches with this code
    positions: NDArray[np.integer]  # (Gh, Gw), uses at each position; they sum to `uses`
    images: int = 0  # number of images that contain it
    closeness: float | None = None  # mean over its patches
    purity: float | None = None  # share of its most frequent label, in (0, 1]
    label: str | None = None  # name of that label
    label_entropy: float | None = None  # in bits
    position_entropy: float | None = None  # in bits, 0 to log2 N
    labels: Sequence[tuple[str, float]] = ()  # most frequent ones with their shares, in order
    nearest: Sequence[tuple[int, float]] = ()  # other codes with their cosines, nearest first
    closest: Sequence[Patch] = ()  # its closest patches, closest first
    random: Sequence[Patch] = ()  # a uniform sample of its patches, in random order


@dataclass(frozen=True)
class WholeImage:
    """An image with the codes of all its patches."""

    index: int  # its number in the source
    name: str  # shown as text
    thumbnail: bytes  # a JPEG, PNG or WebP image (see `beit.draw.thumbnails`)
    codes: NDArray[np.integer]  # (N,), row by row
    label: str | None = None  # None if unknown
    colours: NDArray[np.uint8] | None = None  # (N, 3), its features by principal components
    cosines: NDArray[np.floating] | None = None  # (N, N), of its patches' features


def with_crops(code: Code, find: Callable[[Patch], Crop | None]) -> Code:
    """Give the patches of a code their crops; patches without one are removed."""

    def cropped(patches: Iterable[Patch]) -> list[Patch]:
        crops = ((patch, find(patch)) for patch in patches)
        return [replace(patch, crop=crop) for patch, crop in crops if crop is not None]

    return replace(code, closest=cropped(code.closest), random=cropped(code.random))


class Codebook:
    """The codes of a tokenizer with their statistics on a set of images, on the CPU."""

    def __init__(
        self,
        collected: Collected,
        vectors: Tensor,
        grid: tuple[int, int],
        source: Source,
        label_names: Sequence[str],
        on_sphere: bool,
    ) -> None:
        """Compute the measures of all codes.

        Args:
            collected: statistics and patches
            vectors: (K, C), of the codes
            grid: (Gh, Gw)
            source: the images
            label_names: empty without labels
            on_sphere: the tokenizer compares vectors by their angle only
        """
        self.statistics, self.vectors, self.grid = collected.statistics, vectors, grid
        self.source, self.label_names, self.on_sphere = source, label_names, on_sphere
        self.measures = measures(self.statistics)
        self.mean_patches: Pixels = self.statistics.mean_patches().cpu().numpy()
        self._nearest = nearest_codes(vectors, NEAREST)
        self._labels = self.statistics.labels.cpu()
        self._positions = self.statistics.positions.cpu()
        reservoirs = (collected.closest, collected.random)
        self._kept = [(kept.places.cpu(), kept.scores.cpu()) for kept in reservoirs]

    def __len__(self) -> int:
        return len(self.vectors)

    def place(self, patch: Patch) -> int:
        """Return the number of a patch: image * N + position."""
        return patch.image * prod(self.grid) + patch.position

    def label(self, image: int) -> str | None:
        """Return the name of an image's label, None if unknown."""
        return None if self.source.labels is None else self._name(self.source.labels[image])

    def places(
        self, codes: Sequence[int], closest: int | None = None, random: bool = True
    ) -> Tensor:
        """Return the sorted places of the patches kept for some codes: (m,) int64.

        Args:
            codes: in [0, K)
            closest: only this many of the closest patches of each code; None for all
            random: include the random patches
        """
        limits = (closest, None) if random else (closest,)
        kept = zip(self._kept, limits, strict=False)
        places = torch.cat([part[0][list(codes), :limit].flatten() for part, limit in kept])
        unique: Tensor = places[places != EMPTY].unique()
        return unique

    def code(self, index: int) -> Code:
        """Return one code; its patches have no crops yet."""
        measured = self.measures
        nearest = zip(*(part[index].tolist() for part in self._nearest), strict=True)
        closest, random = (self._patches(index, *kept) for kept in self._kept)
        return Code(
            index=index,
            uses=int(measured.uses[index]),
            positions=self._positions[:, index].view(self.grid).numpy(),
            images=int(measured.images[index]),
            closeness=_defined(measured.closeness[index]),
            purity=_defined(measured.purity[index]),
            label=self._name(measured.label[index]),
            label_entropy=_defined(measured.label_entropy[index]),
            position_entropy=_defined(measured.position_entropy[index]),
            labels=self._frequent_labels(index),
            nearest=[(other, round(cosine, 6)) for other, cosine in nearest],
            closest=closest,
            random=random,
        )

    def _name(self, label: Tensor) -> str | None:
        return self.label_names[int(label)] if label >= 0 else None

    def _patches(self, code: int, places: Tensor, scores: Tensor) -> list[Patch]:
        N = prod(self.grid)
        rows = zip(places[code].tolist(), scores[code].tolist(), strict=True)
        located = [(*divmod(place, N), score) for place, score in rows if place != EMPTY]
        return [
            Patch(image, position, score, self.source.name(image), self.label(image))
            for image, position, score in located
        ]

    def _frequent_labels(self, code: int) -> list[tuple[str, float]]:
        counts = self._labels[code]
        if not bool(counts.sum()):
            return []
        values, labels = counts.sort(descending=True, stable=True)
        pairs = zip(labels.tolist()[:LABELS], (values / counts.sum()).tolist(), strict=False)
        return [(self.label_names[label], round(share, 4)) for label, share in pairs if share]


def _defined(value: Tensor) -> float | None:
    """Return None for NaN."""
    return None if isnan(value) else float(value)


def codes_json(about: Mapping[str, Any], book: Codebook) -> str:
    """Return the text of codes.json: a line for each code and image, named by number."""
    codes = ",\n".join(_line(_record(book.code(index))) for index in range(len(book)))
    numbers = (book.places(range(len(book))) // prod(book.grid)).unique().tolist()
    images = ",\n".join(
        f'"{number}": {_line({"name": book.source.name(number), "label": book.label(number)})}'
        for number in numbers
    )
    return (
        f'{{"about": {_line(about)},\n"patch": ["image", "position", "closeness"],\n'
        f'"codes": [\n{codes}\n],\n"images": {{\n{images}\n}}}}\n'
    )


def _record(code: Code) -> dict[str, Any]:
    patches = {
        kind: [(patch.image, patch.position, patch.closeness) for patch in getattr(code, kind)]
        for kind in ("closest", "random")
    }
    values = {name: getattr(code, name) for name in _FIELDS}
    return {"code": code.index, **values, "patches": patches}


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)

"""The contents of a codebook: codes, their patches, whole images; used by all of its pages.

A `Codebook` makes one `Code` at a time from its statistics, so that memory does not grow with the
number of patches.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import isnan, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.codebook.collected import Collected
from beit.codebook.crops import Crop
from beit.data.sources import Source
from beit.draw.canvas import Pixels
from beit.nn.code_statistics import CodeMeasures, measures, nearest_codes
from beit.nn.reservoir import EMPTY

NEAREST = 6  # codes nearest to each code
LABELS = 5  # most frequent labels kept for each code


@dataclass(frozen=True)
class Patch:
    """A patch of an image.

    Attributes:
        image: number of its image in the source
        position: in [0, N)
        closeness: how close it is to its code, larger is closer; None if unknown
        name: of its image, "" for none
        label: of its image, None if unknown
        crop: its pixels and surroundings, None until the image is read again
    """

    image: int
    position: int
    closeness: float | None = None
    name: str = ""
    label: str | None = None
    crop: Crop | None = None


@dataclass(frozen=True)
class Code:
    """A code and its statistics; None where a statistic is undefined, as for an unused code.

    Attributes:
        index: in [0, K)
        uses: number of patches with this code
        positions: (Gh, Gw) int, uses at each position; they sum to `uses`
        images: number of images that contain it
        closeness: mean over its patches
        purity: share of its most frequent label, in (0, 1]
        label: name of that label
        label_entropy: in bits
        position_entropy: in bits, 0 to log2 N
        labels: its most frequent labels with their shares, most frequent first
        nearest: other codes with their cosines, nearest first
        closest: its closest patches, closest first
        random: a uniform sample of its patches, in random order
    """

    index: int
    uses: int
    positions: NDArray[np.integer]
    images: int = 0
    closeness: float | None = None
    purity: float | None = None
    label: str | None = None
    label_entropy: float | None = None
    position_entropy: float | None = None
    labels: Sequence[tuple[str, float]] = ()
    nearest: Sequence[tuple[int, float]] = ()
    closest: Sequence[Patch] = ()
    random: Sequence[Patch] = ()


@dataclass(frozen=True)
class WholeImage:
    """An image with the codes of all its patches.

    Attributes:
        index: its number in the source
        name: shown as text
        thumbnail: an encoded JPEG, PNG or WebP image (`crops.thumbnail` makes one)
        codes: (N,) int, row by row
        label: None if unknown
    """

    index: int
    name: str
    thumbnail: bytes
    codes: NDArray[np.integer]
    label: str | None = None


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
        on_sphere: bool = True,
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
        self.measures: CodeMeasures = measures(self.statistics)
        self.mean_patches: Pixels = self.statistics.mean_patches().cpu().numpy()
        self._nearest = nearest_codes(vectors, NEAREST)
        self._labels = self.statistics.labels.cpu()
        self._positions = self.statistics.positions.cpu()
        self._kept = [
            (reservoir.places.cpu(), reservoir.scores.cpu())
            for reservoir in (collected.closest, collected.random)
        ]

    def __len__(self) -> int:
        return len(self.vectors)

    def place(self, patch: Patch) -> int:
        """Return the number of a patch: image * N + position."""
        return patch.image * prod(self.grid) + patch.position

    def label(self, image: int) -> str | None:
        """Return the name of an image's label, None if unknown."""
        label = -1 if self.source.labels is None else int(self.source.labels[image])
        return self.label_names[label] if label >= 0 else None

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
        label = int(measured.label[index])
        closest, random = (self._patches(index, *kept) for kept in self._kept)
        return Code(
            index=index,
            uses=int(measured.uses[index]),
            positions=self._positions[:, index].view(self.grid).numpy(),
            images=int(measured.images[index]),
            closeness=_defined(measured.closeness[index]),
            purity=_defined(measured.purity[index]),
            label=self.label_names[label] if label >= 0 else None,
            label_entropy=_defined(measured.label_entropy[index]),
            position_entropy=_defined(measured.position_entropy[index]),
            labels=self._frequent_labels(index),
            nearest=[(other, round(cosine, 4)) for other, cosine in nearest],
            closest=closest,
            random=random,
        )

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
        sorted_counts = counts.sort(descending=True, stable=True)
        shares = (sorted_counts.values / counts.sum()).tolist()
        pairs = zip(sorted_counts.indices.tolist()[:LABELS], shares, strict=False)
        return [(self.label_names[label], round(share, 4)) for label, share in pairs if share]


def _defined(value: Tensor) -> float | None:
    """Return None for NaN."""
    return None if isnan(value) else float(value)

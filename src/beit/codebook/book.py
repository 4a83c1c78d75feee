"""What streaming over images has found of every code, put together, and written as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, prod
from typing import Any, Protocol

import torch
from torch import Tensor

from beit.draw.canvas import Pixels
from beit.nn.code_statistics import CodeMeasures, CodeStatistics, measures, nearest_codes
from beit.nn.reservoir import EMPTY, Reservoir

NEAREST = 6  # codes nearest to each code
LABELS = 5  # most frequent labels of a code that are kept


class Images(Protocol):
    """Where the patches come from."""

    def name(self, index: int) -> str:
        """Say which image this is, in letters that UTF-8 has."""

    @property
    def labels(self) -> Tensor | None:
        """(n,) int64, -1 where unknown."""


@dataclass(frozen=True)
class Seen:
    """A patch that was kept: the number of its image in the source, its place, its score."""

    image: int
    position: int
    closeness: float


@dataclass(frozen=True)
class CodeEntry:
    """All that is said of one code; None where it is undefined, as for a code without uses.

    Attributes:
        code: in [0, K)
        uses: patches with it
        images: images that hold it
        closeness: mean score of its patches
        purity: share of its most frequent label, in (0, 1]
        label: that label's name
        label_entropy: bits
        position_entropy: bits
        labels: its most frequent labels with their shares, the most frequent first
        nearest: other codes with their cosines, the nearest first
        closest: the patches closest to it, the closest first
        random: a uniform sample of its patches, in random order
    """

    code: int
    uses: int
    images: int
    closeness: float | None
    purity: float | None
    label: str | None
    label_entropy: float | None
    position_entropy: float | None
    labels: Sequence[tuple[str, float]] = ()
    nearest: Sequence[tuple[int, float]] = ()
    closest: Sequence[Seen] = ()
    random: Sequence[Seen] = ()

    def plain(self) -> dict[str, Any]:
        """Give it as JSON has it: patches as [image, position, closeness]."""

        def rows(patches: Sequence[Seen]) -> list[list[float]]:
            return [[seen.image, seen.position, seen.closeness] for seen in patches]

        return {
            **{name: value for name, value in vars(self).items() if name not in _PATCHES},
            "labels": [list(pair) for pair in self.labels],
            "nearest": [list(pair) for pair in self.nearest],
            "patches": {"closest": rows(self.closest), "random": rows(self.random)},
        }


_PATCHES = ("closest", "random")


class CodeBook:
    """What was found of each code, on the CPU."""

    def __init__(
        self,
        statistics: CodeStatistics,
        closest: Reservoir,
        random: Reservoir,
        vectors: Tensor,
        grid: tuple[int, int],
        names: Sequence[str],
        on_sphere: bool = True,
    ) -> None:
        """Measure it.

        Args:
            vectors: (K, C), of the codes
            grid: (Gh, Gw)
            names: of the labels, (); for none
            on_sphere: the tokenizer compares vectors by their angle alone
        """
        self.statistics, self.vectors, self.grid = statistics, vectors, grid
        self.names, self.on_sphere = names, on_sphere
        self.measures: CodeMeasures = measures(statistics)
        self.mean_patches: Pixels = statistics.mean_patches().cpu().numpy()
        self._nearest = nearest_codes(vectors, NEAREST)
        self._kept = [
            (reservoir.places.cpu(), reservoir.scores.cpu()) for reservoir in (closest, random)
        ]
        self._labels = statistics.labels.cpu()
        self.num_used = int((self.measures.uses > 0).sum())

    @property
    def per_code(self) -> int:
        """Closest patches kept of each code, at most."""
        return self._kept[0][0].shape[1]

    def place(self, seen: Seen) -> int:
        """Number a patch: image * N + position."""
        return seen.image * prod(self.grid) + seen.position

    def label(self, images: Images, image: int) -> str | None:
        """Name the label of an image, None where it is unknown."""
        label = -1 if images.labels is None else int(images.labels[image])
        return self.names[label] if label >= 0 else None

    def places(self, codes: Sequence[int], closest: int | None = None) -> Tensor:
        """Return the places of all patches kept of some codes, or the closest, sorted: (m,) int64.

        closest: so many of the closest, and none of the random ones
        """
        kinds = self._kept[:1] if closest else self._kept
        kept = torch.cat([places[list(codes), :closest].flatten() for places, _ in kinds])
        unique: Tensor = kept[kept != EMPTY].unique()
        return unique

    def entry(self, code: int) -> CodeEntry:
        """Say all that is known of a code."""
        found, N = self.measures, prod(self.grid)
        patches = [
            tuple(
                Seen(place // N, place % N, score)
                for place, score in zip(places[code].tolist(), scores[code].tolist(), strict=True)
                if place != EMPTY
            )
            for places, scores in self._kept
        ]
        nearest = zip(*(part[code].tolist() for part in self._nearest), strict=True)
        label = int(found.label[code])
        return CodeEntry(
            code,
            int(found.uses[code]),
            int(found.images[code]),
            _known(float(found.closeness[code])),
            _known(float(found.purity[code])),
            self.names[label] if label >= 0 else None,
            _known(float(found.label_entropy[code])),
            _known(float(found.position_entropy[code])),
            self._frequent_labels(code),
            tuple((other, round(cosine, 4)) for other, cosine in nearest),
            *patches,
        )

    def _frequent_labels(self, code: int) -> list[tuple[str, float]]:
        counts = self._labels[code]
        if not bool(counts.sum()):
            return []
        most = counts.sort(descending=True, stable=True)
        shares = (most.values / counts.sum()).tolist()
        pairs = zip(most.indices.tolist()[:LABELS], shares, strict=False)
        return [(self.names[label], round(share, 4)) for label, share in pairs if share]


def _known(value: float) -> float | None:
    """Give None for NaN."""
    return None if isnan(value) else value


def json_of(about: Mapping[str, Any], book: CodeBook, images: Images) -> str:
    """Write codes.json: a line a code; images by number, with their names in `images`."""
    codes = range(len(book.vectors))
    N = prod(book.grid)
    numbers = (book.places(codes) // N).unique().tolist()
    parts = [f'{{"about": {_line(about)},\n"patch": ["image", "position", "closeness"],\n']
    lines = (_line(book.entry(code).plain()) for code in codes)
    parts += ['"codes": [\n', ",\n".join(lines), '\n],\n"images": {\n']
    named = ({"name": images.name(image), "label": book.label(images, image)} for image in numbers)
    pairs = zip(numbers, named, strict=True)
    parts += [",\n".join(f'"{image}": {_line(about)}' for image, about in pairs), "\n}}\n"]
    return "".join(parts)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)

"""Several sources, drawn by weight in a training: {photos: 0.7, shards/*.tar: 0.3}."""

import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from beit.data.class_names import match_names
from beit.data.imagenet_names import in_one_language
from beit.data.source import PartSource, Source, file_of
from beit.data.spec import split_part

_ENTRY = re.compile(r"\s*(?P<source>[^\s].*?)\s*:\s+(?P<weight>[^\s,]+)\s*(?:,|$)")
_EXPECTED = "expected sources with positive weights, as in {photos: 0.7, shards/*.tar: 0.3}"


class Mixture(NamedTuple):
    """Where images come from, (n,) int64, and the share of each set in the images of a training."""

    origins: Tensor
    shares: list[float]


class MixedSource:
    """The images of several sources, one after the other; a name begins with that of its source.

    Classes are matched by name, or taken as numbers if no source has names. There are no labels if
    a source has none, or only some have names.
    """

    def __init__(
        self, specs: Sequence[str], parts: Sequence[Source], weights: Sequence[float]
    ) -> None:
        self._parts, self._ends = list(parts), list(accumulate(map(len, parts)))
        self._names = [split_part(spec)[0].partition("?")[0].rstrip("/") for spec in specs]
        lengths = torch.tensor([len(part) for part in parts])
        origins = torch.arange(len(parts)).repeat_interleave(lengths)
        self.mixture = Mixture(origins, [weight / sum(weights) for weight in weights])
        self.labels, self.class_names, self.why_unlabelled = _labels(specs, parts)

    def __len__(self) -> int:
        return self._ends[-1]

    def image(self, index: int) -> Tensor:
        part, place = self._place(index)
        return self._parts[part].image(place)

    def name(self, index: int) -> str:
        part, place = self._place(index)
        return f"{self._names[part]}/{self._parts[part].name(place)}"

    def file(self, index: int) -> Path | None:
        part, place = self._place(index)
        return file_of(self._parts[part], place)

    def _place(self, index: int) -> tuple[int, int]:
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)


def weights_of(spec: str) -> dict[str, float]:
    """Read a mixture: weights by source. Empty for other names; ValueError if it is not read."""
    if not (spec.startswith("{") and spec.endswith("}") and re.search(r":\s", spec)):
        return {}
    if os.path.exists(spec):
        return {}
    inside, place, found = spec[1:-1], 0, dict[str, float]()
    while place < len(inside.rstrip()):
        entry = _ENTRY.match(inside, place)
        source = entry["source"].strip("'\"") if entry else ""
        try:
            weight = float(entry["weight"]) if entry else 0.0
        except ValueError:
            weight = 0.0
        if entry is None or not 0 < weight < inf:
            raise ValueError(f"{spec}: {inside[place:].strip()!r} is not read; {_EXPECTED}")
        if source in found:
            raise ValueError(f"{spec}: {source} is named twice; add its weights")
        found[source], place = weight, entry.end()
    return found


def mixture_of(source: object) -> Mixture | None:
    """Return the mixture that a source is, or is taken from; None for others.

    ValueError if a part or limit has no image of one of its sets.
    """
    if isinstance(source, MixedSource):
        return source.mixture
    inner = getattr(source, "_source", None)
    mixture = None if inner is None else mixture_of(inner)
    if mixture is None or not isinstance(source, PartSource):
        return mixture
    origins = mixture.origins[source._indices]
    if len(origins.unique()) < len(mixture.shares):
        raise ValueError(
            f"of the {len(origins)} images that are left of a mixture, none is from one of its "
            f"{len(mixture.shares)} sets; raise the limit, or make the part larger"
        )
    return Mixture(origins, mixture.shares)


def _labels(
    specs: Sequence[str], parts: Sequence[Source]
) -> tuple[Tensor | None, list[str] | None, str]:
    """Join the labels of sources: (n,) int64, the classes' names, and why there are none."""
    labels, names = list[Tensor](), list[str]()
    named = [part.class_names is not None for part in parts]
    for spec, part in zip(specs, parts, strict=True):
        if part.labels is None:
            return None, None, f"{spec} has none: {part.why_unlabelled}"
        if any(named) and not all(named):
            there, lacking = specs[named.index(True)], specs[named.index(False)]
            return None, None, f"{there} has class names and {lacking} has numbers"
        own, numbers = part.class_names or [], part.labels
        if own:
            matched = match_names(*in_one_language(own, names)) if names else [-1] * len(own)
            for place, known in enumerate(matched):
                if known < 0:
                    matched[place] = len(names)
                    names.append(own[place])
            numbers = torch.tensor([*matched, -1])[numbers]  # -1: no label
        labels.append(numbers)
    return torch.cat(labels), names if all(named) else None, ""

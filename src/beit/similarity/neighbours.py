"""Nearest neighbours by cosine, and how often they share a label."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

NEARLY_IDENTICAL = 0.999  # cosine above which two images are named nearly identical
_CHUNK = 1 << 22  # cosines in memory at once


class Near(NamedTuple):
    """The nearest vectors of each query, nearest first; -1 where there are no more."""

    rows: Tensor  # (q, k) int64
    cosines: Tensor  # (q, k) float32


def nearest(
    queries: Tensor, vectors: Tensor, count: int, left_out: Sequence[Sequence[int]]
) -> Near:
    """Find the `count` nearest of vectors (n, D) for each query (q, D); all of length 1.

    `left_out` are the rows of `vectors` that each query must not find, such as itself. Of equal
    cosines the first row comes first.
    """
    q, n = len(queries), len(vectors)
    k = min(count, n)
    rows, cosines = torch.empty(q, k, dtype=torch.int64), torch.empty(q, k)
    size = max(1, _CHUNK // n)
    for start in range(0, q, size):
        scores = queries[start : start + size] @ vectors.T  # (b, n)
        for row, hidden in enumerate(left_out[start : start + size]):
            scores[row, list(hidden)] = -torch.inf
        best, order = scores.sort(dim=1, descending=True, stable=True)
        rows[start : start + size] = order[:, :k].where(best[:, :k] > -torch.inf, -1)
        cosines[start : start + size] = best[:, :k]
    return Near(rows, cosines)


def all_nearest(vectors: Tensor, count: int) -> Near:
    """Find the nearest others of each of the vectors (n, D)."""
    count = min(count, len(vectors) - 1)
    return nearest(vectors, vectors, count, [[row] for row in range(len(vectors))])


def mean_cosine(vectors: Tensor) -> float:
    """Return the mean cosine of two different rows of (n, D), all of length 1, n > 1."""
    n = len(vectors)
    total = vectors.double().sum(dim=0).square().sum()
    return float((total - n) / (n * (n - 1)))


def agreement(rows: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the share of neighbours (n, k) that have the label of their image, and chance.

    Images and neighbours without a label (-1) do not count. Chance is the share of two different
    labelled images that have the same label.
    """
    known = labels >= 0
    pairs = known[:, None] & known[rows]  # (n, k)
    same = (labels[:, None] == labels[rows]) & pairs
    counts = labels[known].bincount().double()
    total = counts.sum()
    chance = float((counts * (counts - 1)).sum() / (total * (total - 1)).clamp(min=1))
    return float(same.sum() / pairs.sum().clamp(min=1)), chance

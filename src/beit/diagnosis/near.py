"""Copies and near copies: images with equal digests, or with hashes that differ in few bits.

Not all pairs are compared. If two hashes differ in d bits at most, then of d + 3 parts into which
their 64 bits are cut three are equal at least. So it is enough to sort by each choice of three
parts and to compare neighbours with an equal choice. Memory grows with the number of images.
"""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]

BITS = 64
EQUAL = 3  # parts of two near hashes that are equal at least
MOST = 16  # bits in which near hashes may differ
_EDGES = 1 << 22  # pairs that wait in memory
_CELLS = 1 << 24  # distances that are computed at once


def distances(first: Hashes, second: Hashes) -> NDArray[Any]:
    """Return in how many bits hashes differ, element by element."""
    apart: NDArray[Any] = np.bitwise_count(first ^ second)
    return apart


def first_copies(digests: Hashes, considered: NDArray[np.bool_]) -> Indices:
    """Return for each image the first one with the same digest (n,); itself if not considered."""
    first = np.arange(len(digests))
    places = np.flatnonzero(considered)
    _, earliest, which = np.unique(digests[places], return_index=True, return_inverse=True)
    first[places] = places[earliest[which]]
    return first


def groups(hashes: Hashes, distance: int) -> Indices:
    """Number hashes (n,), all different, so that those within a distance have one number.

    Others may have it too, if there is a chain of near ones between them.
    """
    count, number = len(hashes), np.arange(len(hashes))
    waiting = list[NDArray[np.int64]]()  # (2, pairs) each

    def join() -> None:
        nonlocal number
        if waiting:
            first, second = number[np.concatenate(waiting, axis=1)]
            ones = np.ones(len(first), np.bool_)
            graph = coo_array((ones, (first, second)), shape=(count, count))
            number = connected_components(graph, directed=False)[1][number]
            waiting.clear()

    for parts in combinations(_masks(distance), EQUAL):
        key = hashes & np.bitwise_or.reduce(np.array(parts, np.uint64))
        order = np.argsort(key, kind="stable")
        key, ordered, lower = key[order], hashes[order], np.arange(count - 1)
        for offset in range(1, count):
            lower = lower[lower + offset < count]
            lower = lower[key[lower] == key[lower + offset]]
            if not len(lower):
                break
            near = lower[distances(ordered[lower], ordered[lower + offset]) <= distance]
            pairs = np.stack([order[near], order[near + offset]])
            waiting.append(pairs[:, number[pairs[0]] != number[pairs[1]]])
            if sum(part.shape[1] for part in waiting) > _EDGES:
                join()
        join()
    return number


def _masks(distance: int) -> list[int]:
    """Cut 64 bits into distance + `EQUAL` parts."""
    ends = [BITS * part // (distance + EQUAL) for part in range(distance + EQUAL + 1)]
    return [(1 << end) - (1 << start) for start, end in pairwise(ends)]


def near_ones(
    hashes: Hashes, considered: NDArray[np.bool_], num_test: int, distance: int
) -> tuple[Indices, Indices]:
    """Find near copies among images of which the first `num_test` are those of the test set.

    Args:
        hashes: (n,) perceptual hashes
        considered: (n,) images that can be near others at all

    Returns:
        for each image an earlier one of its own set that is near it, or itself; no two images that
            have themselves here are near each other
        for each training image the test image that is nearest, -1 if none is near; and -1s
    """
    like, leak = np.arange(len(hashes)), np.full(len(hashes), -1)
    places = np.flatnonzero(considered)
    distinct, which = np.unique(hashes[places], return_inverse=True)
    if not len(distinct):
        return like, leak
    number = groups(distinct, distance)[which]
    order = np.argsort(number, kind="stable")  # images of a group in their order
    starts = np.flatnonzero(np.diff(number[order], prepend=-1))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        if end - start < 2:
            continue
        members = places[order[start:end]]
        border = int(np.searchsorted(members, num_test))
        test, train = members[:border], members[border:]
        for part in (test, train):
            _follow(part, hashes, distance, like)
        for piece in np.array_split(train, max(1, len(train) * len(test) // _CELLS)):
            if len(test) and len(piece):
                apart = distances(hashes[piece, None], hashes[None, test])
                nearest = apart.argmin(1)
                near = apart[np.arange(len(piece)), nearest] <= distance
                leak[piece[near]] = test[nearest[near]]
    return like, leak


def _follow(members: Indices, hashes: Hashes, distance: int, like: Indices) -> None:
    """Let each member follow the first earlier one that is near and follows none itself."""
    left = members
    while len(left):
        near = distances(hashes[left], hashes[left[0]]) <= distance
        like[left[near]] = left[0]
        left = left[~near]

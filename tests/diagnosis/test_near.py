"""Copies and near copies: the quick search finds what comparing all pairs finds."""

import numpy as np
import pytest

from beit.diagnosis.near import distances, first_copies, groups, near_ones


def hashes_with_neighbours(count: int, seed: int) -> np.ndarray:
    """Random hashes, and copies of them in which some bits are flipped."""
    generator = np.random.default_rng(seed)
    base = generator.integers(1 << 63, size=count, dtype=np.uint64) * np.uint64(2)
    copies = base.copy()
    for number in range(count):
        for bit in generator.choice(64, size=number % 9, replace=False):
            copies[number] ^= np.uint64(1) << np.uint64(bit)
    return generator.permutation(np.concatenate([base, copies]))


@pytest.mark.parametrize("distance", [0, 1, 4, 7])
def test_groups_are_the_connected_parts_of_all_near_pairs(distance):
    hashes = np.unique(hashes_with_neighbours(60, seed=distance))
    number = groups(hashes, distance)
    near = distances(hashes[:, None], hashes[None]) <= distance
    reached = near.astype(int)
    for _ in range(7):
        reached = (reached @ reached > 0).astype(int)
    assert ((number[:, None] == number[None]) == (reached > 0)).all()


def test_every_image_that_follows_none_is_far_from_the_others():
    hashes = hashes_with_neighbours(150, seed=1)
    considered = np.ones(len(hashes), bool)
    considered[5] = False
    like, leak = near_ones(hashes, considered, num_test=120, distance=4)
    itself = np.arange(len(hashes))
    for members in (itself[:120], itself[120:]):
        alone = members[(like[members] == members) & considered[members]]
        apart = distances(hashes[alone, None], hashes[None, alone])
        assert (apart[~np.eye(len(alone), dtype=bool)] > 4).all()
        followers = members[like[members] != members]
        assert len(followers) > 5 and (like[followers] < followers).all()
        assert (distances(hashes[followers], hashes[like[followers]]) <= 4).all()
    apart = distances(hashes[120:, None], hashes[None, :120]).astype(int)
    apart[:, 5] = 99
    assert ((leak[120:] >= 0) == (apart.min(1) <= 4)).all()
    found = np.flatnonzero(leak >= 0)
    assert len(found) > 5 and (leak[found] == apart[found - 120].argmin(1)).all()
    assert like[5] == 5 and leak[5] == -1 and (leak[:120] == -1).all()


def test_the_first_of_equal_digests():
    digests = np.array([7, 8, 7, 8, 8, 9], np.uint64)
    considered = np.array([True, False, True, True, True, True])
    assert first_copies(digests, considered).tolist() == [0, 1, 0, 3, 3, 5]

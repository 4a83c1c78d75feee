import pytest
import torch

from beit.nn.quantizer import unit
from beit.similarity.layout import (
    _push,
    _weights,
    clusters,
    layout,
    num_clusters,
    purity,
    without_outliers,
)
from beit.similarity.neighbours import all_nearest


@pytest.fixture
def blobs() -> torch.Tensor:
    """Three groups of 12, 10 and 8 directions."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3, 7).repeat_interleave(torch.tensor([12, 10, 8]), dim=0)
    return unit(centres + 0.1 * torch.randn(30, 7, generator=generator))


def test_the_layout_keeps_groups_together_and_is_the_same_each_time(blobs: torch.Tensor) -> None:
    near = all_nearest(blobs, 7)
    places = layout(blobs, near.rows, near.cosines)
    assert places.shape == (30, 2) and bool(places.isfinite().all())
    assert float((places.amax(dim=0) - places.amin(dim=0)).max()) == pytest.approx(1)
    group = torch.arange(3).repeat_interleave(torch.tensor([12, 10, 8]))
    distance = torch.cdist(places, places).fill_diagonal_(torch.inf)
    assert torch.equal(group[distance.argmin(dim=1)], group)
    assert torch.equal(layout(blobs, near.rows, near.cosines), places)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_few_images_have_a_layout(blobs: torch.Tensor, count: int) -> None:
    near = all_nearest(blobs[:count], 5)
    assert bool(layout(blobs[:count], near.rows, near.cosines).isfinite().all())


def test_equal_images_have_a_layout() -> None:
    vectors = unit(torch.ones(8, 3))
    near = all_nearest(vectors, 3)
    assert bool(layout(vectors, near.rows, near.cosines).isfinite().all())


def test_outliers_are_moved_nearer_and_others_stay() -> None:
    places = torch.rand(100, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(without_outliers(places), places)
    places[7] = torch.tensor([50.0, -60.0])
    moved = without_outliers(places)
    assert torch.equal(moved[torch.arange(100) != 7], places[torch.arange(100) != 7])
    assert 1.2 < moved[7, 0] < 1.6 and -0.6 < moved[7, 1] < -0.2


def test_the_push_is_that_of_a_loop() -> None:
    places = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    total, expected = 0.0, torch.zeros(7, 2)
    for i in range(7):
        for j in set(range(7)) - {i}:
            apart = places[i] - places[j]
            close = 1 / (1 + apart.square().sum())
            total += float(close)
            expected[i] += close.square() * apart
    torch.testing.assert_close(_push(places), expected / total)


def test_weights_have_the_entropy_asked_for() -> None:
    distances = torch.tensor([[0.1, 0.2, 0.9, 1.5], [0.001, 0.002, 0.009, 0.015]])
    weights = _weights(distances, 1.0)
    assert weights.sum(dim=1).tolist() == pytest.approx([1, 1])
    entropy = -(weights * weights.log()).sum(dim=1)
    assert entropy.tolist() == pytest.approx([1, 1], abs=1e-4)


def test_clusters_are_numbered_by_size(blobs: torch.Tensor) -> None:
    groups = clusters(blobs, 3, seed=0)
    assert groups.bincount().tolist() == [12, 10, 8]
    assert groups.tolist() == [0] * 12 + [1] * 10 + [2] * 8
    assert clusters(blobs, 1, seed=0).tolist() == [0] * 30
    assert (num_clusters(2), num_clusters(3000), num_clusters(10**6)) == (1, 24, 40)


def test_purity_stands_beside_that_of_shuffled_labels() -> None:
    groups = torch.arange(30).remainder(10)  # ten groups of three
    labels = torch.arange(30).remainder(2)
    labels[:3] = -1
    share, chance = purity(groups, labels, seed=0)
    assert share == 1  # a group holds even or odd numbers only
    assert 0.6 < chance < 0.8  # not 1/2: groups are small

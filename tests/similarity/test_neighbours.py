import pytest
import torch

from beit.nn.quantizer import unit
from beit.similarity import neighbours
from beit.similarity.neighbours import agreement, all_nearest, mean_cosine, nearest


@pytest.fixture
def vectors() -> torch.Tensor:
    return unit(torch.randn(9, 5, generator=torch.Generator().manual_seed(0)))


def test_nearest_are_those_of_a_loop_whatever_the_chunks(
    vectors: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = all_nearest(vectors, 3)
    for row in range(9):
        cosines = {other: float(vectors[row] @ vectors[other]) for other in range(9)}
        del cosines[row]
        expected = sorted(cosines, key=lambda other: -cosines[other])[:3]
        assert near.rows[row].tolist() == expected
        assert near.cosines[row].tolist() == pytest.approx([cosines[o] for o in expected])
    monkeypatch.setattr(neighbours, "_CHUNK", 18)
    assert torch.equal(all_nearest(vectors, 3).rows, near.rows)


def test_rows_left_out_are_not_found_and_missing_ones_are_minus_one(vectors: torch.Tensor) -> None:
    near = nearest(vectors[:1], vectors[:4], 9, [[0, 2]])
    assert sorted(near.rows[0].tolist()) == [-1, -1, 1, 3]
    assert near.rows[0, 2:].tolist() == [-1, -1]
    assert all_nearest(vectors[:3], 9).rows.shape == (3, 2)


def test_the_mean_cosine_is_that_of_different_rows(vectors: torch.Tensor) -> None:
    cosines = vectors @ vectors.T
    expected = (cosines.sum() - 9) / 72
    assert mean_cosine(vectors) == pytest.approx(float(expected), abs=1e-6)


def test_agreement_counts_labelled_pairs_only() -> None:
    rows = torch.tensor([[1, 2], [0, 3], [0, 3], [1, 0]])
    labels = torch.tensor([0, 0, 1, -1])
    share, chance = agreement(rows, labels)  # pairs: 0-1, 0-2, 1-0, 2-0; same: 0-1, 1-0
    assert share == 0.5
    assert chance == pytest.approx(1 / 3)  # of 6 ordered pairs, two are equal

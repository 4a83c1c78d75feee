import math

import pytest
import torch

from beit.nn.metrics import (
    codebook_health,
    confusion_matrix,
    knn_accuracy,
    position_counts,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_codebook_used_evenly() -> None:
    health = codebook_health(torch.full((6,), 4))
    assert (health.usage, health.dead) == (1.0, 0)
    assert health.perplexity == pytest.approx(6)
    assert health.entropy == pytest.approx(math.log(6))


def test_a_codebook_of_which_one_code_is_used() -> None:
    health = codebook_health(torch.tensor([0, 0, 9, 0, 0]))
    assert (health.usage, health.dead) == (0.2, 4)
    assert (health.perplexity, health.entropy) == (1.0, 0.0)
    assert math.copysign(1, health.entropy) == 1  # not -0.0, which would be printed


def test_a_codebook_used_unevenly() -> None:
    health = codebook_health(torch.tensor([1.0, 3.0, 0.0]))  # moving averages are floats
    assert health.usage == pytest.approx(2 / 3)
    assert health.dead == 1
    assert health.entropy == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert health.perplexity == pytest.approx(math.exp(health.entropy))


def test_a_codebook_never_used() -> None:
    assert codebook_health(torch.zeros(7)) == (0.0, 1.0, 0.0, 7)


def test_position_counts_equal_a_naive_loop() -> None:
    codes = torch.randint(7, (20, 15), generator=seeded())
    expected = torch.zeros(15, 7, dtype=torch.int64)
    for image in codes:
        for position, code in enumerate(image):
            expected[position, code] += 1
    counts = position_counts(codes, 7)
    assert torch.equal(counts, expected)
    assert torch.equal(counts.sum(dim=0), torch.bincount(codes.flatten(), minlength=7))


def test_position_counts_have_room_for_codes_that_never_occur() -> None:
    assert (
        position_counts(torch.zeros(2, 3, dtype=torch.int64), 5).tolist() == [[2, 0, 0, 0, 0]] * 3
    )


def naive_knn(train, train_labels, test, test_labels, neighbours: int, temperature: float) -> float:
    hits = 0
    for vector, label in zip(test, test_labels.tolist(), strict=True):
        cosines = [float(torch.cosine_similarity(vector, other, dim=0)) for other in train]
        nearest = sorted(range(len(train)), key=lambda i: -cosines[i])[:neighbours]
        votes: dict[int, float] = {}
        for i in nearest:
            weight = math.exp(cosines[i] / temperature)
            votes[int(train_labels[i])] = votes.get(int(train_labels[i]), 0.0) + weight
        hits += max(votes, key=lambda name: votes[name]) == label
    return hits / len(test)


@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.07), (6, 0.07), (6, 5.0), (99, 0.2)])
def test_knn_equals_a_naive_loop_whatever_the_chunk(neighbours: int, temperature: float) -> None:
    directions = torch.randn(4, 5, generator=seeded())
    train_labels = torch.randint(4, (30,), generator=seeded(1))
    test_labels = torch.randint(4, (17,), generator=seeded(2))
    train = directions[train_labels] + torch.randn(30, 5, generator=seeded(3))
    test = directions[test_labels] + torch.randn(17, 5, generator=seeded(4))
    expected = naive_knn(train, train_labels, test, test_labels, neighbours, temperature)
    assert 0.2 < expected < 0.95
    for chunk in (1024, 5):
        found = knn_accuracy(train, train_labels, test, test_labels, neighbours, temperature, chunk)
        assert found == pytest.approx(expected)


def test_weights_of_neighbours_grow_with_the_cosine() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 1])
    test, truth = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
    assert knn_accuracy(train, labels, test, truth, num_neighbours=3, temperature=0.07) == 1
    assert knn_accuracy(train, labels, test, truth, num_neighbours=3, temperature=100.0) == 0


@pytest.mark.parametrize("broken", ["train", "test"])
def test_features_that_are_not_finite_have_no_neighbours(broken: str) -> None:
    sets = {name: torch.randn(5, 3, generator=seeded()) for name in ("train", "test")}
    sets[broken][3, 1] = math.nan
    labels = torch.tensor([0, 1, 2, 0, 1])
    with pytest.raises(ValueError, match="features are not finite"):
        knn_accuracy(sets["train"], labels, sets["test"], labels)


def test_a_class_absent_from_the_training_set_is_never_hit() -> None:
    vectors = torch.eye(3)
    train_labels, test_labels = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 5])
    assert knn_accuracy(vectors, train_labels, vectors, test_labels) == pytest.approx(2 / 3)


def test_confusion_by_hand() -> None:
    truth, guess = torch.tensor([0, 2, 2, 0, 2]), torch.tensor([0, 1, 2, 2, 1])
    assert confusion_matrix(truth, guess, 3).tolist() == [[1, 0, 1], [0, 0, 0], [0, 2, 1]]

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from beit.nn.pooling import Kind
from beit.probing.grids import probe_features

CLS, MEAN = Kind(None, "cls"), Kind(None, "mean")


def clusters(count: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw features (n, 5) around three corners, and the corner of each as its label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    noise = spread * torch.randn(count, 5, generator=generator)
    return torch.eye(3, 5)[labels] + noise, labels


def test_separable_classes_are_told_apart(config: Any) -> None:
    kind = Kind(2, "mean")
    row = probe_features(
        kind, *clusters(90, 0.05, seed=0), *clusters(30, 0.05, seed=1), config(), 3
    )
    assert (row["features"], row["layer"], row["pooling"]) == ("mean@2", 2, "mean")
    assert row["linear"] == 1.0
    assert row["knn"] == 1.0
    assert len(row["held_out"]) == 3


def test_test_images_have_no_say_in_the_choice(config: Any) -> None:
    train, train_labels = clusters(120, 1.0, seed=0)
    test, test_labels = clusters(60, 1.0, seed=1)
    row = probe_features(CLS, train, train_labels, test, test_labels, config(), 3)
    other = probe_features(CLS, train, train_labels, 100 * test, (test_labels + 1) % 3, config(), 3)
    assert (row["rate"], row["held_out"]) == (other["rate"], other["held_out"])
    # By rising rate, whatever the order they were given in.
    assert row["rate"] == [0.003, 0.03, 0.3][row["held_out"].index(max(row["held_out"]))]


def test_features_that_are_not_finite_are_refused(config: Any) -> None:
    features, labels = clusters(40, 1.0, seed=0)
    broken = features.clone()
    broken[3, 1] = math.nan
    with pytest.raises(ValueError, match="features of the test images are not finite"):
        probe_features(CLS, features, labels, broken, labels, config(), 3)


@pytest.mark.parametrize("standardise", ["whole", "batch", "none"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_way_tells_separable_classes_apart(
    standardise: str, optimizer: str, config: Any
) -> None:
    settings = config(standardise=standardise, optimizer=optimizer, weight_decay=1e-4, epochs=8)
    train, test = clusters(90, 0.05, seed=0), clusters(30, 0.05, seed=1)
    assert probe_features(CLS, *train, *test, settings, 3)["linear"] == 1.0


def test_several_numbers_of_neighbours_have_a_figure_each(config: Any) -> None:
    data = *clusters(90, 0.6, seed=0), *clusters(30, 0.6, seed=1)
    row = probe_features(CLS, *data, config(neighbours=(5, 1, 90)), 3)
    alone = [probe_features(CLS, *data, config(neighbours=k), 3)["knn"] for k in (5, 1, 90)]
    assert row["knn_each"] == alone
    assert row["knn"] == alone[0]

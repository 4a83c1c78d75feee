import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.data.batch import Batch
from beit.nn.pooling import Kind
from beit.nn.probes import AttentiveProbes, LinearProbes, Standardise
from beit.probing.training import (
    Grid,
    choose,
    fit,
    fit_stream,
    probe_features,
    score,
    score_stream,
    split,
)

CLS = Kind(None, "cls")
RATES = [1e-3, 0.05, 0.4]


def clusters(count: int, spread: float, seed: int, width: int = 5) -> tuple[Tensor, Tensor]:
    """Draw features (n, D) around three corners, and the corner of each as its label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    noise = spread * torch.randn(count, width, generator=generator)
    return torch.eye(3, width)[labels] + noise, labels


def trained(
    features: Tensor,
    labels: Tensor,
    rates: list[float],
    *,
    epochs: int = 3,
    batch_size: int = 8,
    num_classes: int = 3,
    **settings: Any,
) -> LinearProbes:
    norm = Standardise(features.shape[1])
    norm.measure(features)
    heads = LinearProbes(len(rates), features.shape[1], num_classes, norm)
    steps = epochs * math.ceil(len(features) / batch_size)
    fit(Grid(heads, rates, steps, **settings), features, labels, epochs, batch_size, seed=3)
    return heads


def test_first_step_by_hand() -> None:
    # Standardised these are -1 and 1, and from zero both classes have probability 1/2.
    features, labels = torch.tensor([[3.0], [5.0]]), torch.tensor([0, 1])
    probes = trained(features, labels, [0.5, 2], epochs=1, batch_size=2, num_classes=2)
    gradient = torch.tensor([[0.5], [-0.5]])  # mean of (p - target) x: (-1/2 * -1 + 1/2 * 1) / 2
    torch.testing.assert_close(probes.weight[0], -0.5 * gradient)
    torch.testing.assert_close(probes.weight[1], -2 * gradient)
    assert torch.equal(probes.bias, torch.zeros(2, 2))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_every_rate_is_trained_as_it_would_be_alone(optimizer: str, weight_decay: float) -> None:
    features, labels = clusters(43, 0.7, seed=0)
    settings = {"optimizer": optimizer, "weight_decay": weight_decay}
    # The last one overflows and must not touch the others.
    together = trained(features, labels, [*RATES, 1e30], **settings)
    for r, rate in enumerate(RATES):
        alone = trained(features, labels, [rate], **settings)
        torch.testing.assert_close(together.weight[r], alone.weight[0])
        torch.testing.assert_close(together.bias[r], alone.bias[0])


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_is_plain_torch_with_a_cosine(optimizer: str, weight_decay: float) -> None:
    features, labels = clusters(20, 0.7, seed=2)
    rate, epochs, batch_size = 0.1, 2, 8
    probes = trained(
        *(features, labels, [0.02, rate]),
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,  # type: ignore[arg-type]
        weight_decay=weight_decay,
    )
    linear = nn.Linear(5, 3)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    groups = [
        {"params": [linear.weight], "weight_decay": weight_decay},
        {"params": [linear.bias], "weight_decay": 0.0},
    ]
    theirs: torch.optim.Optimizer
    if optimizer == "sgd":
        theirs = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    else:
        theirs = torch.optim.AdamW(groups, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=epochs * 3)
    standardised = (features - features.mean(0)) / features.std(0, correction=0)
    generator = torch.Generator().manual_seed(3)
    for _ in range(epochs):
        for batch in torch.randperm(20, generator=generator).split(batch_size):
            theirs.zero_grad()
            F.cross_entropy(linear(standardised[batch]), labels[batch]).backward()
            theirs.step()
            schedule.step()
    torch.testing.assert_close(probes.weight[1], linear.weight)
    torch.testing.assert_close(probes.bias[1], linear.bias)


def hidden(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw tokens (n, 9, 6) of which one, at any place, tells the class, and is marked."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    tokens = torch.randn(count, 9, 6, generator=generator)
    places = torch.randint(9, (count,), generator=generator)
    tokens[torch.arange(count), places] = 4 * torch.eye(3, 6)[labels] + 4 * torch.eye(6)[5]
    return tokens, labels


def attentive(tokens: Tensor, labels: Tensor, rates: list[float], epochs: int) -> AttentiveProbes:
    heads = AttentiveProbes(len(rates), 6, 3, num_heads=2)
    steps = epochs * math.ceil(len(tokens) / 30)
    fit(Grid(heads, rates, steps, "adamw", 1e-3), tokens, labels, epochs, batch_size=30, seed=0)
    return heads


def test_attentive_probes_of_a_grid_are_what_they_would_be_alone() -> None:
    tokens, labels = hidden(70, seed=0)
    rates = [1e-3, 1e-2]
    together = attentive(tokens, labels, rates, epochs=2)
    for r, rate in enumerate(rates):
        alone = dict(attentive(tokens, labels, [rate], epochs=2).named_parameters())
        for name, parameter in together.named_parameters():
            # Adam divides by the size of gradients that are nearly zero.
            torch.testing.assert_close(parameter[r], alone[name][0], rtol=1e-4, atol=1e-5)


def test_an_attentive_probe_finds_the_patch_that_tells() -> None:
    tokens, labels = hidden(150, seed=0)
    heads = attentive(tokens, labels, [0.1], epochs=20)
    test_tokens, test_labels = hidden(100, seed=1)
    assert score(heads, test_tokens, test_labels) > 0.8
    mean = F.layer_norm(tokens, (6,)).mean(dim=1)
    assert score(trained(mean, labels, [0.1], epochs=20), mean, labels) < 0.7


def test_accuracy_is_that_of_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    features, labels = clusters(1000, 0.7, seed=0, width=12)
    test, test_labels = clusters(4000, 0.7, seed=1, width=12)
    ours = trained(features, labels, [0.03], epochs=30, batch_size=50)
    mean, std = features.mean(0), features.std(0, correction=0)
    theirs = LogisticRegression(C=1.0, max_iter=1000)
    theirs.fit(((features - mean) / std).numpy(), labels.numpy())
    expected = theirs.score(((test - mean) / std).numpy(), test_labels.numpy())
    assert 0.7 < expected < 0.9
    assert float(score(ours, test, test_labels)[0]) == pytest.approx(expected, abs=0.005)


def test_a_stream_trains_and_scores_as_features_in_memory_do() -> None:
    features, labels = clusters(24, 0.7, seed=0)
    kinds = [Kind(None, "cls"), Kind(2, "mean")]
    scales = dict(zip(kinds, (1.0, 3.0), strict=True))
    grids = {kind: Grid(LinearProbes(2, 5, 3), [0.1, 0.5], 6) for kind in kinds}
    generator = torch.Generator().manual_seed(3)
    batches = [b for _ in range(2) for b in torch.randperm(24, generator=generator).split(8)]

    def stream(order: list[Tensor]) -> list[tuple[dict[Kind, Tensor], Batch]]:
        images = torch.empty(0)  # not read
        return [
            ({k: scales[k] * features[b] for k in kinds}, Batch(images, images, labels[b], b, []))
            for b in order
        ]

    fit_stream(grids, stream(batches))
    scores = score_stream(grids, stream(list(torch.arange(24).split(7))))
    for kind in kinds:
        alone = Grid(LinearProbes(2, 5, 3), [0.1, 0.5], 6)
        fit(alone, scales[kind] * features, labels, 2, 8, seed=3)
        torch.testing.assert_close(grids[kind].heads.weight, alone.heads.weight)
        assert torch.equal(scores[kind], score(alone.heads, scales[kind] * features, labels))


def test_score_counts_hits_of_every_probe() -> None:
    probes = LinearProbes(2, 2, 2)
    with torch.no_grad():
        probes.weight[0].copy_(torch.eye(2))  # the larger dimension is the class
        probes.weight[1].copy_(torch.eye(2).flip(0))
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    accuracies = score(probes, features, torch.tensor([0, 1, 0, 0]), chunk=3)
    assert accuracies.tolist() == [0.75, 0.25]
    with torch.no_grad():
        probes.weight[1] = math.nan  # overflowed; argmax of NaN is 0
    assert score(probes, features, torch.tensor([0, 0, 0, 0]))[1] == 0


def test_the_first_of_equals_is_chosen() -> None:
    assert choose(torch.tensor([0.2, 0.7, 0.7, 0.1])) == 1


def test_split_parts_all_images_by_chance() -> None:
    fitted, held_out = split(47, 0.2, seed=5)
    assert len(held_out) == 9
    assert torch.cat([fitted, held_out]).sort().values.tolist() == list(range(47))
    assert torch.equal(held_out, split(47, 0.2, seed=5)[1])
    assert not torch.equal(held_out, split(47, 0.2, seed=6)[1])


def test_a_split_without_held_out_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"held_out 0\.1 of 4 training images is 0"):
        split(4, 0.1, seed=0)


# ── the steps of the protocol ───────────────────────────────────────────────────────────────────


def test_separable_classes_are_told_apart(config: Any) -> None:
    kind = Kind(2, "mean")
    row = probe_features(kind, clusters(90, 0.05, seed=0), clusters(30, 0.05, seed=1), config(), 3)
    assert (row["features"], row["layer"], row["pooling"]) == ("mean@2", 2, "mean")
    assert row["linear"] == 1.0
    assert row["knn"] == 1.0
    assert len(row["held_out"]) == 3


def test_test_images_have_no_say_in_the_choice(config: Any) -> None:
    train = clusters(120, 1.0, seed=0)
    test, test_labels = clusters(60, 1.0, seed=1)
    row = probe_features(CLS, train, (test, test_labels), config(), 3)
    other = probe_features(CLS, train, (100 * test, (test_labels + 1) % 3), config(), 3)
    assert (row["rate"], row["held_out"]) == (other["rate"], other["held_out"])
    # By rising rate, whatever the order they were given in.
    assert row["rate"] == [0.003, 0.03, 0.3][row["held_out"].index(max(row["held_out"]))]


def test_features_that_are_not_finite_are_refused(config: Any) -> None:
    features, labels = clusters(40, 1.0, seed=0)
    broken = features.clone()
    broken[3, 1] = math.nan
    with pytest.raises(ValueError, match="features of the test images are not finite"):
        probe_features(CLS, (features, labels), (broken, labels), config(), 3)


@pytest.mark.parametrize("standardise", ["whole", "batch", "none"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_way_tells_separable_classes_apart(
    standardise: str, optimizer: str, config: Any
) -> None:
    settings = config(standardise=standardise, optimizer=optimizer, weight_decay=1e-4, epochs=8)
    train, test = clusters(90, 0.05, seed=0), clusters(30, 0.05, seed=1)
    assert probe_features(CLS, train, test, settings, 3)["linear"] == 1.0


def test_several_numbers_of_neighbours_have_a_figure_each(config: Any) -> None:
    data = clusters(90, 0.6, seed=0), clusters(30, 0.6, seed=1)
    row = probe_features(CLS, *data, config(neighbours=(5, 1, 90)), 3)
    alone = [probe_features(CLS, *data, config(neighbours=k), 3)["knn"] for k in (5, 1, 90)]
    assert row["knn_each"] == alone
    assert row["knn"] == alone[0]

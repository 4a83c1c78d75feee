import math

import pytest
import torch
from torch.nn import functional as F

from beit.nn.losses import (
    cosine_distance,
    masked_losses,
    weighted_mean,
)
from beit.nn.mim import MaskedPrediction


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_cosine_distance_by_hand() -> None:
    features = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-1.0, 0.0]])
    targets = torch.tensor([[5.0, 0.0], [7.0, 0.0], [1.0, 0.0], [4.0, 0.0]])
    expected = (0 + 1 + (1 - 0.5**0.5) + 2) / 4
    assert math.isclose(cosine_distance(features, targets), expected, rel_tol=1e-6)


def test_cosine_distance_ignores_lengths() -> None:
    features = torch.randn(2, 15, 7, generator=seeded())
    targets = torch.randn(2, 15, 7, generator=seeded(1))
    lengths = torch.rand(2, 15, 1, generator=seeded(2)) + 0.5
    distance = cosine_distance(features, targets)
    torch.testing.assert_close(cosine_distance(features * lengths, targets / lengths), distance)
    assert distance > 0.5


def test_a_vector_of_zeros_is_at_distance_one_of_everything() -> None:
    targets = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    features = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    distance = cosine_distance(features, targets)
    assert distance == 1
    distance.backward()
    assert features.grad.isfinite().all()


def test_cosine_distance_is_computed_in_float32() -> None:
    features = torch.randn(2, 15, 7, generator=seeded()).bfloat16()
    distance = cosine_distance(features, features)
    assert distance.dtype == torch.float32 and abs(distance) < 1e-6


def test_token_losses_by_hand() -> None:
    logits = torch.randn(2, 4, 11, generator=seeded())
    cls_logits = torch.randn(2, 4, 11, generator=seeded(1))
    targets = torch.randint(11, (2, 4), generator=seeded(2))
    actual = masked_losses(MaskedPrediction(logits, cls_logits), targets)
    for loss, scores in zip(actual, (logits, cls_logits), strict=True):
        nats = 0.0
        for b in range(2):
            for m in range(4):
                shares = [math.exp(score) for score in scores[b, m].tolist()]
                nats -= math.log(shares[targets[b, m]] / sum(shares))
        assert math.isclose(loss, nats / 8, rel_tol=1e-5)


def test_equal_logits_cost_the_log_of_the_number_of_codes() -> None:
    prediction = MaskedPrediction(torch.zeros(2, 4, 11, dtype=torch.bfloat16), None)
    loss, cls_loss = masked_losses(prediction, torch.zeros(2, 4, dtype=torch.int64))
    assert math.isclose(loss, math.log(11), rel_tol=1e-6)
    assert cls_loss == 0 and cls_loss.shape == ()


def test_losses_of_numbers_by_hand() -> None:
    predicted = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
    targets = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
    prediction = MaskedPrediction(predicted, 2 * predicted)
    squared = ((0 + 1) / 2 + (0 + 4) / 2) / 2
    smooth = ((0 + 0.5) / 2 + (0 + 1.5) / 2) / 2
    cosine = ((1 - 0.5**0.5) + 0) / 2
    for loss, expected in (("mse", squared), ("smooth-l1", smooth), ("cosine", cosine)):
        patch_loss, cls_loss = masked_losses(prediction, targets, loss)
        assert patch_loss.item() == pytest.approx(expected, rel=1e-6)
        doubled = masked_losses(MaskedPrediction(2 * predicted, None), targets, loss)
        assert cls_loss == doubled[0] and doubled[1] == 0


@pytest.mark.parametrize("loss", ["cross-entropy", "mse", "smooth-l1", "cosine"])
def test_a_patch_of_weight_0_counts_nothing(loss: str) -> None:
    predicted = torch.randn(2, 3, 5, generator=seeded())
    targets = torch.randn(2, 3, 5, generator=seeded(1))
    if loss == "cross-entropy":
        targets = torch.randint(5, (2, 3), generator=seeded(1))
    weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    actual = masked_losses(MaskedPrediction(predicted, None), targets, loss, weights)[0]
    kept = masked_losses(MaskedPrediction(predicted[:, :2], None), targets[:, :2], loss)[0]
    torch.testing.assert_close(actual, kept)
    alike = masked_losses(MaskedPrediction(predicted, None), targets, loss, torch.ones(2, 3))[0]
    torch.testing.assert_close(
        alike, masked_losses(MaskedPrediction(predicted, None), targets, loss)[0]
    )


def test_regression_is_computed_in_float32() -> None:
    predicted = torch.randn(2, 3, 5, generator=seeded()).bfloat16()
    loss = masked_losses(MaskedPrediction(predicted, None), torch.zeros(2, 3, 5), "mse")[0]
    assert loss.dtype == torch.float32
    assert loss == F.mse_loss(predicted.float(), torch.zeros(2, 3, 5))


def test_codes_of_another_type_are_refused() -> None:
    prediction = MaskedPrediction(torch.zeros(2, 3, 5), None)
    with pytest.raises(ValueError, match=r"codes are torch\.float32, expected int64"):
        masked_losses(prediction, torch.zeros(2, 3))


def test_weighted_mean_by_hand() -> None:
    values, weights = torch.tensor([[1.0, 4.0]]), torch.tensor([[3.0, 1.0]])
    assert weighted_mean(values, None) == 2.5 and weighted_mean(values, weights) == 7 / 4

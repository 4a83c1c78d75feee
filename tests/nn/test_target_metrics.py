import pytest
import torch

from beit.nn.target_metrics import explained_from_error, target_metrics


def test_metrics_by_hand():
    logits = torch.tensor([[[0.0, 1.0], [3.0, 1.0], [2.0, 1.0]]])
    codes, weights = torch.tensor([[1, 1, 0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert target_metrics("tokens", logits, codes)["accuracy"].item() == pytest.approx(2 / 3)
    assert target_metrics("tokens", logits, codes, weights)["accuracy"].item() == pytest.approx(
        1 / 2
    )
    numbers = torch.tensor([[[0.0, 2.0], [1.0, 1.0], [1.0, 0.0]]])
    actual = target_metrics("pixels", logits, numbers)
    assert actual["error"].item() == pytest.approx((1 + 4 + 0 + 1 + 1) / 6)
    assert actual["spread"].item() == pytest.approx((4 + 1 + 1 + 1) / 6)
    cosine = (1 + 4 / (20**0.5) + 2 / 5**0.5) / 3
    assert target_metrics("features", logits, numbers)["cosine"].item() == pytest.approx(cosine)


def test_explained_is_a_share_of_the_whole_set_not_a_mean_of_shares():
    figures = {"val_loss": 3.0, "val_error": 1.0, "val_spread": 4.0, "error": 0.0, "spread": 0.0}
    assert explained_from_error(figures) == {
        "val_loss": 3.0,
        "val_explained": 0.75,
        "explained": 0.0,
    }

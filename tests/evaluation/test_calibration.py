import pytest
import torch

from beit.evaluation.calibration import expected_calibration_error, reliability


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_calibration_error_by_hand() -> None:
    # Two bins: up to 0.5 (0.5 belongs to it) and above.
    confidence = torch.tensor([0.5, 0.3, 0.9, 0.8, 1.0])
    right = torch.tensor([True, False, True, False, True])
    bins = reliability(confidence, right, num_bins=2)
    assert bins.number.tolist() == [2, 3]
    assert bins.confidence.tolist() == pytest.approx([0.4, 0.9])
    assert bins.accuracy.tolist() == pytest.approx([0.5, 2 / 3])
    error = (2 * abs(0.5 - 0.4) + 3 * abs(2 / 3 - 0.9)) / 5
    assert expected_calibration_error(bins) == pytest.approx(error)


def test_calibration_error_is_that_of_a_plain_loop() -> None:
    confidence = torch.rand(200, generator=seeded(5))
    right = torch.rand(200, generator=seeded(6)) < confidence**2
    error = 0.0
    for place in range(15):
        inside = [
            (float(c), bool(r))
            for c, r in zip(confidence, right, strict=True)
            if place / 15 < float(c) <= (place + 1) / 15
        ]
        if inside:
            accuracy = sum(r for _, r in inside) / len(inside)
            error += abs(accuracy - sum(c for c, _ in inside) / len(inside)) * len(inside) / 200
    bins = reliability(confidence, right)
    assert expected_calibration_error(bins) == pytest.approx(error)
    assert expected_calibration_error(bins) > 0.1
    empty = reliability(torch.tensor([0.0]), torch.tensor([True]))
    assert empty.number.tolist() == [1] + 14 * [0]


def test_calibration_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must both be \(n,\), got \(2,\) and \(3,\)"):
        reliability(torch.zeros(2), torch.zeros(3, dtype=torch.bool))

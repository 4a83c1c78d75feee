"""The calibration of a classifier: how often it is right at each confidence."""

from typing import NamedTuple

import torch
from torch import Tensor


class Reliability(NamedTuple):
    """Predictions in bins of equal width by confidence; bin b of m covers (b/m, (b + 1)/m]."""

    number: Tensor  # (m,) int64, predictions in each bin
    confidence: Tensor  # (m,) float64, their mean confidence; 0 for empty bins
    accuracy: Tensor  # (m,) float64, share of correct ones; 0 for empty bins


def reliability(confidence: Tensor, correct: Tensor, num_bins: int = 15) -> Reliability:
    """Sort predictions into bins (Guo et al. 2017, section 2).

    confidence: (n,) probability of the predicted class, in [0, 1]; correct: (n,) bool
    """
    if confidence.shape != correct.shape or confidence.ndim != 1:
        raise ValueError(
            "confidence and correct must both be (n,), "
            f"got {tuple(confidence.shape)} and {tuple(correct.shape)}"
        )
    confidence = confidence.double()
    places = (confidence * num_bins).ceil().long().sub(1).clamp(0, num_bins - 1)
    number = torch.bincount(places, minlength=num_bins)
    sums = (torch.bincount(places, values, num_bins) for values in (confidence, correct.double()))
    return Reliability(number, *(total / number.clamp(min=1) for total in sums))


def expected_calibration_error(bins: Reliability) -> float:
    """Average |accuracy - confidence| over bins, weighted by size (Guo et al. 2017, equation 3)."""
    gaps = (bins.accuracy - bins.confidence).abs() * bins.number
    return float(gaps.sum() / bins.number.sum().clamp(min=1))

"""Metrics of codebooks, of nearest neighbours and of classifiers."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class CodebookHealth(NamedTuple):
    """How evenly a codebook is used."""

    usage: float  # share of the codes chosen at least once, in [0, 1]
    perplexity: float  # exp(entropy), the effective number of codes
    entropy: float  # of the distribution of codes, in nats
    dead: int  # codes never chosen


def codebook_health(counts: Tensor) -> CodebookHealth:
    """Compute metrics from counts (K,) of each code; counts of zero give usage and entropy 0."""
    K, used, nats = len(counts), int((counts > 0).sum()), float(entropy(counts))
    return CodebookHealth(used / K, float(torch.tensor(nats).exp()), nats, K - used)


def entropy(counts: Tensor) -> Tensor:
    """Return the entropy in nats of counts (..., n) along the last dimension: (...) float64."""
    share = counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)
    return 0.0 - torch.xlogy(share, share).sum(-1).clamp(max=0)  # 0 - x is never -0


def position_counts(codes: Tensor, num_codes: int) -> Tensor:
    """Count codes (B, N) int64 for each patch position: (N, K) int64."""
    N = codes.shape[1]
    # Not bincount, which waits for the GPU.
    return codes.new_zeros(N, num_codes).scatter_add_(1, codes.T, torch.ones_like(codes.T))


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Count pairs of classes, labels and predicted (n,) int64: (Y, Y) int64, labels by row."""
    cells = labels * num_classes + predicted
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


@torch.no_grad()
def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    num_neighbours: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> float:
    """Return the accuracy in [0, 1] of a k-NN classifier on test vectors.

    Neighbours by cosine; each votes for its class with weight exp(cosine / temperature), as in DINO
    (Caron et al. 2021, after Wu et al. 2018).

    Args:
        train_features: (n, D), labels (n,) int64
        test_features: (m, D), labels (m,) int64
        num_neighbours: how many vote; n if there are fewer
        chunk: test vectors compared at a time
    """
    train, num_classes = F.normalize(train_features.float(), dim=1), int(train_labels.max()) + 1
    hits = torch.zeros((), dtype=torch.int64, device=train.device)
    for features, labels in zip(test_features.split(chunk), test_labels.split(chunk), strict=True):
        similarity = F.normalize(features.float(), dim=1) @ train.T  # (chunk, n)
        near = similarity.topk(min(num_neighbours, len(train)), dim=1)
        votes = similarity.new_zeros(len(features), num_classes)
        votes.scatter_add_(1, train_labels[near.indices], (near.values / temperature).exp())
        hits += (votes.argmax(dim=1) == labels).sum()
    return float(hits) / len(test_labels)


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


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test that two classifiers are equally good.

    The counts are of images that only the first, or only the second, classified correctly.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts must not be negative, got {only_first} and {only_second}")
    n, ways, below = only_first + only_second, 1, 0
    for k in range(min(only_first, only_second) + 1):
        below += ways  # binomial(n, k), exactly
        ways = ways * (n - k) // (k + 1)
    scale = max(0, below.bit_length() - 60)  # both are too large for floats
    return min(1.0, 2 * math.ldexp(below >> scale, scale - n))

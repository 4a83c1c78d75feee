"""Metrics of codebooks and of nearest neighbours, and the confusion of classes."""

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

    Raises:
        ValueError: a feature is not finite.
    """
    train, num_classes = F.normalize(train_features.float(), dim=1), int(train_labels.max()) + 1
    hits = torch.zeros((), dtype=torch.int64, device=train.device)
    for features, labels in zip(test_features.split(chunk), test_labels.split(chunk), strict=True):
        similarity = F.normalize(features.float(), dim=1) @ train.T  # (chunk, n)
        near = similarity.topk(min(num_neighbours, len(train)), dim=1)
        votes = similarity.new_zeros(len(features), num_classes)
        votes.scatter_add_(1, train_labels[near.indices], (near.values / temperature).exp())
        hits += (votes.argmax(dim=1) == labels).sum()
    # A NaN is the largest cosine for topk and the most votes for argmax.
    if not bool(train_features.isfinite().all() & test_features.isfinite().all()):
        raise ValueError(
            "features are not finite, so they have no nearest neighbours; the weights may be "
            "broken, or the precision too low: try --device.precision 32-true"
        )
    return float(hits) / len(test_labels)

"""Figures of merit: is the codebook alive, are neighbours of one class."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class CodebookHealth(NamedTuple):
    """How evenly a codebook is used.

    Attributes:
        usage: share of the codes chosen at least once, in [0, 1]
        perplexity: exp(entropy), the number of codes that would be used if all were used alike
        entropy: of the distribution of codes, in nats
        dead: codes never chosen
    """

    usage: float
    perplexity: float
    entropy: float
    dead: int


def codebook_health(counts: Tensor) -> CodebookHealth:
    """Measure counts (K,) of how often each code was chosen; all zero gives usage and entropy 0."""
    share = counts.double() / counts.sum().clamp(min=1)
    entropy = 0.0 - float(torch.xlogy(share, share).sum().clamp(max=0))  # 0 - x is never -0
    used = int((counts > 0).sum())
    return CodebookHealth(
        used / len(counts), float(torch.tensor(entropy).exp()), entropy, len(counts) - used
    )


def position_counts(codes: Tensor, num_codes: int) -> Tensor:
    """Count codes (B, N) int64 for each patch position: (N, K) int64."""
    N = codes.shape[1]
    cells = torch.arange(N, device=codes.device) * num_codes + codes  # (B, N)
    return torch.bincount(cells.flatten(), minlength=N * num_codes).view(N, num_codes)


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
    """Return the share of test vectors that their nearest training vectors classify rightly.

    Neighbours by cosine; each votes for its class with weight exp(cosine / temperature), as DINO
    does it (Caron et al. 2021, after Wu et al. 2018).

    Args:
        train_features: (n, D)
        train_labels: (n,) int64
        test_features: (m, D)
        test_labels: (m,) int64
        num_neighbours: how many vote; at most n
        temperature: smaller gives the nearest more weight
        chunk: test vectors compared at a time
    """
    train = F.normalize(train_features.float(), dim=1)
    num_classes = int(train_labels.max()) + 1
    hits = torch.zeros((), dtype=torch.int64, device=train.device)
    for features, labels in zip(test_features.split(chunk), test_labels.split(chunk), strict=True):
        similarity = F.normalize(features.float(), dim=1) @ train.T  # (chunk, n)
        near = similarity.topk(min(num_neighbours, len(train)), dim=1)
        votes = similarity.new_zeros(len(features), num_classes)
        votes.scatter_add_(1, train_labels[near.indices], (near.values / temperature).exp())
        hits += (votes.argmax(dim=1) == labels).sum()
    return float(hits) / len(test_labels)

"""The use of a codebook, as the trainings of both tokenizers measure and log it."""

import math
from functools import partial
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.nn.metrics import codebook_health, position_counts
from beit.nn.tokenizer import Tokenizer
from beit.run.device import summed
from beit.run.journal import Journal
from beit.run.reading import Reading

COLLAPSED = 0.1  # a perplexity under this share of K, or of fewer choices, is a collapse


class Validated(NamedTuple):
    """The metrics over the validation set, and how often each position chose each code (N, K)."""

    metrics: dict[str, float]
    counts: Tensor


class CodeCounts:
    """Counts how often each position chose each code."""

    def __init__(self, num_positions: int, num_codes: int, fabric: Fabric) -> None:
        self._sum = partial(summed, fabric)
        shape = (num_positions, num_codes)
        self.counts = torch.zeros(shape, dtype=torch.int64, device=fabric.device)  # of this process

    def add(self, codes: Tensor) -> None:
        """Count the codes (B, N) of images."""
        self.counts += position_counts(codes, self.counts.shape[1])

    def total(self) -> Tensor:
        """Return the counts (N, K) of all processes."""
        return self._sum(self.counts)

    def restart(self) -> Tensor:
        """Return the counts (N, K) of all processes, and begin a new interval."""
        total = self.total()
        self.counts = torch.zeros_like(self.counts)
        return total


@torch.no_grad()
def count_codes(tokenizer: Tokenizer, reading: Reading, fabric: Fabric) -> Tensor:
    """Count how often each position of the images' grid has each code: (N, K)."""
    counts = CodeCounts(math.prod(tokenizer.grid), tokenizer.vocab_size, fabric)
    for batch in reading:
        with fabric.autocast():
            counts.add(tokenizer.encode(batch.images))
    return counts.total().cpu()


def code_metrics(counts: Tensor) -> dict[str, float]:
    """Measure how a codebook is used, from counts (N, K) of each code at each position."""
    metrics = {
        name: float(value) for name, value in codebook_health(counts.sum(dim=0))._asdict().items()
    }
    return metrics | {"choices": float(counts.sum())}


def position_metrics(counts: Tensor) -> dict[str, float]:
    """Measure how single positions use a codebook, from counts (N, K)."""
    positions = [codebook_health(row) for row in counts.cpu()]
    perplexities = [health.perplexity for health in positions]
    return {
        "position_usage": sum(health.usage for health in positions) / len(positions),
        "position_perplexity_min": min(perplexities),
        "position_perplexity_max": max(perplexities),
    }


def warn_of_collapse(
    journal: Journal, metrics: dict[str, float], num_codes: int, warning: str
) -> None:
    """Log a warning if so few codes are in use that the codebook has collapsed.

    Args:
        warning: what to say; {perplexity} in it becomes the number
    """
    perplexity = metrics["perplexity"]
    if perplexity < COLLAPSED * min(num_codes, metrics["choices"]):
        journal.log_warning(warning.format(perplexity=f"{perplexity:.1f}"))

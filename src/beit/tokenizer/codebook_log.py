"""Metrics of codebook use, shared by the trainings of both tokenizers."""

import math
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.nn.metrics import codebook_health, position_counts
from beit.nn.tokenizer import Tokenizer
from beit.run.device import summed
from beit.run.journal import Journal

COLLAPSED = 0.1  # of the largest perplexity that is possible


class Validated(NamedTuple):
    """Validation metrics, and counts (N, K) of each code at each position."""

    metrics: dict[str, float]
    counts: Tensor


class CodeCounts:
    """Counts each code of a tokenizer at each position."""

    def __init__(self, tokenizer: Tokenizer, fabric: Fabric) -> None:
        self._fabric = fabric
        shape = (math.prod(tokenizer.grid), tokenizer.vocab_size)
        self.counts = torch.zeros(shape, dtype=torch.int64, device=fabric.device)  # of this process

    def add(self, codes: Tensor, kept: Tensor | bool = True) -> None:
        """Count the codes (B, N) of images, unless `kept`, () bool, is False."""
        self.counts += position_counts(codes, self.counts.shape[1]) * kept

    def total(self) -> Tensor:
        """Return the counts (N, K) of all processes."""
        return summed(self._fabric, self.counts)

    def restart(self) -> Tensor:
        """Return the counts (N, K) of all processes, and reset them."""
        total = self.total()
        self.counts = torch.zeros_like(self.counts)
        return total

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts of all processes, for a checkpoint."""
        return {"counts": self.total()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in one of the processes."""
        self.counts.copy_(state["counts"])


def code_metrics(counts: Tensor) -> dict[str, float]:
    """Return metrics of codebook use, from counts (N, K)."""
    metrics = {
        name: float(value) for name, value in codebook_health(counts.sum(dim=0))._asdict().items()
    }
    return metrics | {"choices": float(counts.sum())}


def position_metrics(counts: Tensor) -> dict[str, float]:
    """Return metrics of codebook use per position, from counts (N, K)."""
    positions = [codebook_health(row) for row in counts.cpu()]
    perplexities = [health.perplexity for health in positions]
    return {
        "position_usage": sum(health.usage for health in positions) / len(positions),
        "position_perplexity_min": min(perplexities),
        "position_perplexity_max": max(perplexities),
    }


def collapsed(perplexity: float, num_codes: int, choices: float) -> bool:
    """Return whether few of the codes stand for most of the patches of so many choices."""
    return perplexity < COLLAPSED * min(num_codes, choices)


def warn_of_collapse(
    journal: Journal, metrics: dict[str, float], num_codes: int, warning: str
) -> None:
    """Log a warning if the codebook has collapsed to few codes.

    Args:
        warning: its text, with {perplexity} for the number
    """
    perplexity = metrics["perplexity"]
    if collapsed(perplexity, num_codes, metrics["choices"]):
        journal.log_warning(warning.format(perplexity=f"{perplexity:.1f}"))

"""Train and evaluate a grid of probes: one head per learning rate, all on the same batches."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.pooling import Kind
from beit.run.schedules import warmup_cosine

FeaturesByKind = Mapping[Kind, Tensor]
MOMENTUM = 0.9  # of SGD
BETAS, EPS = (0.9, 0.999), 1e-8  # of AdamW


class Grid:
    """Heads (R, ...) that are trained together, head `r` at the learning rate `rates[r]`.

    Each head gives the result it would give alone: no step mixes heads, and one that overflows does
    not affect the others. Rates decay to 0 by a cosine over `total_steps`.
    """

    def __init__(
        self,
        heads: nn.Module,
        rates: Sequence[float],
        total_steps: int,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        weight_decay: float = 0.0,
    ) -> None:
        """Create the optimiser state.

        Args:
            heads: returns logits (R, B, Y); R is the first dimension of every parameter
            rates: initial learning rates
            total_steps: of the whole training
            optimizer: SGD with momentum 0.9, or AdamW (0.9, 0.999)
            weight_decay: of all parameters except biases; added to the gradient for SGD, decoupled
                for AdamW
        """
        self.heads, self.rates = heads, list(rates)
        self._total_steps, self._step = total_steps, 0
        self._sgd, self._weight_decay = optimizer == "sgd", weight_decay
        self._names, self._parameters = zip(*heads.named_parameters(), strict=True)
        self._rates = torch.tensor(self.rates, device=self._parameters[0].device)  # (R,)
        self._first = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._second = [] if self._sgd else [torch.zeros_like(p) for p in self._parameters]

    def step(self, features: Tensor, labels: Tensor) -> None:
        """Take one step of every head on features (B, ...) and labels (B,) int64.

        The losses of the heads are summed, so their gradients are independent. For SGD each loss is
        multiplied by its rate r: SGD is linear in the gradient, so this takes the same steps at
        rate 1 as the loss itself at rate r. AdamW applies its rates in the update.
        """
        R = len(self.rates)
        self.heads.train()
        logits = self.heads(features)  # (R, B, Y)
        targets = labels.expand(R, -1)  # (R, B)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        means = losses.view(R, -1).mean(dim=1)  # (R,)
        loss = (means * self._rates).sum() if self._sgd else means.sum()
        gradients = torch.autograd.grad(loss, self._parameters)
        decay = warmup_cosine(self._step, base=1.0, final=0.0, total_steps=self._total_steps)
        self._step += 1
        with torch.no_grad():
            for index, gradient in enumerate(gradients):
                if self._sgd:
                    self._sgd_step(index, gradient, decay)
                else:
                    self._adamw_step(index, gradient, decay)

    def _sgd_step(self, index: int, gradient: Tensor, decay: float) -> None:
        """Update one parameter; its gradient is already multiplied by the rates."""
        parameter, momentum = self._parameters[index], self._first[index]
        if weight_decay := self._weight_decay_of(index):
            gradient = gradient.addcmul(parameter, self._rates_like(parameter), value=weight_decay)
        momentum.mul_(MOMENTUM).add_(gradient)
        parameter.add_(momentum, alpha=-decay)

    def _adamw_step(self, index: int, gradient: Tensor, decay: float) -> None:
        parameter, first, second = self._parameters[index], self._first[index], self._second[index]
        rates = decay * self._rates_like(parameter)
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        deviation = (second / (1 - BETAS[1] ** self._step)).sqrt_().add_(EPS)
        parameter.mul_(1 - self._weight_decay_of(index) * rates)
        parameter.addcmul_(first / deviation, rates, value=-1 / (1 - BETAS[0] ** self._step))

    def _weight_decay_of(self, index: int) -> float:
        return 0.0 if self._names[index].endswith("bias") else self._weight_decay

    def _rates_like(self, parameter: Tensor) -> Tensor:
        """Return the rates as (R, 1, ...), to broadcast over a parameter (R, ...)."""
        return self._rates.view(-1, *[1] * (parameter.ndim - 1))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of batches in one pass over `count` features; the last may be short."""
    return math.ceil(count / batch_size)


def fit(
    grid: Grid, features: Tensor, labels: Tensor, epochs: int, batch_size: int, seed: int
) -> None:
    """Train a grid on features (n, ...) and labels (n,) int64, shuffled anew in each pass."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        for batch in order.split(batch_size):
            grid.step(features[batch].float(), labels[batch])


def fit_stream(grids: Mapping[Kind, Grid], stream: Iterable[tuple[FeaturesByKind, Tensor]]) -> None:
    """Train grids on batches of features by kind, (B, ...) each, with labels (B,) int64."""
    for features, labels in stream:
        for kind, grid in grids.items():
            grid.step(features[kind], labels)


def score(heads: nn.Module, features: Tensor, labels: Tensor, chunk: int = 2048) -> Tensor:
    """Measure every head's accuracy on features (n, ...), labels (n,) int64: (R,) float64."""
    pieces = zip(features.split(chunk), labels.split(chunk), strict=True)
    hits = torch.stack([_hits(heads, part, targets) for part, targets in pieces]).sum(dim=0)
    return hits.cpu() / len(labels)


def score_stream(
    grids: Mapping[Kind, Grid], stream: Iterable[tuple[FeaturesByKind, Tensor]]
) -> dict[Kind, Tensor]:
    """Measure every head's accuracy on a stream like that of `fit_stream`: (R,) float64 each."""
    hits: dict[Kind, list[Tensor]] = {kind: [] for kind in grids}
    count = 0
    for features, labels in stream:
        for kind, grid in grids.items():
            hits[kind].append(_hits(grid.heads, features[kind], labels))
        count += len(labels)
    return {kind: torch.stack(counts).sum(dim=0).cpu() / count for kind, counts in hits.items()}


@torch.no_grad()
def _hits(heads: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Count the correct predictions of each head, features (B, ...), labels (B,): (R,) float64."""
    heads.eval()
    predicted: Tensor = heads(features.float()).argmax(dim=2)  # (R, B)
    return (predicted == labels).sum(dim=1).double()


def choose(accuracies: Tensor) -> int:
    """Return the index of the best of accuracies (R,), the first of equals."""
    return int((accuracies == accuracies.max()).nonzero()[0])


def split(count: int, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split `count` images at random: sorted indices to train on and held out, int64 each."""
    num_held_out = round(count * held_out)
    if not 0 < num_held_out < count:
        raise ValueError(
            f"held_out {held_out} of {count} training images is {num_held_out}; both parts need "
            "images: give more of them or another share"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[num_held_out:].sort().values, order[:num_held_out].sort().values

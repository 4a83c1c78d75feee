"""Training a grid of probes: one head for each learning rate, all on the same batches."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.pooling import Kind
from beit.run.schedules import warmup_cosine

Drawn = Mapping[Kind, Tensor]  # features of some images
MOMENTUM = 0.9  # of SGD
BETAS, EPS = (0.9, 0.999), 1e-8  # of AdamW


class Grid:
    """Heads (R, ...) that are trained at once, head `r` at the learning rate `rates[r]`.

    Each is what it would be alone: no step mixes heads, and one that overflows leaves the others as
    they are. The rate falls by a cosine from its start to 0 over `total_steps`.
    """

    def __init__(
        self,
        heads: nn.Module,
        rates: Sequence[float],
        total_steps: int,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        weight_decay: float = 0.0,
    ) -> None:
        """Prepare the steps.

        Args:
            heads: gives logits (R, B, Y); each of its parameters begins with R
            rates: initial learning rates
            total_steps: of the whole training
            optimizer: SGD with momentum 0.9, or AdamW (0.9, 0.999)
            weight_decay: of all parameters but biases; part of SGD's gradient, AdamW's own as usual
        """
        self.heads, self.rates = heads, list(rates)
        self._total_steps, self._done = total_steps, 0
        self._sgd, self._weight_decay = optimizer == "sgd", weight_decay
        self._names, self._parameters = zip(*heads.named_parameters(), strict=True)
        self._rates = torch.tensor(self.rates, device=self._parameters[0].device)  # (R,)
        self._first = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._second = [] if self._sgd else [torch.zeros_like(p) for p in self._parameters]

    def step(self, features: Tensor, labels: Tensor) -> None:
        """Take one step of every head on features (B, ...) and labels (B,) int64.

        The losses add up, and no head's gradient sees another's. For SGD they do so with the rates
        as weights: it is linear in the gradient, so a loss times r at rate 1 takes the same steps
        as the loss itself at rate r. AdamW takes its rates in the update.
        """
        R = len(self.rates)
        self.heads.train()
        logits = self.heads(features)  # (R, B, Y)
        targets = labels.expand(R, -1)  # (R, B)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        means = losses.view(R, -1).mean(dim=1)  # (R,)
        loss = (means * self._rates).sum() if self._sgd else means.sum()
        gradients = torch.autograd.grad(loss, self._parameters)
        fall = warmup_cosine(self._done, base=1.0, final=0.0, total_steps=self._total_steps)
        self._done += 1
        with torch.no_grad():
            for place, gradient in enumerate(gradients):
                if self._sgd:
                    self._sgd_step(place, gradient, fall)
                else:
                    self._adamw_step(place, gradient, fall)

    def _sgd_step(self, place: int, gradient: Tensor, fall: float) -> None:
        """Update one parameter by its gradient, which has the rates in it."""
        parameter, momentum = self._parameters[place], self._first[place]
        if decay := self._decay(place):
            gradient = gradient.addcmul(parameter, self._spread(parameter), value=decay)
        momentum.mul_(MOMENTUM).add_(gradient)
        parameter.add_(momentum, alpha=-fall)

    def _adamw_step(self, place: int, gradient: Tensor, fall: float) -> None:
        parameter, first, second = self._parameters[place], self._first[place], self._second[place]
        rates = fall * self._spread(parameter)
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        deviation = (second / (1 - BETAS[1] ** self._done)).sqrt_().add_(EPS)
        parameter.mul_(1 - self._decay(place) * rates)
        parameter.addcmul_(first / deviation, rates, value=-1 / (1 - BETAS[0] ** self._done))

    def _decay(self, place: int) -> float:
        return 0.0 if self._names[place].endswith("bias") else self._weight_decay

    def _spread(self, parameter: Tensor) -> Tensor:
        """Give the rates as (R, 1, ...), to be multiplied with a parameter (R, ...)."""
        return self._rates.view(-1, *[1] * (parameter.ndim - 1))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Count the batches of one pass over `count` features, a short last one included."""
    return math.ceil(count / batch_size)


def fit(
    grid: Grid, features: Tensor, labels: Tensor, epochs: int, batch_size: int, seed: int
) -> None:
    """Train a grid on features (n, ...) and labels (n,) int64, in a seeded order in each pass."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        for batch in order.split(batch_size):
            grid.step(features[batch].float(), labels[batch])


def fit_stream(grids: Mapping[Kind, Grid], stream: Iterable[tuple[Drawn, Tensor]]) -> None:
    """Train grids on batches of features by kind, (B, ...) each, with labels (B,) int64."""
    for features, labels in stream:
        for kind, grid in grids.items():
            grid.step(features[kind], labels)


def score(heads: nn.Module, features: Tensor, labels: Tensor, chunk: int = 2048) -> Tensor:
    """Measure every head's accuracy on features (n, ...), labels (n,) int64: (R,) float64."""
    pieces = zip(features.split(chunk), labels.split(chunk), strict=True)
    right = torch.stack([_hits(heads, part, truth) for part, truth in pieces]).sum(dim=0)
    return right.cpu() / len(labels)


def score_stream(
    grids: Mapping[Kind, Grid], stream: Iterable[tuple[Drawn, Tensor]]
) -> dict[Kind, Tensor]:
    """Measure every head's accuracy on a stream like that of `fit_stream`: (R,) float64 each."""
    right: dict[Kind, list[Tensor]] = {kind: [] for kind in grids}
    count = 0
    for features, labels in stream:
        for kind, grid in grids.items():
            right[kind].append(_hits(grid.heads, features[kind], labels))
        count += len(labels)
    return {kind: torch.stack(hits).sum(dim=0).cpu() / count for kind, hits in right.items()}


@torch.no_grad()
def _hits(heads: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Count what every head classifies rightly of features (B, ...), labels (B,): (R,) float64."""
    heads.eval()
    guesses: Tensor = heads(features.float()).argmax(dim=2)  # (R, B)
    return (guesses == labels).sum(dim=1).double()


def choose(accuracies: Tensor) -> int:
    """Find the best of accuracies (R,), the first of equals."""
    return int((accuracies == accuracies.max()).nonzero()[0])


def split(count: int, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Part `count` images by chance: indices to train on and indices held out, int64 each."""
    num_held_out = round(count * held_out)
    if not 0 < num_held_out < count:
        raise ValueError(
            f"held_out {held_out} of {count} training images is {num_held_out}; both parts need "
            "images: give more of them or another share"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[num_held_out:].sort().values, order[:num_held_out].sort().values

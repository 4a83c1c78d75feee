"""The probes of one model: trained at all rates at once, on cached or streamed features."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.data.batch import Batch
from beit.data.source import PartSource, Source
from beit.nn.metrics import knn_accuracy
from beit.nn.pooling import Kind
from beit.nn.probes import AttentiveProbes, BatchStandardise, LinearProbes, Standardise
from beit.probing.charts import AttentiveRow, Row, figures
from beit.probing.features import CachedFeatures, FeatureReader
from beit.run.schedules import warmup_cosine
from beit.weights.frozen import FeaturesByKind

if TYPE_CHECKING:
    from beit.probing.probe import Config

MOMENTUM = 0.9  # of SGD
BETAS, EPS = (0.9, 0.999), 1e-8  # of AdamW


# ── a grid of probes ────────────────────────────────────────────────────────────────────────────


class Grid:
    """Heads (R, ...) that are trained together, head `r` at the learning rate `rates[r]`.

    Each head gives the result it would give alone: no step mixes heads, and one that overflows does
    not affect the others. Rates decay to 0 by a cosine over `total_steps`. SGD has momentum 0.9,
    AdamW betas (0.9, 0.999). Weight decay, not of biases, is added to the gradient for SGD and
    decoupled for AdamW.
    """

    def __init__(
        self,
        heads: nn.Module,
        rates: Sequence[float],
        total_steps: int,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        weight_decay: float = 0.0,
    ) -> None:
        """`heads` returns logits (R, B, Y); R is the first dimension of every parameter."""
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
                (self._sgd_step if self._sgd else self._adamw_step)(index, gradient, decay)

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


def fit(
    grid: Grid, features: Tensor, labels: Tensor, epochs: int, batch_size: int, seed: int
) -> None:
    """Train a grid on features (n, ...) and labels (n,) int64, shuffled anew in each pass."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        for batch in order.split(batch_size):
            grid.step(features[batch].float(), labels[batch])


def fit_stream(grids: Mapping[Kind, Grid], stream: Iterable[tuple[FeaturesByKind, Batch]]) -> None:
    """Train grids on batches and their features by kind, (B, ...) each."""
    for features, batch in stream:
        for kind, grid in grids.items():
            grid.step(features[kind], batch.labels)


def score(heads: nn.Module, features: Tensor, labels: Tensor, chunk: int = 2048) -> Tensor:
    """Measure every head's accuracy on features (n, ...), labels (n,) int64: (R,) float64."""
    pieces = zip(features.split(chunk), labels.split(chunk), strict=True)
    hits = torch.stack([_hits(heads, part, targets) for part, targets in pieces]).sum(dim=0)
    return hits.cpu() / len(labels)


def score_stream(
    grids: Mapping[Kind, Grid], stream: Iterable[tuple[FeaturesByKind, Batch]]
) -> dict[Kind, Tensor]:
    """Measure every head's accuracy on a stream like that of `fit_stream`: (R,) float64 each."""
    hits: dict[Kind, list[Tensor]] = {kind: [] for kind in grids}
    count = 0
    for features, batch in stream:
        for kind, grid in grids.items():
            hits[kind].append(_hits(grid.heads, features[kind], batch.labels))
        count += len(batch.labels)
    return {kind: torch.stack(counts).sum(dim=0).cpu() / count for kind, counts in hits.items()}


@torch.no_grad()
def _hits(heads: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Count the correct predictions of each head, features (B, ...), labels (B,): (R,) float64.

    Heads that have overflowed are never right: argmax would take their first NaN for the answer.
    """
    heads.eval()
    logits: Tensor = heads(features.float())  # (R, B, Y)
    right = (logits.argmax(dim=2) == labels) & ~logits.isnan().any(dim=2)
    return right.sum(dim=1).double()


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


# ── the steps of the protocol ───────────────────────────────────────────────────────────────────


def probe_features(
    kind: Kind,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    config: "Config",
    num_classes: int,
    grid: Grid | None = None,
    paper: bool = False,
) -> Row:
    """Carry out steps 2 to 6 of the protocol on pairs of features (n, D) and labels (n,) int64.

    `grid` holds linear probes that are already trained; `paper` is noted in the row.
    """
    for name, (features, _) in (("training", train), ("test", test)):
        if not bool(features.isfinite().all()):
            raise ValueError(
                f"features of the {name} images are not finite; the weights may be broken, or "
                "the precision too low: try device.precision=32-true and dtype=float32"
            )
    features, labels = train
    parts = split(len(features), config.held_out, config.seed)
    fitted, held_out = (part.to(features.device) for part in parts)
    if grid is None:
        steps = config.epochs * math.ceil(len(fitted) / config.batch_size)
        grid = linear_grid(features[fitted], num_classes, steps, config)
        data = features[fitted], labels[fitted]
        fit(grid, *data, config.epochs, config.batch_size, config.seed)
    accuracies = score(grid.heads, features[held_out], labels[held_out])
    best = choose(accuracies)
    linear = float(score(grid.heads, *test)[best])
    knn = [knn_accuracy(*train, *test, k) for k in config.votes]
    row = figures(kind, grid.rates[best], accuracies)
    return Row(**row, paper=paper, linear=linear, knn=knn[0], knn_each=knn)


def train_on_stream(
    reader: FeatureReader,
    kinds: Sequence[Kind],
    train: Source,
    train_set: CachedFeatures,
    num_classes: int,
) -> tuple[dict[Kind, Grid], dict[Kind, Grid]]:
    """Train the probes that need features of every pass: linear with `augment`, and attentive.

    Attentive probes replace step 3; steps 2, 4 and 5 stay. Returns: linear and attentive grids by
    kind; empty if the config has none.
    """
    config, device = reader.config, reader.fabric.device
    fitted, _ = split(len(train_set.labels), config.held_out, config.seed)
    images = PartSource(train, train_set.indices[fitted])
    steps = config.epochs * (len(images) // min(config.batch_size, len(images)))
    linear, attentive = dict[Kind, Grid](), dict[Kind, Grid]()
    for kind in kinds if config.augment else ():
        features = train_set.of(kind)[fitted].to(device)
        linear[kind] = linear_grid(features, num_classes, steps, config)
    for layer in dict.fromkeys(kind.layer for kind in kinds if config.attentive):
        D, rates = reader.model.width, sorted(config.attentive_rates)
        heads = AttentiveProbes(len(rates), D, num_classes, config.attentive_heads).to(device)
        grid = Grid(heads, rates, steps, "adamw", config.weight_decay)
        attentive[Kind(layer, "attentive")] = grid
    if grids := linear | attentive:
        fit_stream(grids, reader.read_epochs(list(grids), images, steps))
    return linear, attentive


def attentive_rows(
    reader: FeatureReader, grids: dict[Kind, Grid], held_out: Source, test: Source
) -> list[AttentiveRow]:
    """Choose the rate of each attentive grid on held-out images; measure it on test images."""
    if not grids:
        return []
    chosen_by = score_stream(grids, reader.read_once(list(grids), held_out, "held-out"))
    tested = score_stream(grids, reader.read_once(list(grids), test, "test"))
    rows = []
    for kind, grid in grids.items():
        best = choose(chosen_by[kind])
        row = figures(kind, grid.rates[best], chosen_by[kind])
        rows.append(AttentiveRow(**row, attentive=float(tested[kind][best])))
    return rows


def linear_grid(features: Tensor, num_classes: int, total_steps: int, config: "Config") -> Grid:
    """Build the linear probes of step 3 for features (n, D), the part they are fitted to."""
    D, rates = features.shape[1], sorted(config.rates)
    norms: dict[str, type[nn.Module]] = {"whole": Standardise, "batch": BatchStandardise}
    norm = norms[config.standardise](D) if config.standardise in norms else None
    heads = LinearProbes(len(rates), D, num_classes, norm).to(features.device)
    if isinstance(norm, Standardise):
        norm.measure(features.float())
    return Grid(heads, rates, total_steps, config.optimizer, config.weight_decay)

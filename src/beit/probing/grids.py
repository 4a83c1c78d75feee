"""The probes of one model: built, trained and evaluated on cached or streamed features."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from beit.data.sources import PartSource, Source
from beit.nn.metrics import knn_accuracy
from beit.nn.pooling import Kind
from beit.nn.probes import AttentiveProbes, BatchStandardise, LinearProbes, Standardise
from beit.probing.charts import AttentiveRow, Row, figures
from beit.probing.features import CachedFeatures, FeatureReader
from beit.probing.training import (
    Grid,
    choose,
    fit,
    fit_stream,
    score,
    score_stream,
    split,
    steps_per_epoch,
)

if TYPE_CHECKING:
    from beit.probing.probe import Config


def probe_features(
    kind: Kind,
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    config: "Config",
    num_classes: int,
    *,
    grid: Grid | None = None,
    paper: bool = False,
) -> Row:
    """Carry out steps 2 to 6 of the protocol on features (n, D) and (m, D), labels int64.

    `grid` holds linear probes that are already trained; `paper` is noted in the row.
    """
    for name, features in (("training", train), ("test", test)):
        if not bool(features.isfinite().all()):
            raise ValueError(
                f"features of the {name} images are not finite; the weights may be broken, or "
                "the precision too low: try device.precision=32-true and dtype=float32"
            )
    fitted, held_out = (
        part.to(train.device) for part in split(len(train), config.held_out, config.seed)
    )
    if grid is None:
        steps = config.epochs * steps_per_epoch(len(fitted), config.batch_size)
        features, labels = train[fitted], train_labels[fitted]
        grid = linear_grid(features, num_classes, steps, config)
        fit(grid, features, labels, config.epochs, config.batch_size, config.seed)
    accuracies = score(grid.heads, train[held_out], train_labels[held_out])
    best = choose(accuracies)
    knn = [knn_accuracy(train, train_labels, test, test_labels, k) for k in config.votes]
    return Row(
        **figures(kind, grid.rates[best], accuracies),
        paper=paper,
        linear=float(score(grid.heads, test, test_labels)[best]),
        knn=knn[0],
        knn_each=knn,
    )


def train_on_stream(
    reader: FeatureReader,
    kinds: Sequence[Kind],
    train: Source,
    train_set: CachedFeatures,
    num_classes: int,
) -> tuple[dict[Kind, Grid], dict[Kind, Grid]]:
    """Train the probes that need features of every pass: linear with `augment`, and attentive.

    Returns: linear and attentive grids by kind; empty if the config has none.
    """
    config, device = reader.config, reader.fabric.device
    fitted, _ = split(len(train_set.labels), config.held_out, config.seed)
    images = PartSource(train, train_set.indices[fitted])
    steps = config.epochs * (len(images) // min(config.batch_size, len(images)))
    linear, attentive = dict[Kind, Grid](), dict[Kind, Grid]()
    if config.augment:
        for kind in kinds:
            features = train_set.of(kind)[fitted].to(device)
            linear[kind] = linear_grid(features, num_classes, steps, config)
    if config.attentive:
        for layer in dict.fromkeys(kind.layer for kind in kinds):
            grid = attentive_grid(reader.model.width, num_classes, steps, config, device)
            attentive[Kind(layer, "attentive")] = grid
    grids = linear | attentive
    if grids:
        fit_stream(grids, reader.stream_epochs(list(grids), images, steps))
    return linear, attentive


def attentive_rows(
    reader: FeatureReader, grids: dict[Kind, Grid], held_out: Source, test: Source
) -> list[AttentiveRow]:
    """Choose the rate of each attentive grid on held-out images; measure it on test images."""
    if not grids:
        return []
    chosen_by = score_stream(grids, reader.stream(list(grids), held_out, "held-out"))
    tested = score_stream(grids, reader.stream(list(grids), test, "test"))
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


def attentive_grid(
    width: int, num_classes: int, total_steps: int, config: "Config", device: torch.device
) -> Grid:
    """Build attentive probes, which replace step 3; steps 2, 4 and 5 stay."""
    rates = sorted(config.attentive_rates)
    heads = AttentiveProbes(len(rates), width, num_classes, config.attentive_heads)
    return Grid(heads.to(device), rates, total_steps, "adamw", config.weight_decay)

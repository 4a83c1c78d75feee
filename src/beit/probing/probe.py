"""Probing: how well frozen features tell classes apart, by classifiers and by neighbours.

The protocol, the same for every model; docs/probing.md says what each option changes:

1. Features. The backbone is frozen, in eval mode, under the precision of `device.precision`. Every
   image is seen once, in the evaluation view (shorter side resized, centre crop, no augmentation);
   one that cannot be read is named and left out. Two vectors an image, each probed by itself: the
   [CLS] token and the mean of the patch tokens, both after the final norm where the model has one,
   or of raw outputs of blocks (`layers`). A teacher gives the mean of its patch tokens only. They
   are kept in float32, in memory.
2. Held-out part. A seeded share (`held_out`, 10%) of the training images is set aside.
3. Linear probe. Each dimension is standardised by mean and deviation of the other 90%: what a batch
   normalisation without scale and shift does, but with the statistics of the whole part at every
   step. One linear layer with bias from a start at zero; cross-entropy; SGD with momentum 0.9, no
   weight decay; the rate falls by a cosine from its start to 0, step by step, over `epochs` seeded
   passes. All `rates` are trained at once on the same batches; each is what it would be alone.
4. Choice. The rate with the highest accuracy on the held-out part; the smaller one of equals.
5. Report. The accuracy (top-1) of that one classifier on the test images, which nothing before
   has seen. It is not trained again with the held-out part added.
6. k-NN. The whole training set votes: the `neighbours` nearest by cosine, weighted by
   exp(cosine / 0.07), on features as they are. There is nothing to choose here.

The paper reads [CLS] where patch aggregation was used, else the mean (section 3.2): that row is
marked. The rest of its probe is not published; v1's differs from this one (FACTS 3.6).
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from beit.data.batch import Batch
from beit.data.batches import EvalBatches, TrainBatches
from beit.data.classes import Labelled, checked_classes
from beit.data.prefetch import prefetch
from beit.data.sources import PartSource, Source, open_source
from beit.data.unreadable import Unreadable, readable
from beit.data.views import EvalView, TrainViews, ViewConfig
from beit.draw.report import Section, write_report
from beit.files import write_text
from beit.nn.metrics import knn_accuracy
from beit.nn.pooling import Kind, kinds_of
from beit.nn.probes import AttentiveProbes, BatchStandardise, LinearProbes, Standardise
from beit.probing.charts import AttentiveRow, accuracy_table, drawings, figures, format_table, notes
from beit.probing.charts import Row as Row
from beit.probing.features import Frozen, open_frozen
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
from beit.run.device import DeviceConfig, launch
from beit.run.directory import environment
from beit.run.progress import Progress

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Config:
    """What is probed, on which images, and how.

    Attributes:
        model: a run directory, a weights file, or teacher:SOURCE
        train: labelled images to train on
        test: labelled images to report on
        untrained: the same architecture with fresh weights drawn from the seed, as the floor (a
            teacher's are always the same ones)
        limit: use so many training images, a fixed subset; null for all
        test_limit: use so many test images, a fixed subset; null for all
        image_size: side that the model is to see, in pixels; null for the model's own
        num_heads: attention heads, where neither the file nor the usual 64 channels a head say it
        crop_ratio: side of the centre crop over the shorter side; 1 for images without a margin
        layers: last for the final features; numbers of blocks, from 1, for their raw outputs; all
            for every block and the final features
        pooling: any of cls, mean and both (one after the other); null for cls and mean, of a
            teacher mean
        standardise: features by the statistics of the whole training part, by those of each batch
            (batch normalisation without scale and shift), or none
        optimizer: of the linear probe: SGD with momentum 0.9, or AdamW
        weight_decay: of the classifiers' weights; biases have none
        augment: draw the training features anew in each pass, from random views
        view: those random views
        attentive: train an attentive probe on the patch tokens too
        attentive_heads: heads of its query; they divide the width
        attentive_rates: its initial learning rates, all tried
        held_out: share of the training images that chooses the rate
        rates: initial learning rates of the linear probe, all tried
        epochs: passes of the classifiers over the features
        batch_size: features a step
        neighbours: how many vote in k-NN; one number, or several for a figure each
        seed: of the held-out part, the order of the features, the views and the untrained weights
        output: directory for probe.json and report.html; null for none
        dtype: of the features in memory
        images_per_batch: images that the backbone sees at a time
        num_workers: processes that decode images
        cache_gigabytes: decoded images of a set are kept in memory if they fit
        max_unreadable: largest share of unreadable images that does not stop the probe
        device: where and in which precision the backbone runs; one process
    """

    model: str
    train: str
    test: str
    untrained: bool = False
    limit: int | None = None
    test_limit: int | None = None
    image_size: int | None = None
    num_heads: int | None = None
    crop_ratio: float = 0.875
    layers: Literal["last", "all"] | tuple[int, ...] = "last"
    pooling: tuple[Literal["cls", "mean", "both"], ...] | None = None
    standardise: Literal["whole", "batch", "none"] = "whole"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 0.0
    augment: bool = False
    view: ViewConfig = ViewConfig(min_scale=0.08, color_jitter=0.0)
    attentive: bool = False
    attentive_heads: int = 8
    attentive_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    held_out: float = 0.1
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
    epochs: int = 30
    batch_size: int = 512
    neighbours: int | tuple[int, ...] = 20
    seed: int = 0
    output: str | None = None
    dtype: Literal["float32", "float16"] = "float32"
    images_per_batch: int = 128
    num_workers: int = 2
    cache_gigabytes: float = 0.0
    max_unreadable: float = 0.01
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        for name in ("rates", "attentive_rates"):
            rates = getattr(self, name)
            if not rates or min(rates) <= 0 or not all(map(math.isfinite, rates)):
                raise ValueError(f"{name} must be one or more positive numbers, got {rates}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be a share between 0 and 1, got {self.held_out}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        for name in ("epochs", "batch_size", "images_per_batch", "attentive_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.votes or min(self.votes) < 1:
            raise ValueError(f"neighbours must be at least 1, got {self.neighbours}")
        for name in ("layers", "pooling"):
            several = getattr(self, name)
            if isinstance(several, tuple) and not 0 < len(several) == len(set(several)):
                raise ValueError(f"{name} must name one or more, each once, got {several}")

    @property
    def votes(self) -> tuple[int, ...]:
        """Numbers of neighbours, one or several."""
        return (self.neighbours,) if isinstance(self.neighbours, int) else self.neighbours


@dataclass(frozen=True)
class Result:
    """Figures by kind of features, the table that a person reads, and what to mind about them."""

    rows: list[Row]
    table: str
    notes: list[str]
    attentive: list[AttentiveRow] = field(default_factory=list)


class Cached(NamedTuple):
    """Features of a set, on the CPU.

    Attributes:
        features: (n, D) by kind, of [CLS] and of mean patches
        labels: (n,) int64
        indices: (n,) int64, of the images in their source
    """

    features: dict[Kind, Tensor]
    labels: Tensor
    indices: Tensor

    def of(self, kind: Kind) -> Tensor:
        """Return the features of a kind: (n, D), of both (n, 2D)."""
        parts = [self.features[part] for part in kind.parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def run(config: Config) -> Result:
    """Probe one model; the protocol stands at the head of this file."""
    device = _single(config.device)
    output = None if config.output is None else Path(config.output)
    if output is not None and output.exists():
        raise FileExistsError(f"{output} exists and is not overwritten; name another directory")
    train = open_source(config.train, cache_gigabytes=config.cache_gigabytes, limit=config.limit)
    test = open_source(config.test, cache_gigabytes=config.cache_gigabytes, limit=config.test_limit)
    labelled = Labelled("train", config.train, train), Labelled("test", config.test, test)
    num_classes = checked_classes(*labelled).number
    split(len(train), config.held_out, config.seed)  # refuses before the features are computed
    fabric = launch(device)
    frozen = open_frozen(
        config.model,
        config.image_size,
        config.num_heads,
        untrained=config.seed if config.untrained else None,
        device=fabric.device,
    )
    kinds = kinds_of(config.layers, config.pooling, frozen.depth, frozen.has_cls)
    if config.attentive and frozen.width % config.attentive_heads:
        raise ValueError(
            f"attentive_heads is {config.attentive_heads}, but the model is {frozen.width} wide; "
            "choose a number that divides it"
        )
    train_set = extract(frozen, kinds, train, "training", config, fabric)
    test_set = extract(frozen, kinds, test, "test", config, fabric)

    fitted, held_out = split(len(train_set.labels), config.held_out, config.seed)
    images = PartSource(train, train_set.indices[fitted])
    steps = config.epochs * (len(images) // min(config.batch_size, len(images)))
    linear, attentive = dict[Kind, Grid](), dict[Kind, Grid]()  # on features computed in each pass
    if config.augment:
        for kind in kinds:
            features = train_set.of(kind)[fitted].to(fabric.device)
            linear[kind] = linear_grid(features, num_classes, steps, config)
    if config.attentive:
        for layer in dict.fromkeys(kind.layer for kind in kinds):
            grid = attentive_grid(frozen.width, num_classes, steps, config, fabric.device)
            attentive[Kind(layer, "attentive")] = grid
    if linear or attentive:
        grids = linear | attentive
        fit_stream(grids, _drawn(frozen, list(grids), images, steps, config, fabric))

    rows, attentive_rows = list[Row](), list[AttentiveRow]()
    for kind in kinds:
        row = probe_features(
            kind,
            train_set.of(kind).to(fabric.device),
            train_set.labels.to(fabric.device),
            test_set.of(kind).to(fabric.device),
            test_set.labels.to(fabric.device),
            config,
            num_classes,
            grid=linear.get(kind),
            paper=(kind.layer, kind.pooling) == (None, frozen.paper),
        )
        rows.append(row)
    if attentive:
        apart = PartSource(train, train_set.indices[held_out])
        choice, tested = (
            score_stream(attentive, ((features, labels) for features, labels, _ in stream))
            for stream in (
                _seen(frozen, list(attentive), apart, "held-out", config, fabric),
                _seen(frozen, list(attentive), test, "test", config, fabric),
            )
        )
        for kind, grid in attentive.items():
            best = choose(choice[kind])
            row_begun = figures(kind, grid.rates[best], choice[kind])
            accuracy = float(tested[kind][best])
            attentive_rows.append(AttentiveRow(**row_begun, attentive=accuracy))
    table = format_table(accuracy_table(rows, attentive_rows, config.votes))
    told = notes(rows, attentive_rows, config.rates, config.attentive_rates)
    print("\n".join([table, *told]))
    result = Result(rows, table, told, attentive_rows)
    if output is not None:
        sizes = {"train": len(train_set.labels), "test": len(test_set.labels)}
        sizes |= {"classes": num_classes, "width": frozen.width}
        _write(output, config, result, frozen.image_size, sizes)
    return result


# ── features ────────────────────────────────────────────────────────────────────────────────────


def extract(
    frozen: Frozen,
    kinds: Sequence[Kind],
    source: Source,
    name: str,
    config: Config,
    fabric: "Fabric",
) -> Cached:
    """Carry out step 1 of the protocol: the features of all images of `source` that can be read."""
    parts = list(dict.fromkeys(part for kind in kinds for part in kind.parts))
    pieces: dict[Kind, list[Tensor]] = {part: [] for part in parts}
    labels, indices = list[Tensor](), list[Tensor]()
    dtype = torch.float16 if config.dtype == "float16" else torch.float32
    for features, truth, places in _seen(frozen, parts, source, name, config, fabric):
        for part in parts:
            pieces[part].append(features[part].to("cpu", dtype))
        labels.append(truth.cpu())
        indices.append(places.cpu())
    whole = {part: torch.cat(pieces.pop(part)) for part in parts}
    return Cached(whole, torch.cat(labels), torch.cat(indices))


def _seen(
    frozen: Frozen,
    kinds: Sequence[Kind],
    source: Source,
    name: str,
    config: Config,
    fabric: "Fabric",
) -> Iterator[tuple[dict[Kind, Tensor], Tensor, Tensor]]:
    """Give features, labels and indices of all images that can be read, batch by batch."""
    view = EvalView(frozen.image_size, config.crop_ratio)
    batches = EvalBatches(source, view, config.images_per_batch, num_workers=config.num_workers)
    told = f"features of {len(source)} {name} images"
    for features, batch in _read(frozen, kinds, batches, told, len(source), config, fabric):
        yield features, batch.labels, batch.indices


def _drawn(
    frozen: Frozen,
    kinds: Sequence[Kind],
    source: Source,
    num_steps: int,
    config: Config,
    fabric: "Fabric",
) -> Iterator[tuple[dict[Kind, Tensor], Tensor]]:
    """Give features and labels of the batches of all passes, computed anew in each pass."""
    size = frozen.image_size
    same = partial(_unchanging, EvalView(size, config.crop_ratio))
    batches = TrainBatches(
        source,
        TrainViews(config.view, size, size) if config.augment else same,
        batch_size=min(config.batch_size, len(source)),
        seed=config.seed,
        start_step=0,
        num_steps=num_steps,
        num_workers=config.num_workers,
    )
    told = f"probes of {len(source)} images, {config.epochs} passes"
    for features, batch in _read(frozen, kinds, batches, told, len(source), config, fabric):
        yield features, batch.labels


def _read(
    frozen: Frozen,
    kinds: Sequence[Kind],
    batches: EvalBatches | TrainBatches,
    told: str,
    num_images: int,
    config: Config,
    fabric: "Fabric",
) -> Iterator[tuple[dict[Kind, Tensor], Batch]]:
    """Give features of batches, and the batches; show how far it is."""
    loader = prefetch(batches, fabric.device)
    unreadable = Unreadable(num_images, config.max_unreadable)
    with Progress(len(batches)) as progress:
        progress.message(told)
        for step, batch in enumerate(readable(loader, unreadable, progress.warn), start=1):
            with torch.no_grad(), fabric.autocast():
                chunks = batch.images.split(config.images_per_batch)
                parts = [frozen.read(images, kinds) for images in chunks]
            yield {kind: torch.cat([part[kind] for part in parts]) for kind in kinds}, batch
            progress.update(step, {}, len(batch.labels), loader.wait_seconds)


def _unchanging(view: EvalView, image: Tensor, _: torch.Generator) -> tuple[Tensor, Tensor]:
    """Give the evaluation view where a pair of random ones is expected."""
    seen = view(image)
    return seen, seen


# ── probes ──────────────────────────────────────────────────────────────────────────────────────


def probe_features(
    kind: Kind,
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    config: Config,
    num_classes: int,
    *,
    grid: Grid | None = None,
    paper: bool = False,
) -> Row:
    """Carry out steps 2 to 6 of the protocol on features: (n, D) and (m, D), labels int64.

    `grid` holds linear probes that are trained already; `paper` is noted in the row.
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


def linear_grid(features: Tensor, num_classes: int, total_steps: int, config: Config) -> Grid:
    """Build the linear probes of step 3 for features (n, D), the part that they are fitted to."""
    D, rates = features.shape[1], sorted(config.rates)
    norms: dict[str, type[nn.Module]] = {"whole": Standardise, "batch": BatchStandardise}
    norm = norms[config.standardise](D) if config.standardise in norms else None
    heads = LinearProbes(len(rates), D, num_classes, norm).to(features.device)
    if isinstance(norm, Standardise):
        norm.measure(features.float())
    return Grid(heads, rates, total_steps, config.optimizer, config.weight_decay)


def attentive_grid(
    width: int, num_classes: int, total_steps: int, config: Config, device: torch.device
) -> Grid:
    """Build attentive probes, which take the place of step 3; steps 2, 4 and 5 stay."""
    rates = sorted(config.attentive_rates)
    heads = AttentiveProbes(len(rates), width, num_classes, config.attentive_heads)
    return Grid(heads.to(device), rates, total_steps, "adamw", config.weight_decay)


# ── what is opened and written ──────────────────────────────────────────────────────────────────


def _single(device: DeviceConfig) -> DeviceConfig:
    """Return `device` for one process; refuse what asks for several."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    asked = 1 if device.devices == "auto" else int(device.devices) * device.num_nodes
    if max(world, asked) > 1:
        raise ValueError(
            f"probe runs in one process on one device, got {max(world, asked)}; "
            "start it as `beit probe` without torchrun, with device.devices=1"
        )
    return replace(device, devices=1)


def _write(
    output: Path,
    config: Config,
    result: Result,
    image_size: tuple[int, int],
    sizes: Mapping[str, int],
) -> None:
    """Write probe.json and report.html into the new directory `output`."""
    output.mkdir(parents=True)
    record = {
        "rows": result.rows,
        "attentive": result.attentive,
        "notes": result.notes,
        "rates": sorted(config.rates),
        "image_size": image_size,
        "sizes": sizes,
        "config": asdict(config),
        "environment": environment("probe"),
    }
    write_text(output / "probe.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    table = accuracy_table(result.rows, result.attentive, config.votes)
    pictures = drawings(result.rows, result.attentive, config.rates, config.attentive_rates)
    untrained = " (untrained)" if config.untrained else ""
    write_report(
        output / "report.html",
        f"Probe of {config.model}{untrained}",
        [Section("Frozen features", "\n\n".join(result.notes), [table, *pictures])],
        {
            "Model": config.model + untrained,
            "Training images": f"{config.train} ({sizes['train']})",
            "Test images": f"{config.test} ({sizes['test']})",
            "Classes": str(sizes["classes"]),
            "Image size": f"{image_size[0]} x {image_size[1]}",
            "Seed": str(config.seed),
        },
    )

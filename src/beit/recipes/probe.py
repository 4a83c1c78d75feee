"""Probing: how well frozen features tell classes apart, by a linear classifier and by neighbours.

The protocol, the same for every model:

1. Features. The backbone is frozen, in eval mode, under the precision of `device.precision`. Every
   image is seen once, in the evaluation view (shorter side resized, centre crop, no augmentation);
   one that cannot be read is named and left out.
   Two vectors an image, each probed by itself: the [CLS] token and the mean of the patch tokens,
   both after the final norm where the model has one. A teacher gives the mean of its patch tokens
   only. They are kept in float32, in memory.
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

This is not the probe of BEiT v1's script, which trains a layer on every block by AdamW under random
crops (FACTS 3.6); v2 has published none. The paper reads [CLS] where patch aggregation was used,
else the mean (section 3.3). AdamW in place of SGD was tried on CIFAR-10 (10,800 images; pixels,
random convolutions and ImageNet features, 192 to 1280 wide) and gave the same within 0.6 points;
the best rates there lay between 0.003 and 0.3.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from beit.data.batches import EvalBatches, Unreadable
from beit.data.prefetch import prefetch
from beit.data.sources import Source, open_source
from beit.data.views import EvalView
from beit.nn.heads import LinearProbes
from beit.nn.metrics import knn_accuracy
from beit.nn.vit import VisionTransformer
from beit.show.curves import curves
from beit.show.report import Section, Table, write_report
from beit.store.atomic import write_text
from beit.store.load import load_backbone
from beit.store.run import environment
from beit.store.teachers import load_teacher
from beit.train.fabric import DeviceConfig, launch
from beit.train.progress import Progress
from beit.train.schedules import warmup_cosine

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TEACHER = "teacher:"
NAMES = {"cls": "[CLS]", "mean": "mean of patches"}
Embed = Callable[[Tensor], dict[str, Tensor]]


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
        held_out: share of the training images that chooses the rate
        rates: initial learning rates, all tried
        epochs: passes of the linear classifiers over the features
        batch_size: features a step
        neighbours: how many vote in k-NN
        seed: of the held-out part, the order of the features and the untrained weights
        output: directory for probe.json and report.html; null for none
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
    held_out: float = 0.1
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
    epochs: int = 30
    batch_size: int = 512
    neighbours: int = 20
    seed: int = 0
    output: str | None = None
    images_per_batch: int = 128
    num_workers: int = 2
    cache_gigabytes: float = 0.0
    max_unreadable: float = 0.01
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0 or not all(map(math.isfinite, self.rates)):
            raise ValueError(f"rates must be one or more positive numbers, got {self.rates}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be a share between 0 and 1, got {self.held_out}")
        for name in ("epochs", "batch_size", "neighbours", "images_per_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Row(TypedDict):
    """Figures of one kind of features; accuracies are shares in [0, 1].

    features: "cls" or "mean"; linear: on the test images, of the chosen classifier; knn: on the
    test images; rate: the chosen one; held_out: accuracy of every rate on the held-out part, by
    rising rate.
    """

    features: str
    linear: float
    knn: float
    rate: float
    held_out: list[float]


@dataclass(frozen=True)
class Result:
    """Figures by kind of features, the table that a person reads, and what to mind about them."""

    rows: list[Row]
    table: str
    notes: list[str]


class Frozen(NamedTuple):
    """A model to probe: embed maps images (B, 3, H, W) uint8 to {"cls"?, "mean": (B, D)}."""

    embed: Embed
    image_size: tuple[int, int]


class Cached(NamedTuple):
    """All features of a set, {name: (n, D)} float32 on the CPU, and its labels (n,) int64."""

    features: dict[str, Tensor]
    labels: Tensor


def run(config: Config) -> Result:
    """Probe one model; the protocol stands at the head of this file."""
    device = _single(config.device)
    output = None if config.output is None else Path(config.output)
    if output is not None and output.exists():
        raise FileExistsError(f"{output} exists and is not overwritten; name another directory")
    train, test, num_classes = _open_sets(config)
    split(len(train), config.held_out, config.seed)  # refuses before the features are computed
    fabric = launch(device)
    frozen = _open_model(config, fabric.device)
    train_set = extract(frozen, train, "training", config, fabric)
    test_set = extract(frozen, test, "test", config, fabric)
    rows, notes = [], []
    for kind in train_set.features:
        row = probe_features(
            kind,
            train_set.features[kind].to(fabric.device),
            train_set.labels.to(fabric.device),
            test_set.features[kind].to(fabric.device),
            test_set.labels.to(fabric.device),
            config,
            num_classes,
        )
        rows.append(row)
        if len(config.rates) > 1 and row["rate"] in (min(config.rates), max(config.rates)):
            end = "largest" if row["rate"] == max(config.rates) else "smallest"
            notes.append(
                f"{NAMES[kind]}: the best rate {row['rate']:g} is the {end} of the grid; "
                "a wider grid (rates) may give more"
            )
    result = Result(rows, format_table(rows), notes)
    print("\n".join([result.table, *notes]))
    if output is not None:
        sizes = {
            "train": len(train_set.labels),
            "test": len(test_set.labels),
            "classes": num_classes,
            "width": train_set.features["mean"].shape[1],
        }
        _write(output, config, result, frozen.image_size, sizes)
    return result


def extract(frozen: Frozen, source: Source, name: str, config: Config, fabric: "Fabric") -> Cached:
    """Carry out step 1 of the protocol: the features of all images of `source` that can be read."""
    view = EvalView(frozen.image_size, config.crop_ratio)
    batches = EvalBatches(source, view, config.images_per_batch, num_workers=config.num_workers)
    loader = prefetch(batches, fabric.device)
    unreadable = Unreadable(len(source), config.max_unreadable)
    parts: list[dict[str, Tensor]] = []
    labels: list[Tensor] = []
    position = 0
    with Progress(len(batches)) as progress, torch.no_grad():
        progress.message(f"features of {len(source)} {name} images")
        for step, batch in enumerate(loader, start=1):
            for lost in unreadable.note(batch.unreadable):
                progress.message(f"left out, cannot be read: {lost}")
            with fabric.autocast():
                pooled = frozen.embed(batch.student)
            # The image that stands in for an unreadable one is in the set already.
            own = batch.indices.cpu() == torch.arange(position, position + len(batch.indices))
            position += len(own)
            parts.append({kind: vectors.float().cpu()[own] for kind, vectors in pooled.items()})
            labels.append(batch.labels.cpu()[own])
            progress.update(step, {}, len(own), loader.wait_seconds)
    features = {kind: torch.cat([part[kind] for part in parts]) for kind in parts[0]}
    return Cached(features, torch.cat(labels))


def probe_features(
    kind: str,
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    config: Config,
    num_classes: int,
) -> Row:
    """Carry out steps 2 to 6 of the protocol on features: (n, D) and (m, D), labels int64."""
    for name, features in (("training", train), ("test", test)):
        if not bool(features.isfinite().all()):
            raise ValueError(
                f"features of the {name} images are not finite; the weights may be broken, or "
                "the precision too low: try device.precision=32-true"
            )
    rates = sorted(config.rates)
    fitted, held_out = (
        part.to(train.device) for part in split(len(train), config.held_out, config.seed)
    )
    probes = train_probes(
        train[fitted],
        train_labels[fitted],
        rates,
        num_classes,
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    accuracies = score(probes, train[held_out], train_labels[held_out])
    best = choose(accuracies)
    return Row(
        features=kind,
        linear=float(score(probes, test, test_labels)[best]),
        knn=knn_accuracy(train, train_labels, test, test_labels, config.neighbours),
        rate=rates[best],
        held_out=accuracies.tolist(),
    )


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


def train_probes(
    features: Tensor,
    labels: Tensor,
    rates: Sequence[float],
    num_classes: int,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> LinearProbes:
    """Train one linear classifier for each rate on features (n, D) and labels (n,) int64.

    Their losses add up with the rates as weights: SGD is linear in the gradient, so a loss times r
    at rate 1 takes the same steps as the loss itself at rate r, and no probe touches another.
    """
    n, D = features.shape
    R = len(rates)
    probes = LinearProbes(R, D, num_classes).to(features.device)
    probes.standardise_by(features)
    optimizer = torch.optim.SGD(probes.parameters(), lr=1.0, momentum=0.9)
    weights = torch.tensor(rates, device=features.device)  # (R,)
    total_steps = epochs * math.ceil(n / batch_size)
    generator = torch.Generator().manual_seed(seed)
    step = 0
    for _ in range(epochs):
        order = torch.randperm(n, generator=generator).to(features.device)
        for batch in order.split(batch_size):
            optimizer.param_groups[0]["lr"] = warmup_cosine(
                step, base=1.0, final=0.0, total_steps=total_steps, warmup_steps=0
            )
            logits = probes(features[batch])  # (R, B, Y)
            targets = labels[batch].expand(R, -1)  # (R, B)
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            loss = (losses.view(R, -1).mean(dim=1) * weights).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return probes


@torch.no_grad()
def score(probes: LinearProbes, features: Tensor, labels: Tensor, chunk: int = 2048) -> Tensor:
    """Measure every probe's accuracy on features (n, D), labels (n,) int64: (R,) float64."""
    pieces = zip(features.split(chunk), labels.split(chunk), strict=True)
    hits = [(probes(part).argmax(dim=2) == truth).sum(dim=1) for part, truth in pieces]
    return torch.stack(hits).sum(dim=0).cpu().double() / len(labels)


def choose(accuracies: Tensor) -> int:
    """Find the best of accuracies (R,), the first of equals."""
    return int((accuracies == accuracies.max()).nonzero()[0])


def format_table(rows: Sequence[Row]) -> str:
    """Lay the figures out for a terminal, accuracies in percent."""
    lines = [f"{'features':<16}{'linear probe':>13}{'k-NN':>8}{'rate':>9}"]
    for row in rows:
        linear, knn = f"{100 * row['linear']:.2f}", f"{100 * row['knn']:.2f}"
        lines.append(f"{NAMES[row['features']]:<16}{linear:>13}{knn:>8}{row['rate']:>9g}")
    return "\n".join(lines)


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


def _open_sets(config: Config) -> tuple[Source, Source, int]:
    """Open both sets and count their classes; refuse what no probe could be trained on."""
    train = open_source(config.train, cache_gigabytes=config.cache_gigabytes, limit=config.limit)
    test = open_source(config.test, cache_gigabytes=config.cache_gigabytes, limit=config.test_limit)
    for name, spec, source in (("train", config.train, train), ("test", config.test, test)):
        if source.labels is None or bool((source.labels < 0).any()):
            raise ValueError(
                f"{name} {spec}: images without a label; a probe needs the class of every image: "
                "class folders, or a label column in Parquet files"
            )
    assert train.labels is not None and test.labels is not None
    if train.class_names and test.class_names and train.class_names != test.class_names:
        strange = sorted(set(train.class_names) ^ set(test.class_names))
        raise ValueError(
            f"train {config.train} and test {config.test} do not have the same classes: "
            f"{', '.join(strange[:5]) or 'their order differs'}"
        )
    num_classes = int(train.labels.max()) + 1
    if int(test.labels.max()) >= num_classes:
        raise ValueError(
            f"test {config.test} has class {int(test.labels.max())}, but the largest class of "
            f"train {config.train} is {num_classes - 1}"
        )
    if num_classes < 2:
        raise ValueError(f"train {config.train} has one class; a probe needs at least two")
    return train, test, num_classes


def _open_model(config: Config, device: torch.device) -> Frozen:
    """Load, or draw from the seed, what the features come from."""
    if config.model.startswith(TEACHER):
        return _open_teacher(config, device)
    heads = {} if config.num_heads is None else {"num_heads": config.num_heads}
    backbone = load_backbone(config.model, image_size=config.image_size, **heads)
    if config.untrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            backbone = VisionTransformer(backbone.config)
    backbone = backbone.to(device).eval()

    def embed(images: Tensor) -> dict[str, Tensor]:
        features = backbone(images)
        return {"cls": features.cls, "mean": features.patches.float().mean(dim=1)}

    return Frozen(embed, backbone.config.image_size)


def _open_teacher(config: Config, device: torch.device) -> Frozen:
    teacher = load_teacher(
        config.model.removeprefix(TEACHER),
        config.image_size,
        pretrained=not config.untrained,
        num_heads=config.num_heads,
    ).to(device)

    def embed(images: Tensor) -> dict[str, Tensor]:
        return {"mean": teacher.features(images, teacher.grid).float().mean(dim=1)}

    return Frozen(embed, teacher.image_size)


def _write(
    output: Path,
    config: Config,
    result: Result,
    image_size: tuple[int, int],
    sizes: Mapping[str, int],
) -> None:
    """Write probe.json and report.html into the new directory `output`."""
    rates = sorted(config.rates)
    output.mkdir(parents=True)
    record = {
        "rows": result.rows,
        "notes": result.notes,
        "rates": rates,
        "image_size": image_size,
        "sizes": sizes,
        "config": asdict(config),
        "environment": environment("probe"),
    }
    write_text(output / "probe.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    by_rate = [
        {"log10 of the rate": math.log10(rate)}
        | {NAMES[row["features"]]: 100 * row["held_out"][place] for row in result.rows}
        for place, rate in enumerate(rates)
    ]
    table = Table(
        "Accuracy on the test images, in percent",
        ["Features", "Linear probe", "k-NN", "Rate"],
        [
            [
                NAMES[row["features"]],
                f"{100 * row['linear']:.2f}",
                f"{100 * row['knn']:.2f}",
                f"{row['rate']:g}",
            ]
            for row in result.rows
        ],
    )
    drawing = curves(
        by_rate,
        {"Held-out accuracy, %": [NAMES[row["features"]] for row in result.rows]},
        "Which rate was chosen, and how much hangs on it",
        x="log10 of the rate",
    )
    untrained = " (untrained)" if config.untrained else ""
    write_report(
        output / "report.html",
        f"Probe of {config.model}{untrained}",
        [Section("Frozen features", "\n\n".join(result.notes), [table, drawing])],
        {
            "Model": config.model + untrained,
            "Training images": f"{config.train} ({sizes['train']})",
            "Test images": f"{config.test} ({sizes['test']})",
            "Classes": str(sizes["classes"]),
            "Image size": f"{image_size[0]} x {image_size[1]}",
            "Seed": str(config.seed),
        },
    )

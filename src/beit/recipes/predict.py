"""Predicting: the likeliest classes of every image of a set, as a table.

A row an image, in the source's order: `index` in the source, `path`, `label` where there are any,
`class_index` (k,), the likeliest classes, best first (the smaller number first among equals);
`class_name` (k,) where the model knows its classes' names; `probability` (k,) float32, by softmax
over all classes. An image that cannot be read has no row: it is named, counted and listed in the
metadata.

A killed run goes on where it was when its command is repeated; under torchrun each process takes
its share of the parts. Either way the file is the same (see `beit.store.tables`).
"""

import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import beit
from beit.data.batches import EvalBatches, Unreadable
from beit.data.prefetch import prefetch
from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.nn.heads import ImageClassifier
from beit.nn.vit import resized
from beit.store.load import load
from beit.store.table_files import Column
from beit.store.tables import Table, check_output, fingerprint, smallest_unsigned
from beit.store.weights import size_pair
from beit.train.fabric import DeviceConfig, compiled, launch
from beit.train.progress import Progress


@dataclass(frozen=True)
class Config:
    """What is classified, by what, and into which file.

    Attributes:
        model: an image classifier: a run directory, a weights file, published:NAME or
            hf://OWNER/NAME
        data: images: a folder, *.parquet or shapes://COUNT, or a part: folder[:90%]
        output: a new .parquet or .npz file; what is done so far is kept in OUTPUT.parts beside it
        top_k: classes an image, the likeliest; a model with fewer gives all it has
        limit: take so many images, a fixed random subset; null for all
        image_size: side that the model is to see, or [height, width]; null for the model's own
        num_heads: attention heads, where neither the file nor the usual 64 channels a head say it
        crop_ratio: side of the centre crop over the shorter side; 1 for images without a margin
        batch_size: images at a time in each process
        part_size: images after which what is done is kept; each process works on one such part
        num_workers: processes that decode images, for each process
        max_unreadable: largest share of unreadable images that does not stop the work
        device: where and in which precision the classifier runs
    """

    model: str
    data: str
    output: str
    top_k: int = 5
    limit: int | None = None
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    crop_ratio: float = 0.875
    batch_size: int = 128
    part_size: int = 1024
    num_workers: int = 2
    max_unreadable: float = 0.01
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")


class Result(NamedTuple):
    """The file, and how many rows it has; None in all processes but the first."""

    file: Path
    rows: int | None


def run(config: Config) -> Result:
    """Write the likeliest classes of all images into one file, or go on with it."""
    check_output(config.output)
    fabric = launch(config.device)
    first = fabric.is_global_zero
    heads = {} if config.num_heads is None else {"num_heads": config.num_heads}
    classifier = load(config.model, **heads)
    if not isinstance(classifier, ImageClassifier):
        raise ValueError(
            f"{config.model} holds a {type(classifier).__name__}, which names no classes of "
            "images; expected an ImageClassifier"
        )
    num_classes, class_names = classifier.config.num_classes, classifier.config.class_names
    if config.image_size is not None:
        classifier.backbone = resized(classifier.backbone, size_pair(config.image_size))
    vit = classifier.backbone.config
    source = open_source(config.data, limit=config.limit)
    about = {
        "beit": beit.__version__,
        "verb": "predict",
        "model": config.model,
        "kind": type(classifier).__name__,
        "weights": fingerprint(classifier),
        "num_classes": num_classes,
        "class_names": class_names,
        "grid": vit.grid,
        "image_size": vit.image_size,
        "num_heads": vit.num_heads,
        "crop_ratio": config.crop_ratio,
        "data": config.data,
        "limit": config.limit,
        "device": fabric.device.type,
        "precision": config.device.precision,
        "compile": config.device.compile,
    }
    k = min(config.top_k, num_classes)
    columns = [Column("class_index", smallest_unsigned(num_classes), (k,))]
    if class_names is not None:
        columns.append(Column("class_name", "str", (k,), class_names, numbers="class_index"))
    columns.append(Column("probability", "float32", (k,)))
    table = Table(
        *(config.output, source, columns, about),
        batch_size=config.batch_size,
        part_size=config.part_size,
    )
    missing = fabric.broadcast(table.begin() if first else [])
    mine = missing[fabric.global_rank :: fabric.world_size]
    numbers = [number for part in mine for number in table.batches(part)]
    view = EvalView(vit.image_size, config.crop_ratio)
    batches = EvalBatches(
        source, view, config.batch_size, num_workers=config.num_workers, batches=numbers
    )
    unreadable = Unreadable(len(source), config.max_unreadable)
    model = compiled(classifier.to(fabric.device), config.device)

    loader = prefetch(batches, fabric.device)
    step, started = 0, time.perf_counter()
    shown = Progress(len(batches), enabled=first)
    with shown as progress, torch.no_grad():
        progress.message(table.state(missing))
        unreadable.note(table.unreadable())
        for number in mine:
            with table.part(number) as part:
                for batch in islice(loader, len(table.batches(number))):
                    for lost in unreadable.note(batch.unreadable):
                        progress.warn(f"left out, cannot be read: {lost}")
                    with fabric.autocast():
                        logits = model(batch.student)  # (B, Y)
                    part.add(batch.indices, likeliest(logits, k), batch.unreadable)
                    step += 1
                    images = len(batch.indices) * fabric.world_size
                    progress.update(step, {}, images, loader.wait_seconds)
        fabric.barrier()
        if not first:
            return Result(table.output, None)
        seconds = time.perf_counter() - started
        unreadable.note(table.unreadable())  # those of the other processes too
        with progress.aside(f"writing {table.output.name}"):
            rows = table.merge()
    print(table.summary(rows, missing, seconds))
    return Result(table.output, rows)


def likeliest(logits: Tensor, k: int) -> dict[str, Tensor]:
    """Choose of logits (B, Y) the k best classes: class_index (B, k) int64, probability (B, k)."""
    probability, classes = logits.float().softmax(dim=1).sort(dim=1, descending=True, stable=True)
    return {"class_index": classes[:, :k], "probability": probability[:, :k]}

"""Embedding: the features of every image of a set, as a table.

A row an image, in the source's order: `index` in the source, `path`, `label` where there are any,
and of the `features` asked for: `cls` (D,), the [CLS] token; `mean` (D,), the mean of the patch
tokens, taken in float32; `patches` (N, D), all of them, row after row of the (Gh, Gw) grid that the
file's metadata names. They are what comes after the final norm, where the model has one, or the raw
output of block `layer`. An image that cannot be read has no row: it is named, counted and listed in
the metadata.

A killed run goes on where it was when its command is repeated; under torchrun each process takes
its share of the parts. Either way the file is the same (see `beit.rows.table`).
"""

import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

import beit
from beit.data.batches import EvalBatches
from beit.data.prefetch import prefetch
from beit.data.sources import open_source
from beit.data.unreadable import Unreadable
from beit.data.views import EvalView
from beit.nn.vit import Features
from beit.rows.files import Column
from beit.rows.table import Table, check_output, fingerprint
from beit.run.device import DeviceConfig, launch, prepared
from beit.run.progress import Progress
from beit.weights.open import load_backbone


@dataclass(frozen=True)
class Config:
    """What is embedded, by what, and into which file.

    Attributes:
        model: what has a backbone: a run directory, a weights file, published:NAME or
            hf://OWNER/NAME
        data: images: a folder, *.parquet or shapes://COUNT, or a part: folder[:90%]
        output: a new .parquet, .npz or .jsonl file; what is done so far is kept in OUTPUT.parts
            beside it
        features: any of cls, mean, patches
        layer: number of the block, from 1, whose raw output is taken; null for the final features
        dtype: of the features in the file
        limit: take so many images, a fixed random subset; null for all
        image_size: side that the model is to see, or [height, width]; null for the model's own
        num_heads: attention heads, where neither the file nor the usual 64 channels a head say it
        crop_ratio: side of the centre crop over the shorter side; 1 for images without a margin
        batch_size: images at a time in each process
        part_size: images after which what is done is kept; each process works on one such part
        num_workers: processes that decode images, for each process
        max_unreadable: largest share of unreadable images that does not stop the work
        device: where and in which precision the backbone runs
    """

    model: str
    data: str
    output: str
    features: tuple[Literal["cls", "mean", "patches"], ...] = ("cls", "mean")
    layer: int | None = None
    dtype: Literal["float16", "float32"] = "float32"
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
        if not self.features or len(set(self.features)) < len(self.features):
            raise ValueError(
                f"features must name one or more of cls, mean, patches, got {self.features}"
            )


class Result(NamedTuple):
    """The file, and how many rows it has; None in all processes but the first."""

    file: Path
    rows: int | None


def run(config: Config) -> Result:
    """Write the features of all images into one file, or go on with it."""
    check_output(config.output)
    fabric = launch(config.device)
    first = fabric.is_global_zero
    backbone = load_backbone(config.model, config.image_size, num_heads=config.num_heads)
    vit = backbone.config
    if config.layer is not None and not 1 <= config.layer <= vit.depth:
        raise ValueError(
            f"layer is {config.layer}; the blocks of {config.model} are 1 to {vit.depth}"
        )
    source = open_source(config.data, limit=config.limit)
    about = {
        "beit": beit.__version__,
        "verb": "embed",
        "model": config.model,
        "kind": type(backbone).__name__,
        "weights": fingerprint(backbone),
        "layer": config.layer,
        "normed": config.layer is None and vit.final_norm,
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
    shapes = {"cls": (vit.width,), "mean": (vit.width,), "patches": (vit.num_patches, vit.width)}
    columns = [Column(name, config.dtype, shapes[name]) for name in config.features]
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
    model = prepared(backbone.to(fabric.device), config.device)
    layers = () if config.layer is None else (config.layer,)

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
                    values = {}
                    if len(batch.indices):
                        with fabric.autocast():
                            features: Features = model(batch.images, layers=layers)
                        values = chosen(features, config.layer)
                    part.add(batch.indices, values, batch.unreadable)
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


def chosen(features: Features, layer: int | None) -> dict[str, Tensor]:
    """Name what may be kept of features: cls and mean (B, D), patches (B, N, D)."""
    cls, patches = features.cls, features.patches
    if layer is not None:
        tokens = features.layers[layer]  # (B, 1+N, D)
        cls, patches = tokens[:, 0], tokens[:, 1:]
    return {"cls": cls, "mean": patches.float().mean(dim=1), "patches": patches}

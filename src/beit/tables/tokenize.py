"""Tokenizing: the codes of every image of a set, as a table.

A row an image, in the source's order: `index` in the source, `path`, `label` where there are any,
`codes` (N,), row after row of the (Gh, Gw) grid that the file's metadata names. An image that
cannot be read has no row: it is named, counted and listed in the metadata.

A killed run goes on where it was when its command is repeated; under torchrun each process takes
its share of the parts. Either way the file is the same (see `beit.rows.table`).
"""

import time
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import nn

import beit
from beit.data.batches import EvalBatches
from beit.data.prefetch import prefetch
from beit.data.sources import open_source
from beit.data.unreadable import Unreadable
from beit.data.views import EvalView
from beit.rows.files import Column
from beit.rows.table import Table, check_output, fingerprint, smallest_unsigned
from beit.run.device import DeviceConfig, launch
from beit.run.progress import Progress
from beit.weights.open import load_tokenizer


@dataclass(frozen=True)
class Config:
    """What is tokenized, by what, and into which file.

    Attributes:
        model: a tokenizer: a run directory, a weights file, published:NAME or hf://OWNER/NAME
        data: images: a folder, *.parquet or shapes://COUNT, or a part: folder[:90%]
        output: a new .parquet, .npz or .jsonl file; what is done so far is kept in OUTPUT.parts
            beside it
        limit: take so many images, a fixed random subset; null for all
        image_size: side or [height, width], for a tokenizer whose file does not say it or that
            takes others than its own; null for its own
        num_heads: attention heads, where neither the file nor the usual 64 channels a head say it
        crop_ratio: side of the centre crop over the shorter side; 1 for images without a margin
        batch_size: images at a time in each process
        part_size: images after which what is done is kept; each process works on one such part
        num_workers: processes that decode images, for each process
        max_unreadable: largest share of unreadable images that does not stop the work
        device: where and in which precision the tokenizer runs
    """

    model: str
    data: str
    output: str
    limit: int | None = None
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    crop_ratio: float = 0.875
    batch_size: int = 128
    part_size: int = 1024
    num_workers: int = 2
    max_unreadable: float = 0.01
    device: DeviceConfig = field(default_factory=DeviceConfig)


class Result(NamedTuple):
    """The file, and how many rows it has; None in all processes but the first."""

    file: Path
    rows: int | None


def run(config: Config) -> Result:
    """Write the codes of all images into one file, or go on with it."""
    check_output(config.output)
    fabric = launch(config.device)
    first = fabric.is_global_zero
    given = {"image_size": config.image_size, "num_heads": config.num_heads}
    overrides = {name: value for name, value in given.items() if value is not None}
    tokenizer = load_tokenizer(config.model, **overrides)
    source = open_source(config.data, limit=config.limit)
    about = {
        "beit": beit.__version__,
        "verb": "tokenize",
        "model": config.model,
        "kind": type(tokenizer).__name__,
        "weights": fingerprint(cast(nn.Module, tokenizer)),  # every tokenizer is one
        "grid": tokenizer.grid,
        "vocab_size": tokenizer.vocab_size,
        "image_size": tokenizer.image_size,
        "num_heads": config.num_heads,
        "crop_ratio": config.crop_ratio,
        "data": config.data,
        "limit": config.limit,
        "device": fabric.device.type,
        "precision": config.device.precision,
        "compile": config.device.compile,
    }
    codes = Column("codes", smallest_unsigned(tokenizer.vocab_size), (prod(tokenizer.grid),))
    table = Table(
        *(config.output, source, [codes], about),
        batch_size=config.batch_size,
        part_size=config.part_size,
    )
    missing = fabric.broadcast(table.begin() if first else [])
    mine = missing[fabric.global_rank :: fabric.world_size]
    numbers = [number for part in mine for number in table.batches(part)]
    view = EvalView(tokenizer.image_size, config.crop_ratio)
    batches = EvalBatches(
        source, view, config.batch_size, num_workers=config.num_workers, batches=numbers
    )
    unreadable = Unreadable(len(source), config.max_unreadable)
    tokenizer = tokenizer.to(fabric.device)
    encode = torch.compile(tokenizer.encode) if config.device.compile else tokenizer.encode

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
                            values = {"codes": encode(batch.images)}  # (B, N)
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

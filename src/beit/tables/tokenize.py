"""Tokenize: write the codes of every image of a set to a table.

One row per image, in the source's order: `index` in the source, `path`, `label` if the source has
labels, and `codes` (N,), row by row of the (Gh, Gw) grid in the file's metadata. Unreadable images
have no row: they are reported, counted and listed in the metadata.

The command resumes after an interruption and runs under torchrun, see `beit.rows.table`.
"""

from dataclasses import dataclass, field
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from beit.command.ending import Ending, beside, words
from beit.data.sources import open_images
from beit.data.views import EvalView
from beit.rows.compute import TableResult, about_table, compute_table
from beit.rows.files import Column
from beit.rows.table import RowTable, check_output, smallest_unsigned
from beit.run.device import DeviceConfig
from beit.run.launch import launch
from beit.weights.bands import check_bands
from beit.weights.crop import crop_ratio
from beit.weights.open import load_tokenizer
from beit.wording import amount


@dataclass(frozen=True)
class Config:
    """Compute the codes of images.

    Attributes:
        model: a tokenizer: a run directory, a weights file, published:NAME or hf://OWNER/NAME
        data: images: a folder, a table or another source (docs/data.md), or a part: folder[:90%];
            image files as [a.jpg,b.png]; @FILE that lists them, one per line
        output: a new .parquet, .npz, .jsonl or .csv file; finished parts are kept in OUTPUT.parts
        limit: use this many images, a fixed random subset; null for all
        image_size: side or [height, width] of the images, for tokenizers of any size and files
            that do not say theirs; null for the tokenizer's own
        num_heads: attention heads, if not recorded in the file and not the usual width / 64
        crop_ratio: side of the centre crop over the shorter side; null for that of the model's
            training, else 0.875
        batch_size: images per batch in each process
        part_size: images per part, the unit of resuming and of each process's share
        num_workers: processes that decode images, for each process
        max_unreadable: largest share of unreadable images that does not stop the work
        device: device and precision of the tokenizer
    """

    model: str
    data: str | list[str]
    output: str
    limit: int | None = None
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    crop_ratio: float | None = None
    batch_size: int = 128
    part_size: int = 1024
    num_workers: int = 2
    max_unreadable: float = 0.01
    device: DeviceConfig = field(default_factory=DeviceConfig)


def run(config: Config) -> TableResult:
    """Write the codes of all images to one file, or resume."""
    check_output(config.output)
    fabric = launch(config.device)
    settings = {"image_size": config.image_size, "num_heads": config.num_heads}
    settings = {name: value for name, value in settings.items() if value is not None}
    tokenizer = load_tokenizer(config.model, **settings)
    view = EvalView(tokenizer.image_size, crop_ratio(config.model, config.crop_ratio))
    check_bands(config.model, config.data)
    module = cast(nn.Module, tokenizer)  # every tokenizer is one
    source = open_images(config.data, config.limit)
    details = {"grid": tokenizer.grid, "vocab_size": tokenizer.vocab_size}
    details |= {"image_size": tokenizer.image_size, "num_heads": config.num_heads}
    about = about_table("tokenize", config, view, module, fabric, details)
    codes = Column("codes", smallest_unsigned(tokenizer.vocab_size), (prod(tokenizer.grid),))
    table = RowTable(config.output, source, [codes], about, config.batch_size, config.part_size)
    tokenizer = tokenizer.to(fabric.device)
    encode = torch.compile(tokenizer.encode) if config.device.compile else tokenizer.encode

    def compute(images: Tensor) -> dict[str, Tensor]:
        return {"codes": encode(images)}  # (B, N)

    return compute_table(fabric, table, view, compute, config.num_workers, config.max_unreadable)


def ending(config: Config, result: TableResult) -> Ending:
    """Say how many images have codes; what the codes stand for is next."""
    output = beside(config.output, "codes")
    then = words("visualise codes", config.model, config.data, output=output)
    return Ending(f"{config.output}, a table of codes", amount(result.rows or 0, "image"), then)

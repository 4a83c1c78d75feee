"""Embed: write the features of every image of a set to a table.

One row per image, in the source's order: `index` in the source, `path`, `label` if the source has
labels, and the chosen `features`: `cls` (D,), the [CLS] token; `mean` (D,), the mean of the patch
tokens in float32; `patches` (N, D), all patch tokens, row by row of the (Gh, Gw) grid in the file's
metadata. They come after the final norm, if the model has one, or with `layer` are the raw output
of that block. Unreadable images have no row: they are reported, counted and listed in the metadata.

The command resumes after an interruption and runs under torchrun, see `beit.rows.table`.
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from beit.command.ending import Ending, beside, words
from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.nn.vit import Features
from beit.rows.compute import TableResult, about_table, compute_table
from beit.rows.files import Column
from beit.rows.table import RowTable, check_output
from beit.run.device import DeviceConfig, prepared
from beit.run.launch import launch
from beit.weights.open import load_backbone


@dataclass(frozen=True)
class Config:
    """Compute features of images.

    Attributes:
        model: a model with a backbone: a run directory, a weights file, published:NAME or
            hf://OWNER/NAME
        data: images: a folder, *.parquet or shapes://COUNT, or a part: folder[:90%]
        output: a new .parquet, .npz or .jsonl file; finished parts are kept in OUTPUT.parts
        features: any of cls, mean, patches
        layer: number of a block, from 1, to take its raw output; null for the final features
        dtype: of the features in the file
        limit: use this many images, a fixed random subset; null for all
        image_size: input size of the model, a side or [height, width]; null for the model's own
        num_heads: attention heads, if not recorded in the file and not the usual width / 64
        crop_ratio: side of the centre crop over the shorter side; 1 for images without a margin
        batch_size: images per batch in each process
        part_size: images per part, the unit of resuming and of each process's share
        num_workers: processes that decode images, for each process
        max_unreadable: largest share of unreadable images that does not stop the work
        device: device and precision of the backbone
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
            expected = "one or more of cls, mean, patches"
            raise ValueError(f"features must name {expected}, got {self.features}")


def run(config: Config) -> TableResult:
    """Write the features of all images to one file, or resume."""
    check_output(config.output)
    fabric = launch(config.device)
    backbone = load_backbone(config.model, config.image_size, num_heads=config.num_heads)
    vit = backbone.config
    if config.layer is not None and not 1 <= config.layer <= vit.depth:
        blocks = f"the blocks of {config.model} are 1 to {vit.depth}"
        raise ValueError(f"layer is {config.layer}; {blocks}")
    source = open_source(config.data, limit=config.limit)
    normed = config.layer is None and vit.final_norm
    details = {"layer": config.layer, "normed": normed, "grid": vit.grid}
    details |= {"image_size": vit.image_size, "num_heads": vit.num_heads}
    shapes = {"cls": (vit.width,), "mean": (vit.width,), "patches": (vit.num_patches, vit.width)}
    columns = [Column(name, config.dtype, shapes[name]) for name in config.features]
    about = about_table("embed", config, backbone, fabric, details)
    table = RowTable(config.output, source, columns, about, config.batch_size, config.part_size)
    model = prepared(backbone.to(fabric.device), config.device)
    layers = () if config.layer is None else (config.layer,)

    def compute(images: Tensor) -> dict[str, Tensor]:
        return columns_of(model(images, layers=layers), config.layer)

    view = EvalView(vit.image_size, config.crop_ratio)
    return compute_table(fabric, table, view, compute, config.num_workers, config.max_unreadable)


def columns_of(features: Features, layer: int | None) -> dict[str, Tensor]:
    """Return the columns of features: cls and mean (B, D), patches (B, N, D)."""
    if layer is None:
        cls, patches = features.cls, features.patches
    else:  # (B, 1+N, D)
        cls, patches = features.layers[layer][:, 0], features.layers[layer][:, 1:]
    return {"cls": cls, "mean": patches.float().mean(dim=1), "patches": patches}


def ending(config: Config, result: TableResult) -> Ending:
    """Say how many images have features; attention maps of some are next."""
    output = beside(config.output, "attention")
    then = words("visualise attention", config.model, config.data, output=output)
    made = f"{config.output}, a table of the features {', '.join(config.features)}"
    return Ending(made, f"{result.rows:,} images", then)

"""Embed: write the features of every image of a set to a table.

One row per image, in the source's order: `index` in the source, `path`, `label` if the source has
labels, and the chosen `features`: `cls` (D,), the [CLS] token of a backbone; `mean` (D,), the mean
of the patch tokens in float32; `patches` (N, D), all patch tokens, row by row of the (Gh, Gw) grid
in the file's metadata. They come after the final norm, if the model has one, or with `layer` are
the raw output of that block. Unreadable images have no row: they are reported, counted and listed
in the metadata.

The command resumes after an interruption and runs under torchrun, see `beit.rows.table`.
"""

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

from beit.command.ending import Ending, beside, words
from beit.data.sources import open_images
from beit.data.views import EvalView
from beit.nn.pooling import Kind
from beit.rows.compute import TableResult, about_table, compute_table
from beit.rows.files import SUFFIXES, Column
from beit.rows.table import RowTable, check_output
from beit.run.device import DeviceConfig
from beit.run.launch import launch
from beit.weights.bands import check_bands
from beit.weights.crop import crop_ratio
from beit.weights.frozen import FrozenModel, open_frozen_model
from beit.wording import amount


@dataclass(frozen=True)
class Config:
    """Compute features of images.

    Attributes:
        model: a model with a backbone: a run directory, a weights file, published:NAME or
            hf://OWNER/NAME; or teacher:SOURCE, any network that `load_teacher` opens
        data: images: a folder, a table or another source (docs/data.md), or a part: folder[:90%];
            image files as [a.jpg,b.png]; @FILE that lists them, one per line
        output: a new .parquet, .npz, .jsonl or .csv file; finished parts are kept in OUTPUT.parts
        features: any of cls, mean, patches; null for cls and mean (teacher: mean)
        layer: number of a block, from 1, to take its raw output; null for the final features
        dtype: of the features in the file
        limit: use this many images, a fixed random subset; null for all
        image_size: input size of the model, a side or [height, width]; null for the model's own
        num_heads: attention heads, if not recorded in the file and not the usual width / 64
        crop_ratio: side of the centre crop over the shorter side; null for that of the model's
            training, else 0.875
        batch_size: images per batch in each process
        part_size: images per part, the unit of resuming and of each process's share
        num_workers: processes that decode images, for each process
        max_unreadable: largest share of unreadable images that does not stop the work
        device: device and precision of the backbone
    """

    model: str
    data: str | list[str]
    output: str
    features: tuple[Literal["cls", "mean", "patches"], ...] | None = None
    layer: int | None = None
    dtype: Literal["float16", "float32"] = "float32"
    limit: int | None = None
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    crop_ratio: float | None = None
    batch_size: int = 128
    part_size: int = 1024
    num_workers: int = 2
    max_unreadable: float = 0.01
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        if self.features is not None and not 0 < len(self.features) == len(set(self.features)):
            expected = "one or more of cls, mean, patches"
            raise ValueError(f"features must name {expected}, got {self.features}")


def run(config: Config) -> TableResult:
    """Write the features of all images to one file, or resume."""
    check_output(config.output)
    fabric = launch(config.device)
    model = open_frozen_model(
        config.model, config.image_size, config.num_heads, device=fabric.device
    )
    view = EvalView(model.image_size, crop_ratio(config.model, config.crop_ratio))
    check_bands(config.model, config.data)
    kinds = kinds_to_embed(config, model)
    source = open_images(config.data, config.limit)
    vit = getattr(model.network, "config", None)  # None for a teacher
    normed = config.layer is None and (vit is None or vit.final_norm)
    details = {"layer": config.layer, "normed": normed, "grid": model.grid}
    details |= {"image_size": model.image_size}
    details |= model.settings(config.model)
    shapes = {"patches": (prod(model.grid), model.width)}
    columns = [Column(name, config.dtype, shapes.get(name, (model.width,))) for name in kinds]
    about = about_table("embed", config, view, model.network, fabric, details)
    table = RowTable(config.output, source, columns, about, config.batch_size, config.part_size)
    compute = model.columns(kinds, config.device.compile)
    return compute_table(fabric, table, view, compute, config.num_workers, config.max_unreadable)


def kinds_to_embed(config: Config, model: FrozenModel) -> dict[str, Kind]:
    """Return the features to write by column; ValueError for those that the model does not have."""
    model.check_layer(config.layer, config.model)
    names = config.features or (("cls", "mean") if model.has_cls else ("mean",))
    if "cls" in names and not model.has_cls:
        raise ValueError(f"features name cls, but {config.model} has no [CLS] token; expected mean")
    return {n: Kind(config.layer, "attentive" if n == "patches" else n) for n in names}


def ending(config: Config, result: TableResult) -> Ending:
    """Say how many images have features; a page of them is next."""
    output = beside(config.output, "map.html")
    images = config.output if Path(config.output).suffix in SUFFIXES else config.data
    then = words("visualise embedding", config.model, images, output=output)
    return Ending(f"{config.output}, a table of features", amount(result.rows or 0, "image"), then)

"""Visualising attention: where [CLS] and chosen patches look, head by head.

Each image, query and layer gives a figure with every head's attention to the patches, the patches
that hold most of it, and a smooth overlay; `rollout` adds a figure for each image. They are written
as PNG and SVG, and as a page with all of them. Attention to [CLS] itself is left out, as in the
published tool.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from beit.command.ending import Ending, opened
from beit.draw import canvas
from beit.draw.report import Section, link_to, write_report
from beit.nn.attention_maps import attention_maps, rollout
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.pictures.attention_panels import (
    Query,
    attention_figure,
    flat_map,
    mass_mask,
    patch_query,
    rollout_figure,
    with_query,
)
from beit.pictures.images import check_output, chosen_images, left_out_tables, saved_picture
from beit.run.device import DeviceConfig
from beit.run.launch import launch
from beit.weights.open import load_backbone
from beit.wording import amount


@dataclass(frozen=True)
class Config:
    """Whose attention to draw, on which images.

    Attributes:
        model: a model with a backbone: a run directory, a weights file, published:NAME or
            hf://OWNER/NAME
        data: images: a folder, a table or another source (docs/data.md), or a part: folder[:90%];
            image files as [a.jpg,b.png]; @FILE that lists them, one per line
        output: a new folder for the figures and report.html
        limit: number of images to draw, a fixed random subset
        points: reference points as [[row,column],...], in pixels of the image as the model sees it,
            from 0 at the top left
        grid: [rows, columns] of further, evenly spaced reference points; null for none
        cls: draw the attention of [CLS]
        layers: numbers of blocks, from 1; empty for the last one
        heads: numbers of heads, from 1; empty for all and their mean
        rollout: also draw attention rollout through all blocks
        mass: share of the attention that the patches in the second kind of panel hold
        panels: also write each panel as a file, named as by the published tool
        image_size: side or [height, width] of the model's input; positions are resized to it; null
            for the model's own
        num_heads: attention heads, if the file does not contain them and a head is not 64 wide
        crop_ratio: side of the centre crop over the shorter side; null for that of the model's
            training, else 1, the whole image (beit embed: 0.875)
        device: device and precision of the backbone
    """

    model: str
    data: str | list[str]
    output: str
    limit: int = 4
    points: tuple[tuple[int, int], ...] = ()
    grid: tuple[int, int] | None = None
    cls: bool = True
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    rollout: bool = False
    mass: float = 0.6
    panels: bool = False
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    crop_ratio: float | None = None
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass is {self.mass}; expected a share in (0, 1], 1 for all patches")
        if self.grid is not None and min(self.grid) < 1:
            raise ValueError(f"grid is {list(self.grid)}; expected 1 point or more along each side")
        if not self.points and self.grid is None and not self.cls:
            raise ValueError("nothing to draw: give points or grid, or keep cls true")


class Result(NamedTuple):
    """The page, and the number of figures; None in all processes but the first."""

    report: Path
    figures: int | None


def run(config: Config) -> Result:
    """Draw the attention of the chosen images, and write the page."""
    output = Path(config.output)
    check_output(output, "attention")
    fabric = launch(config.device)
    report = output / "report.html"
    if not fabric.is_global_zero:
        return Result(report, None)
    backbone = load_backbone(config.model, config.image_size, num_heads=config.num_heads)
    vit = backbone.config
    queries = queries_of(config, vit)
    layers = _existing(config.layers or (vit.depth,), vit.depth, "layers", "block")
    heads = _existing(config.heads or range(1, vit.num_heads + 1), vit.num_heads, "heads", "head")
    patch_size = (vit.patch_size, vit.patch_size)
    names, images, _, left_out = chosen_images(config, vit.image_size, patch_size)
    backbone = backbone.to(fabric.device)

    output.mkdir(parents=True, exist_ok=True)
    sections, num_figures = [], 0
    for number, (name, image) in enumerate(zip(names, images, strict=True), 1):
        inputs = image.to(fabric.device)
        with fabric.autocast():
            maps, rolled = query_attention(backbone, inputs, queries, layers, config.rollout)
        pictures = []
        for layer in layers:
            for query, attention in zip(queries, maps[layer].unbind(1), strict=True):
                shown = _by_head(attention, heads)
                title = f"Attention of {query.title}, layer {layer} of {vit.depth}"
                drawing = attention_figure(image, query, shown, vit.grid, title, config.mass)
                file = f"image{number:02d}-layer{layer:02d}-{query.file}"
                pictures.append(saved_picture(drawing, output, file, f"{title}, of image {number}"))
                if config.panels:
                    _write_panels(output / file, image, query, shown, vit.grid, config.mass)
        if rolled is not None:
            title = f"Attention rollout through {vit.depth} layers"
            rows = zip(queries, rolled, strict=True)
            drawing = rollout_figure(image, rows, vit.grid, title, config.mass)
            file = f"image{number:02d}-rollout"
            pictures.append(saved_picture(drawing, output, file, f"{title}, of image {number}"))
        num_figures += len(pictures)
        sections.append(Section(f"Image {number}: {name}", items=pictures))
        print(f"image {number} of {len(images)}: {amount(len(pictures), 'figure')}")
    if left_out:
        sections.append(Section("Left out", items=left_out_tables(left_out)))
    facts = {
        "model": link_to(config.model, report),
        "image size": f"{vit.image_size[0]} x {vit.image_size[1]} pixels",
        "patches": f"{vit.grid[0]} x {vit.grid[1]}",
        "layers, heads": f"{vit.depth}, {vit.num_heads} each",
        "relative bias": vit.relative_bias,
    }
    summary = (
        "Each panel shows how the attention of a query is distributed over the patches; attention "
        "to [CLS] is left out. The first line of a figure has one square per patch; the second "
        f"shows the patches that together hold the top {config.mass:.0%}; the third is the first, "
        "smoothed over the image."
    )
    write_report(report, "Attention maps", sections, facts, summary=summary)
    return Result(report, num_figures)


def ending(config: Config, result: Result) -> Ending:
    """Say how many figures are drawn; the page is next."""
    figure = amount(result.figures or 0, "figure")
    return Ending(f"{result.report}, where the model looks", figure, opened(result.report))


def queries_of(config: Config, vit: ViTConfig) -> list[Query]:
    """Return [CLS], the points, and those of the grid; ValueError for one outside the image."""
    (H, W), P = vit.image_size, vit.patch_size
    points = list(config.points)
    if config.grid is not None:
        rows, columns = config.grid
        ys = [(2 * i + 1) * H // (2 * rows) for i in range(rows)]
        xs = [(2 * j + 1) * W // (2 * columns) for j in range(columns)]
        points += product(ys, xs)
    queries = [Query(None, "[CLS]", "cls")] if config.cls else []
    for y, x in dict.fromkeys(points):
        if not (0 <= y < H and 0 <= x < W):
            raise ValueError(
                f"point [{y}, {x}] is outside the image, which the model sees at {H} x {W} "
                f"pixels; expected a row in 0..{H - 1} and a column in 0..{W - 1}"
            )
        patch = y // P * vit.grid[1] + x // P
        if patch not in [query.patch for query in queries]:
            queries.append(patch_query(patch, vit.grid[1]))
    return queries


def _existing(chosen: Sequence[int], most: int, option: str, what: str) -> list[int]:
    """Return sorted, distinct numbers of blocks or heads, after checking that they exist."""
    if invalid := [number for number in chosen if not 1 <= number <= most]:
        raise ValueError(
            f"{option} has {invalid[0]}, but there is no such {what}: the model has 1 to {most}"
        )
    return sorted(set(chosen))


def query_attention(
    vit: VisionTransformer,
    image: Tensor,
    queries: list[Query],
    layers: list[int],
    with_rollout: bool,
) -> tuple[dict[int, Tensor], Tensor | None]:
    """Return the attention of the queries to the patches of one image (3, H, W), on the CPU.

    Returns: by layer (h, Q, N); and the rollout through all blocks (Q, N) if wanted
    """
    tokens = [0 if query.patch is None else 1 + query.patch for query in queries]
    chosen = attention_maps(vit, image[None], layers)
    maps = {layer: weights[0][:, tokens, 1:].cpu() for layer, weights in chosen}
    if not with_rollout:
        return maps, None
    rolled = rollout(weights for _, weights in attention_maps(vit, image[None]))
    return maps, rolled[0][tokens, 1:].cpu()


def _by_head(attention: Tensor, heads: list[int]) -> dict[str, Tensor]:
    """Return the attention (h, N) of the chosen heads by title; all heads follow their mean."""
    every = len(heads) == len(attention) > 1
    mean = {"mean of heads": attention.mean(dim=0)} if every else {}
    return mean | {f"head {head}": attention[head - 1] for head in heads}


def _write_panels(
    folder: Path,
    image: Tensor,
    query: Query,
    heads: dict[str, Tensor],
    grid: tuple[int, int],
    mass: float,
) -> None:
    """Write the panels of a figure under the published tool's names, heads counted from 0."""
    folder.mkdir()
    pixels = canvas.panel(image)
    files = {"img": pixels, "select": with_query(image, query.patch, grid)}
    for title, weights in heads.items():
        word, _, number = title.partition(" ")
        name = f"head{int(number) - 1}" if word == "head" else "mean"
        files[f"attn-{name}"] = flat_map(weights, grid, pixels)
        files[f"mask_th{mass:g}_{name}"] = mass_mask(image, weights, grid, mass)
    for name, panel in files.items():
        (folder / f"{name}.png").write_bytes(canvas.png(panel))

"""Seeing where a backbone looks: self-attention of [CLS] and of chosen patches, head by head.

For each image, query and layer a figure: every head's attention to the patches, the patches that
hold most of it, and a smooth overlay; with `rollout` one more for each image. PNG, SVG, and a page
with all of them. Attention to [CLS] itself is left out, as in the published tool.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.draw import canvas
from beit.draw.panels import Drawing
from beit.draw.report import Picture, Section, Table, write_report
from beit.nn.attention_maps import attention_maps, rollout
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.pictures.attention_panels import (
    Query,
    Row,
    attention_figure,
    flat_map,
    mass_mask,
    rollout_figure,
    with_query,
)
from beit.pictures.images import seen_images
from beit.run.device import DeviceConfig, launch
from beit.weights.open import load_backbone


@dataclass(frozen=True)
class Config:
    """Whose attention is drawn, on which images, from where.

    Attributes:
        model: what has a backbone: a run directory, a weights file, published:NAME or
            hf://OWNER/NAME
        data: images: a folder, *.parquet or shapes://COUNT, or a part: folder[:90%]; image files
            as [a.jpg,b.png]; @FILE that lists them, one a line
        output: a new folder for the figures and report.html
        limit: draw so many images, a fixed random subset
        points: reference points as [[row,column],...], in pixels of the image as the model sees it,
            from 0 at the top left
        grid: [rows, columns] of further reference points, evenly spread; null for none
        cls: draw the attention of [CLS]
        layers: numbers of blocks, from 1; empty for the last one
        heads: numbers of heads, from 1; empty for all and their mean
        rollout: follow attention through all blocks
        mass: share of the attention that the patches of the second kind of panel hold
        panels: write each panel as a file of its own too, named as the published tool does
        image_size: side that the model is to see, or [height, width]; positions are resized to it;
            null for the model's own
        num_heads: attention heads, where neither the file nor the usual 64 channels a head say it
        crop_ratio: side of the centre crop over the shorter side
        device: where and in which precision the backbone runs
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
    crop_ratio: float = 1.0
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass is {self.mass}; expected a share above 0, to 1 for all patches")
        if self.grid is not None and min(self.grid) < 1:
            raise ValueError(f"grid is {list(self.grid)}; expected 1 point or more along each side")
        if not self.points and self.grid is None and not self.cls:
            raise ValueError("nothing to draw: give points or grid, or leave cls true")


class Result(NamedTuple):
    """The page, and how many figures were drawn; None in all processes but the first."""

    report: Path
    figures: int | None


def run(config: Config) -> Result:
    """Draw the attention of all images chosen, and write the page."""
    output = Path(config.output)
    _check_new(output)
    fabric = launch(config.device)
    report = output / "report.html"
    if not fabric.is_global_zero:
        return Result(report, None)
    backbone = load_backbone(config.model, config.image_size, num_heads=config.num_heads)
    vit = backbone.config
    queries = queries_of(config, vit)
    layers = chosen(config.layers or (vit.depth,), vit.depth, "layers", "block")
    heads = chosen(config.heads or range(1, vit.num_heads + 1), vit.num_heads, "heads", "head")
    view = EvalView(vit.image_size, config.crop_ratio)
    source = open_source(config.data, limit=config.limit)
    names, images, left_out = seen_images(source, view, (vit.patch_size, vit.patch_size))
    for name, reason in left_out:
        print(f"left out: {name}: {reason}")
    backbone = backbone.to(fabric.device)

    output.mkdir(parents=True, exist_ok=True)
    sections, drawn = [], 0
    for number, (name, image) in enumerate(zip(names, images, strict=True), 1):
        with fabric.autocast():
            found, joint = looked_up(backbone, image.to(fabric.device), queries, layers, config)
        pictures = []
        for layer in layers:
            for place, query in enumerate(queries):
                rows = head_rows(found[layer][:, place], heads, vit.num_heads)
                title = f"Attention of {query.words}, layer {layer} of {vit.depth}"
                drawing = attention_figure(image, query, rows, vit.grid, title, config.mass)
                file = f"image{number:02d}-layer{layer:02d}-{query.name}"
                pictures.append(_kept(drawing, output, file, f"{title}, of image {number}"))
                if config.panels:
                    _write_panels(output / file, image, query, rows, vit.grid, config.mass)
        if joint is not None:
            through = list(zip(queries, joint, strict=True))
            title = f"Attention rollout through {vit.depth} layers"
            drawing = rollout_figure(image, through, vit.grid, title, config.mass)
            file = f"image{number:02d}-rollout"
            pictures.append(_kept(drawing, output, file, f"{title}, of image {number}"))
        drawn += len(pictures)
        sections.append(Section(f"Image {number}: {name}", items=pictures))
        print(f"image {number} of {len(images)}: {len(pictures)} figures")
    facts = {
        "model": config.model,
        "image size": f"{vit.image_size[0]} x {vit.image_size[1]} pixels",
        "patches": f"{vit.grid[0]} x {vit.grid[1]}",
        "layers, heads": f"{vit.depth}, {vit.num_heads} each",
        "relative bias": vit.relative_bias,
    }
    if left_out:
        rows_out = [[name, reason] for name, reason in left_out]
        table = Table("Images that were not drawn", ["image", "reason"], rows_out)
        sections.append(Section("Left out", items=[table]))
    summary = (
        "Each panel shows how a query's attention is shared among the patches, what it pays to "
        "[CLS] left out. The first line of a figure has a square a patch; the second the patches "
        f"that together hold the top {config.mass:.0%}; the third the same as the first, smoothed "
        "over the image."
    )
    write_report(report, "Where the model looks", sections, facts, summary=summary)
    print(f"{drawn} figures of {len(images)} images in {output}; open {report}")
    return Result(report, drawn)


def queries_of(config: Config, vit: ViTConfig) -> list[Query]:
    """List whose attention is asked for: [CLS] first, then points, then those of the grid.

    Raises:
        ValueError: a point lies outside the image.
    """
    (H, W), P = vit.image_size, vit.patch_size
    points = list(config.points)
    if config.grid is not None:
        rows, columns = config.grid
        points += [
            ((2 * i + 1) * H // (2 * rows), (2 * j + 1) * W // (2 * columns))
            for i in range(rows)
            for j in range(columns)
        ]
    queries = [Query(None, "[CLS]", "cls")] if config.cls else []
    for y, x in dict.fromkeys(points):
        if not (0 <= y < H and 0 <= x < W):
            raise ValueError(
                f"point [{y}, {x}] lies outside the image, which the model sees at {H} x {W} "
                f"pixels; expected a row in 0..{H - 1} and a column in 0..{W - 1}"
            )
        patch = y // P * vit.grid[1] + x // P
        if patch not in [query.patch for query in queries]:
            row, column = y // P + 1, x // P + 1
            queries.append(
                Query(patch, f"patch ({row}, {column})", f"row{row:02d}-col{column:02d}")
            )
    return queries


def chosen(wanted: tuple[int, ...] | range, most: int, option: str, what: str) -> list[int]:
    """Return rising numbers without repetition, of blocks or heads that exist."""
    if strange := [number for number in wanted if not 1 <= number <= most]:
        raise ValueError(
            f"{option} has {strange[0]}, but there is no such {what}: the model has 1 to {most}"
        )
    return sorted(set(wanted))


def looked_up(
    backbone: VisionTransformer,
    image: Tensor,
    queries: list[Query],
    layers: list[int],
    config: Config,
) -> tuple[dict[int, Tensor], Tensor | None]:
    """Find where the queries look in one image (3, H, W).

    Returns: by layer (h, Q, N) on the CPU, attention to the patches; and (Q, N), the rollout
    through all blocks, or None
    """
    tokens = [0 if query.patch is None else 1 + query.patch for query in queries]
    found: dict[int, Tensor] = {}

    def passed() -> Iterator[Tensor]:
        for layer, attention in attention_maps(
            backbone, image[None], None if config.rollout else layers
        ):
            if layer in layers:
                found[layer] = attention[0][:, tokens, 1:].cpu()
            yield attention

    if config.rollout:
        return found, rollout(passed())[0][tokens, 1:].cpu()
    for _ in passed():
        pass
    return found, None


def head_rows(attention: Tensor, heads: list[int], num_heads: int) -> list[Row]:
    """Name what is drawn of attention (h, N): the heads chosen, before all of them their mean."""
    rows = [Row(f"head {head}", attention[head - 1]) for head in heads]
    if len(heads) == num_heads > 1:
        rows.insert(0, Row("mean of heads", attention.mean(dim=0)))
    return rows


def _check_new(output: Path) -> None:
    if not str(output) or str(output) == ".":
        raise ValueError("no output given; name a new folder, as in --output attention")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not overwritten; name another folder")


def _kept(drawing: Drawing, output: Path, file: str, alt: str) -> Picture:
    """Save a figure, and make a picture of the page of it."""
    drawing.save(output, file)
    return Picture(f"{file}.png, {file}.svg", alt, drawing.png, "image/png")


def _write_panels(
    folder: Path,
    image: Tensor,
    query: Query,
    rows: list[Row],
    grid: tuple[int, int],
    mass: float,
) -> None:
    """Write the panels of a figure as the published tool names them, heads counted from 0."""
    folder.mkdir()
    seen = canvas.panel(image)
    files = {"img": seen, "select": with_query(image, query.patch, grid)}
    for row in rows:
        word, _, number = row.words.partition(" ")
        name = f"head{int(number) - 1}" if word == "head" else "mean"
        files[f"attn-{name}"] = flat_map(row.weights, grid, seen)
        files[f"mask_th{mass:g}_{name}"] = mass_mask(image, row.weights, grid, mass)
    for name, pixels in files.items():
        (folder / f"{name}.png").write_bytes(canvas.png(pixels))

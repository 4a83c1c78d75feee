"""Visualising features: a model's patch tokens in colours, and the patches most like a chosen one.

The colours are the first three principal components of the patch tokens of all images together, so
that equal colours mean similar features in any two of them. For each chosen patch the cosine of its
features with those of every patch is drawn, on one scale for all images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from beit.command.ending import Ending, opened
from beit.draw import canvas
from beit.draw.components import components, directions, feature_colours
from beit.draw.numbers import cosine_words
from beit.draw.panels import Panel, heat
from beit.draw.report import Cell, Item, Section, Table, link_to, write_report
from beit.nn.pooling import Kind
from beit.pictures.attention_panels import Query, patch_query, smoothed, with_query
from beit.pictures.images import (
    WORDS_UP_TO,
    check_output,
    chosen_images,
    image_figures,
    left_out_tables,
)
from beit.run.device import DeviceConfig
from beit.run.launch import launch
from beit.weights.frozen import FrozenModel, open_frozen_model
from beit.wording import amount

_BATCH = 32  # images in the model at once
_COLOUR_TEXT = (
    "The first three principal components of the features' directions, over all patches of all "
    "images here: from dark to light, from blue to yellow, from green to red. They explain "
    "{shares} of the variance. Equal colours mean similar features, in any two of the images."
)
_COSINE_TEXT = (
    "The cosine of each patch's features with those of {patch}, framed in image 1. Colours are on "
    "one scale for all images, from the smallest cosine to the largest of another patch."
)


@dataclass(frozen=True)
class Config:
    """Whose features to draw, on which images.

    Attributes:
        model: a model with a backbone: a run directory, a weights file, published:NAME or
            hf://OWNER/NAME; or teacher:SOURCE, any network that `load_teacher` opens
        data: images: a folder, a table or another source (docs/data.md), or a part: folder[:90%];
            image files as [a.jpg,b.png]; @FILE that lists them, one per line
        output: a new folder for the figures and report.html
        limit: number of images to draw, a fixed random subset
        patches: patches of the first image as [[row,column],...], counted from 1 at the top left,
            with which all patches are compared; empty for none
        layer: number of a block, from 1, to take its raw output; null for the final features
        image_size: side or [height, width] of the model's input; positions are resized to it; null
            for the model's own
        num_heads: attention heads, if the file does not contain them and a head is not 64 wide
        crop_ratio: side of the centre crop over the shorter side; null for that of the model's
            training, else 1, the whole image (beit embed: 0.875)
        device: device and precision of the model
    """

    model: str
    data: str | list[str]
    output: str
    limit: int = 6
    patches: tuple[tuple[int, int], ...] = ()
    layer: int | None = None
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    crop_ratio: float | None = None
    device: DeviceConfig = field(default_factory=DeviceConfig)


class Result(NamedTuple):
    """The page, and the number of images; None in all processes but the first."""

    report: Path
    images: int | None


def run(config: Config) -> Result:
    """Draw the features of the chosen images, and write the page."""
    output = Path(config.output)
    check_output(output, "features")
    fabric = launch(config.device)
    report = output / "report.html"
    if not fabric.is_global_zero:
        return Result(report, None)
    model = open_frozen_model(
        config.model, config.image_size, config.num_heads, device=fabric.device
    )
    model.check_layer(config.layer, config.model)
    chosen = chosen_patches(config.patches, model.grid)
    (H, W), (Gh, Gw) = model.image_size, model.grid
    names, images, _, left_out = chosen_images(config, (H, W), (H // Gh, W // Gw))
    with torch.no_grad(), fabric.autocast():
        features = patch_features(model, images, config.layer, fabric.device)
    if broken := [n for n, rows in zip(names, features, strict=True) if not rows.isfinite().all()]:
        raise ValueError(
            f"the features of {config.model} are not finite, first for {broken[0]}; use "
            "--device.precision 32-true or another --layer"
        )

    output.mkdir(parents=True, exist_ok=True)
    sections = [_colour_section(output, images, features, model.grid)]
    columns: dict[str, list[Cell]] = {"image": [*range(1, len(names) + 1)], "file": [*names]}
    for one in chosen:
        assert one.patch is not None  # none is [CLS]
        cosines = patch_cosines(features, one.patch)
        sections.append(_cosine_section(output, images, cosines, one, model.grid))
        columns[f"most like {one.title}"] = _most_similar(cosines, one.patch, Gw)
    rows = [*zip(*columns.values(), strict=True)]
    tables: list[Item] = [Table("Numbered as in the figures.", [*columns], rows)]
    sections.append(Section("The images", items=[*tables, *left_out_tables(left_out)]))
    layer = "final" if config.layer is None else f"block {config.layer} of {model.depth}"
    facts = {
        "model": link_to(config.model, report),
        "features": f"{layer}, {model.width} channels",
        "patches": f"{Gh} x {Gw} per image",
        "image size": f"{H} x {W} pixels",
    }
    write_report(report, "Features of patches", sections, facts)
    return Result(report, len(images))


def ending(config: Config, result: Result) -> Ending:
    """Say how many images are drawn; the page is next."""
    figure = amount(result.images or 0, "image")
    return Ending(f"{result.report}, features of patches", figure, opened(result.report))


def chosen_patches(patches: Sequence[tuple[int, int]], grid: tuple[int, int]) -> list[Query]:
    """Return the patches once each; ValueError for one that does not exist or is the only one."""
    (Gh, Gw), chosen = grid, []
    if patches and Gh * Gw == 1:
        raise ValueError("patches is given, but the model sees an image as one patch; leave it out")
    for row, column in dict.fromkeys(patches):
        if not (1 <= row <= Gh and 1 <= column <= Gw):
            raise ValueError(
                f"patches has [{row}, {column}]; expected a row in 1..{Gh} and a column in 1..{Gw}"
            )
        chosen.append(patch_query((row - 1) * Gw + column - 1, Gw))
    return chosen


def patch_features(
    model: FrozenModel, images: Tensor, layer: int | None, device: torch.device
) -> Tensor:
    """Return the patch tokens of images (B, 3, H, W): (B, N, D) float32 on the CPU."""
    kind = Kind(layer, "attentive")
    parts = (part.to(device) for part in images.split(_BATCH))
    return torch.cat([model.read(part, [kind])[kind].cpu() for part in parts])


def patch_cosines(features: Tensor, patch: int) -> Tensor:
    """Compare features (B, N, D) with those of a patch of the first image: (B, N) float64."""
    rows = directions(features).double()
    return (rows @ rows[patch]).view(features.shape[:2])


def _colour_section(
    output: Path, images: Tensor, features: Tensor, grid: tuple[int, int]
) -> Section:
    fitted = components(directions(features))
    rows = []
    for image, colours in zip(images, feature_colours(features, fitted), strict=True):
        pixels = canvas.panel(image)
        cells = canvas.cells(colours, grid, pixels)
        both = canvas.blend(pixels, cells, 0.5)
        rows.append([Panel(pixels, "image"), Panel(cells, "features"), Panel(both, "both")])
    title = "Features of patches, first three principal components"
    shares = ", ".join(f"{share:.0%}" for share in fitted.shares.tolist())
    text = _COLOUR_TEXT.format(shares=shares)
    return Section("Features in colours", text, image_figures(output, "features", title, rows))


def _cosine_section(
    output: Path, images: Tensor, cosines: Tensor, chosen: Query, grid: tuple[int, int]
) -> Section:
    """Draw the cosines (B, N) with a patch of the first image, the first of `images`."""
    others = cosines.flatten()[torch.arange(cosines.numel()) != chosen.patch]
    low, high = map(float, others.aminmax())
    extent = high - low
    places = ((cosines - low) / extent).clamp(0, 1) if extent else torch.full_like(cosines, 0.5)
    words = cosine_words(cosines.flatten().tolist())
    width = max(map(len, words))  # words of one width get one size
    rows = []
    for number, (image, values) in enumerate(zip(images, places, strict=True)):
        pixels, N = canvas.panel(image), len(values)
        cells = canvas.cells(heat(values.numpy()), grid, pixels)
        written = [word.center(width) for word in words[number * N : (number + 1) * N]]
        shown = with_query(image, None if number else chosen.patch, grid)
        rows.append(
            [
                Panel(shown, "image"),
                Panel(cells, "cosine", "", written if grid[1] <= WORDS_UP_TO else (), grid),
                Panel(smoothed(image, values, grid), "overlay"),
            ]
        )
    title, bar = f"Patches like {chosen.title} of image 1", "cosine of the features"
    least, most = cosine_words([low, high])
    figures = image_figures(output, f"similar-{chosen.file}", title, rows, bar, (least, most))
    return Section(title, _COSINE_TEXT.format(patch=chosen.title), figures)


def _most_similar(cosines: Tensor, patch: int, columns: int) -> list[Cell]:
    """Name the patch of each image with the largest cosine (B, N), but not the patch itself."""
    others = cosines.clone()
    others[0, patch] = -torch.inf
    values, places = others.max(dim=1)
    words = cosine_words(values.tolist())
    return [
        f"({place // columns + 1}, {place % columns + 1}): {word}"
        for place, word in zip(places.tolist(), words, strict=True)
    ]

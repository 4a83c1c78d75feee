"""What all three commands need: images as the model sees them, the output, saved figures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from beit.data.source import Source, UnreadableImage
from beit.data.sources import open_source
from beit.data.views import EvalViews
from beit.draw.panels import Drawing, Panel, draw_panels
from beit.draw.report import Item, Picture, Table
from beit.files import refuse_existing
from beit.weights.bands import check_bands
from beit.weights.crop import crop_ratio

if TYPE_CHECKING:
    from beit.pictures import attention, features, tokens

    PicturesConfig = attention.Config | features.Config | tokens.Config

WHOLE = 1.0  # the crop for models that do not say one: pictures show the whole image
WORDS_UP_TO = 6  # cells in a row; with more, words in them would be too small to read
_IMAGES_PER_FIGURE = 6
LeftOut = Sequence[tuple[str, str]]  # names of images and reasons


class Chosen(NamedTuple):
    """The images that are drawn.

    Attributes:
        names: in valid UTF-8
        images: (B, 3, H, W) uint8, as the model sees them
        target_images: (B, 3, H', W') uint8, as its target does
        left_out: the others
    """

    names: list[str]
    images: Tensor
    target_images: Tensor
    left_out: LeftOut


def chosen_images(
    config: "PicturesConfig",
    size: tuple[int, int],
    patch_size: tuple[int, int],
    target_size: tuple[int, int] | None = None,
    by_lanczos: bool = False,
) -> Chosen:
    """Read the images of `data` as a model of this image size and its target see them.

    See `read_images` and `EvalViews`.
    """
    ratio = crop_ratio(config.model, config.crop_ratio, WHOLE)
    views = EvalViews(size, target_size or size, ratio, by_lanczos)
    check_bands(config.model, config.data)
    return read_images(open_source(config.data, limit=config.limit), views, patch_size)


def read_images(
    source: Source, views: Callable[[Tensor], tuple[Tensor, Tensor]], patch_size: tuple[int, int]
) -> Chosen:
    """Read all images of a source, in order; print those that are left out.

    Args:
        source: the images
        views: from (3, H, W) uint8 to the inputs of the model and of its target
        patch_size: (height, width); smaller images are left out, like unreadable ones

    Raises:
        ValueError: no image can be drawn.
    """
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    reasons: dict[int, str] = {}
    P, Q = patch_size
    for index in range(len(source)):
        try:
            image = source.image(index)
        except UnreadableImage as error:
            reasons[index] = f"cannot be read: {error.reason}"
            continue
        _, h, w = image.shape
        if h < P or w < Q:
            reasons[index] = f"{h} x {w} pixels, smaller than a patch of {P} x {Q}"
        else:
            seen[index] = views(image)
    names = [source.name(index).encode(errors="replace").decode() for index in range(len(source))]
    left_out = [(names[index], reason) for index, reason in reasons.items()]
    if not seen:
        name, reason = left_out[0]
        raise ValueError(
            f"none of {len(source)} images can be drawn; the first is {name}: {reason}; "
            "name other images"
        )
    for name, reason in left_out:
        print(f"left out: {name}: {reason}")
    images, target_images = map(torch.stack, zip(*seen.values(), strict=True))
    return Chosen([names[index] for index in seen], images, target_images, left_out)


def left_out_tables(left_out: LeftOut) -> list[Table]:
    """Return a table of the images that are left out; no table if there are none."""
    columns = ["image", "reason"]
    return [Table("Images that were not drawn", columns, left_out)] if left_out else []


def check_output(output: Path, example: str) -> None:
    """Raise an error unless `output` names a new or empty directory; `example` is a name."""
    if output == Path():
        raise ValueError(f"output is empty; name a new folder, as in --output {example}")
    if not output.is_dir() or any(output.iterdir()):
        refuse_existing(output)


def saved_picture(drawing: Drawing, output: Path, file: str, alt: str) -> Picture:
    """Save a figure as PNG and SVG, and return its picture for a report."""
    drawing.save(output, file)
    return drawing.picture(f"{file}.png, {file}.svg", alt)


def image_figures(
    output: Path,
    name: str,
    title: str,
    rows: Sequence[Sequence[Panel]],
    bar: str = "",
    ends: tuple[str, str] = ("0", "largest"),
) -> list[Item]:
    """Draw a line of panels for each image, save the figures and return their pictures."""
    pictures: list[Item] = []
    for first in range(0, len(rows), _IMAGES_PER_FIGURE):
        part = list(rows[first : first + _IMAGES_PER_FIGURE])
        labels = [f"image {first + index + 1}" for index in range(len(part))]
        part = [part[0], *([panel._replace(title="") for panel in row] for row in part[1:])]
        drawing = draw_panels(part, title, labels=labels, bar=bar, bar_ends=ends)
        number = first // _IMAGES_PER_FIGURE + 1
        file = name if len(rows) <= _IMAGES_PER_FIGURE else f"{name}-{number:02d}"
        alt = f"{title}: images {first + 1} to {first + len(part)}"
        pictures.append(saved_picture(drawing, output, file, alt))
    return pictures

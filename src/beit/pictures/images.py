"""Images as the model sees them, a new output directory, saved figures: for both recipes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from beit.data.decoding import UnreadableImage
from beit.data.sources import Source
from beit.draw.panels import Drawing
from beit.draw.report import Picture, Table


class ReadImages(NamedTuple):
    """Images of one size, and those left out.

    Attributes:
        names: of the images, valid UTF-8
        images: (B, 3, H, W) uint8
        left_out: names and reasons
    """

    names: list[str]
    images: Tensor
    left_out: list[tuple[str, str]]


def read_images(
    source: Source, view: Callable[[Tensor], Tensor], patch_size: tuple[int, int]
) -> ReadImages:
    """Read all images of a source, in order; print those that are left out.

    Args:
        source: the images
        view: from (3, H, W) uint8 to the model's input
        patch_size: (height, width); smaller images are left out, like unreadable ones

    Raises:
        ValueError: no image can be drawn.
    """
    names: list[str] = []
    views: list[Tensor] = []
    left_out: list[tuple[str, str]] = []
    P, Q = patch_size
    for index in range(len(source)):
        name = source.name(index).encode(errors="replace").decode()  # file names may not be UTF-8
        try:
            image = source.image(index)
        except UnreadableImage as error:
            left_out.append((name, f"cannot be read: {error.reason}"))
            continue
        _, h, w = image.shape
        if h < P or w < Q:
            left_out.append((name, f"{h} x {w} pixels, smaller than a patch of {P} x {Q}"))
            continue
        names.append(name)
        views.append(view(image))
    if not views:
        name, reason = left_out[0]
        raise ValueError(
            f"none of {len(source)} images can be drawn; the first is {name}: {reason}; "
            "name other images"
        )
    for name, reason in left_out:
        print(f"left out: {name}: {reason}")
    return ReadImages(names, torch.stack(views), left_out)


def left_out_tables(left_out: Sequence[tuple[str, str]]) -> list[Table]:
    """Return a table of the images that are left out; no table if there are none."""
    columns = ["image", "reason"]
    return [Table("Images that were not drawn", columns, left_out)] if left_out else []


def check_output(output: Path, example: str) -> None:
    """Raise an error unless `output` names a new or empty directory; `example` is a name."""
    if not str(output) or str(output) == ".":
        raise ValueError(f"output is empty; name a new folder, as in --output {example}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not overwritten; name another folder")


def saved_picture(drawing: Drawing, output: Path, file: str, alt: str) -> Picture:
    """Save a figure as PNG and SVG, and return its picture for a report."""
    drawing.save(output, file)
    return Picture(f"{file}.png, {file}.svg", alt, drawing.png, "image/png")

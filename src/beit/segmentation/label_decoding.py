"""Decode label maps (index, palette and RGB PNGs) to classes; encode classes as palette PNGs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from beit.data.pixels.decoding import BROKEN, read_header, reason_of
from beit.data.source import UnreadableImage
from beit.nn.segmenter import IGNORED
from beit.segmentation.label_classes import Colour, LabelClasses

Values = npt.NDArray[Any]

_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF", "HEIF")
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow spreads greys of 2 and 4 bits over 0..255


def decode_label_map(data: bytes, name: str, classes: LabelClasses) -> Tensor:
    """Decode a label map: grey levels or palette indices are the values that `classes` maps.

    RGB maps can be decoded if `classes` has colours.

    Returns: (H, W) uint8, classes, 255 where ignored. Raises UnreadableImage (broken data) and
    ValueError (an unknown value or colour, three channels without colours, JPEG, GIF).
    """
    image = open_map(data, name)
    if image.mode in ("RGB", "RGBA") and classes.colours:
        return torch.from_numpy(_from_colours(np.asarray(image.convert("RGB")), name, classes))
    values = map_values(image, name)
    clipped = values if values.dtype == np.uint8 else values.clip(0, IGNORED)
    labels = np.array(classes.table, dtype=np.int16)[clipped]  # (H, W)
    wrong = (labels < 0) | (clipped != values)
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"{name}: value {values[row, column]} at row {row}, column {column} (from 0) is not a "
            f"class; expected {classes.expected()} ({len(classes.names)} classes). Correct the "
            "map, or give the class list that belongs to it"
        )
    if image.mode == "P" and classes.colours:
        _check_palette(image, values, name, classes)
    return torch.from_numpy(labels.astype(np.uint8))


def open_map(data: bytes, name: str) -> Image.Image:
    """Open and load an encoded map, turned as its EXIF says.

    Raises UnreadableImage; ValueError for a lossy format, for GIF, and for several pages.
    """
    image = read_header(data, name)
    if image.format in _LOSSY:
        raise ValueError(f"{name}: a label map in {image.format}, which is lossy; save it as PNG")
    if image.format == "GIF":
        reason = "whose values are numbered anew in each file"
        raise ValueError(f"{name}: a label map in GIF, {reason}; save it as PNG")
    tiles = image.tile
    try:
        pages = getattr(image, "n_frames", 1)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # as images are turned
    except BROKEN as error:
        raise UnreadableImage(name, reason_of(error)) from error
    if pages > 1:
        raise ValueError(
            f"{name}: a label map of {pages} pages, expected one; save the page with the classes, "
            "or join pages of one class each to one map of numbers"
        )
    image.info["step"] = _GREY_STEPS.get(str(tiles[0].args), 1) if tiles else 1
    return image


def map_values(image: Image.Image, name: str) -> Values:
    """Return the integers of an open map, grey levels or indices: (H, W) uint8 or int32."""
    if image.mode in ("1", "L", "P"):
        return np.asarray(image).astype(np.uint8, copy=False) // np.uint8(image.info["step"])
    if image.mode.startswith("I"):  # 16 bits
        return np.asarray(image).astype(np.int32)
    raise ValueError(
        f"{name}: a map with {len(image.getbands())} channels (mode {image.mode}), expected one "
        "channel of integers: a grey or palette PNG whose values are classes; convert it, or give "
        "a class list with colours (a .yaml of name: [red, green, blue])"
    )


def encode_label_map(label_map: Tensor, palette: Sequence[Colour]) -> bytes:
    """Encode classes, (H, W) uint8, as a palette PNG: indices are classes, shown in colours.

    255 (ignored) is white unless the palette has a colour for it.
    """
    # Filled up to 256 colours, because Pillow changes values beyond the palette.
    colours = [*palette, *[(0, 0, 0)] * (IGNORED - len(palette)), (255, 255, 255)][:256]
    image = Image.fromarray(label_map.to(torch.uint8).cpu().numpy())
    image.putpalette([level for colour in colours for level in colour])  # makes it mode P
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=8)
    return buffer.getvalue()


def file_palette(image: Image.Image) -> list[Colour]:
    """Return the colours of a palette image, by index; none for other images."""
    levels = (image.getpalette() if image.mode == "P" else None) or []
    return list(zip(levels[::3], levels[1::3], levels[2::3], strict=False))


def _from_colours(pixels: Values, name: str, classes: LabelClasses) -> Values:
    """Look up the colours of (H, W, 3) uint8. Returns: (H, W) uint8."""
    packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)  # (H, W)
    known = {red << 16 | green << 8 | blue: c for (red, green, blue), c in classes.colours.items()}
    keys = np.array(sorted(known), dtype=np.int32)
    places = np.searchsorted(keys, packed).clip(max=len(keys) - 1)  # (H, W)
    wrong = keys[places] != packed
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"{name}: the colour {pixels[row, column].tolist()} at row {row}, column {column} "
            f"(from 0) is not among the {len(keys)} of the class list; add it there (under "
            "'ignored' if it is to be ignored), or correct the map"
        )
    labels: Values = np.array([known[int(key)] for key in keys], dtype=np.uint8)[places]
    return labels


def _check_palette(image: Image.Image, values: Values, name: str, classes: LabelClasses) -> None:
    """Raise ValueError if a file's palette shows a class in the colour of another."""
    palette = dict(enumerate(file_palette(image)))
    for value in np.unique(values).tolist():
        by_index = classes.table[value]
        by_colour = classes.colours.get(palette.get(value, (-1, -1, -1)), IGNORED)
        if IGNORED not in (by_colour, by_index) and by_colour != by_index:
            raise ValueError(
                f"{name}: index {value}, which means {classes.names[by_index]}, has the colour of "
                f"{classes.names[by_colour]} in the file's palette; save the map as RGB to have it "
                "read by its colours, or list the classes in the palette's order"
            )

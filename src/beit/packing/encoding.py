"""The bytes of an image in a shard: as they are in the source, or those of a smaller JPEG."""

import io
import posixpath
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from beit.data.folders.listing import is_system
from beit.data.pixels.decoding import extensions, format_ending
from beit.data.pixels.reduced import decode_reduced
from beit.data.shrinking import Need, Shrinking
from beit.data.source import Named, Source, UnreadableImage, encoded_of
from beit.data.spec import Reading
from beit.packing.shards import digest

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")


class Encoding(NamedTuple):
    """How images are read, and encoded if they are larger than `shorter_side`."""

    reading: Reading
    shorter_side: int | None
    quality: int


class Encoded(NamedTuple):
    """An encoded image.

    Attributes:
        data: empty if it cannot be read
        ending: of a file with such data
        changed: they are not those of the source
        digest: of name and data
        unreadable: name and reason if it cannot be read
    """

    data: bytes = b""
    ending: str = ""
    changed: bool = False
    digest: bytes = b""
    unreadable: str = ""


def encoded_all(source: Source, how: Encoding, indices: range) -> list[Encoded]:
    """Read and encode several images."""
    return [_encoded(source, how, index) for index in indices]


def _encoded(source: Source, how: Encoding, index: int) -> Encoded:
    """Read an image, decode it, which shows whether it can be read, and encode it if needed.

    With a shorter side, a range of values or chosen bands are applied to every image.
    """
    name, reading, side = source.name(index), how.reading, how.shorter_side
    try:
        stored = encoded_of(source, index)
        if stored is None:
            data, ending = _png(source.image(index)), ".png"
            return Encoded(data, ending, True, digest(name, data))
        if side is not None:
            reading = reading._replace(shrinking=Shrinking(Need(0, side, side)))
        image, shrunk = decode_reduced(stored, name, reading)
    except UnreadableImage as error:
        return Encoded(unreadable=str(error))
    data, ending = stored, format_ending(stored)
    if shrunk or (side is not None and (reading.range or reading.bands)):
        data, ending = _jpeg(image, how.quality), JPEG[0]
    elif not ending:  # a format that only Pillow recognises
        data, ending = _png(image), ".png"
    return Encoded(data, ending, data is not stored, digest(name, data))


def _png(image: Tensor) -> bytes:
    return _saved(image, "PNG", {})


def _jpeg(image: Tensor, quality: int) -> bytes:
    return _saved(image, "JPEG", {"quality": quality})


def _saved(image: Tensor, form: str, options: dict[str, int]) -> bytes:
    file = io.BytesIO()
    pixels = image.permute(1, 2, 0).contiguous(memory_format=torch.contiguous_format)
    Image.fromarray(pixels.numpy()).save(file, form, **options)
    return file.getvalue()


def names_fit(source: Named) -> bool:
    """Tell whether images can keep their names in tar shards of WebDataset.

    Each is the relative path of an image file, and no two are the same up to the first dot.
    """
    readable, keys = extensions(), set[str]()
    for index in range(len(source)):
        name = source.name(index)
        folder, base = posixpath.split(name)
        stem, _, ending = base.partition(".")
        key = posixpath.join(folder, stem)
        usual = stem and f".{ending.lower()}" in readable and key not in keys
        inside = posixpath.normpath(name) == name and not name.startswith("/")
        if not usual or not inside or any(map(is_system, name.split("/"))):
            return False  # is_system: hidden files, and .. as well
        keys.add(key)
    return True


def member_of(name: str, number: int, keeps: bool, image: Encoded) -> str:
    """Return the name of an image in a tar: its own if it `keeps` that, else by its number."""
    if not keeps:
        return f"{number:09d}{image.ending}"
    stem, ending = posixpath.splitext(name)
    if not image.changed or (image.ending in JPEG and ending.lower() in JPEG):
        return name
    return stem + image.ending

"""The bytes of an image in a shard: as they are in the source, or those of a smaller JPEG."""

import io
import posixpath
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from beit.data.folders.listing import is_system
from beit.data.pixels.decoding import decode, extensions, format_ending
from beit.data.pixels.reduced import decode_reduced
from beit.data.shrinking import Need, Shrinking
from beit.data.source import Named, Source, UnreadableImage, encoded_of
from beit.data.spec import Reading
from beit.packing.shards import digest

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_GLANCE = 64  # shorter side to which a copied image is decoded, to see whether it can be read


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


def encoded(source: Source, how: Encoding, index: int) -> Encoded:
    """Read an image, check that it can be decoded, and encode it if needed.

    With a shorter side, a range of values or chosen bands are applied to every image.
    """
    name, side = source.name(index), how.shorter_side
    need = Need(0, _GLANCE, _GLANCE) if side is None else Need(0, side, side)
    try:
        stored = encoded_of(source, index)
        if stored is None:
            return _new(name, _saved(source.image(index), "PNG"), ".png")
        small = how.reading._replace(shrinking=Shrinking(need))
        image, shrunk = decode_reduced(stored, name, small)
        ending = format_ending(stored)
        if side is not None and (shrunk or how.reading.range or how.reading.bands):
            return _new(name, _saved(image, "JPEG", quality=how.quality), JPEG[0])
        if not ending:  # a format that only Pillow recognises
            return _new(name, _saved(decode(stored, name, how.reading), "PNG"), ".png")
    except UnreadableImage as error:
        return Encoded(unreadable=str(error))
    return Encoded(stored, ending, False, digest(name, stored))


def _new(name: str, data: bytes, ending: str) -> Encoded:
    return Encoded(data, ending, True, digest(name, data))


def _saved(image: Tensor, form: str, **options: int) -> bytes:
    """Encode (3, H, W) uint8."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, form, **options)
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

"""Decode an image no larger than needed; JPEG files are decoded at a part of their size."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from beit.data.pixels.decoding import BROKEN, decode, read_header
from beit.data.shrinking import Need
from beit.data.spec import Reading
from beit.data.views import resized
from beit.files import out_of_memory

_JPEG = b"\xff\xd8\xff"
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # in EXIF; by a quarter
_FINER = 1.75  # a part of a JPEG is resized that has at least so many times the pixels a side


def decode_reduced(data: bytes, name: str, reading: Reading) -> tuple[Tensor, bool]:
    """Decode an image like `decode`, and shrink it if `reading` says so.

    Returns: (c, H, W) uint8, and whether it was shrunk. Raises UnreadableImage.
    """
    if reading.shrinking is None:
        return decode(data, name, reading), False
    need = reading.shrinking.need
    if data.startswith(_JPEG) and reading.range is None and reading.bands is None:
        part = _part_of_jpeg(data, name, need)
        if part is not None:
            return part, True
    image = decode(data, name, reading)
    height, width = image.shape[-2:]
    size = need.size_for(height, width)
    if size == (height, width):
        return image, False
    return resized(image[None], size)[0], True


def _part_of_jpeg(data: bytes, name: str, need: Need) -> Tensor | None:
    """Decode 1/2, 1/4 or 1/8 of each side of a JPEG, and shrink that to `need`.

    Returns: None if a half is too small; or if `decode` has to say what the file holds.
    """
    image = read_header(data, name)
    full_width, full_height = image.size
    if image.mode not in ("L", "RGB") or b"Orientation" in image.info.get("xmp", b""):
        return None
    try:
        turned = image.getexif().get(_ORIENTATION) in _TURNED
        if turned:
            width, height = need.size_for(full_width, full_height)
        else:
            height, width = need.size_for(full_height, full_width)
        image.draft(None, (round(width * _FINER), round(height * _FINER)))
        if image.width == full_width:
            return None
        part, share = image.convert("RGB"), round(full_width / image.width)
        if full_width % share or full_height % share:  # the last row or column is partial
            box = (0.0, 0.0, full_width / share, full_height / share)
            small = part.resize((width, height), Image.Resampling.BICUBIC, box)
        else:  # the same, but faster
            pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1)
            pixels = resized(pixels[None], (height, width))[0]
            small = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            small.info = image.info
        upright = np.array(ImageOps.exif_transpose(small))
    except BROKEN as error:
        if out_of_memory(error):
            raise
        return None
    return torch.from_numpy(upright).permute(2, 0, 1)

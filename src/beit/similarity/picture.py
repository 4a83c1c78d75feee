"""A picture of photos and their nearest images: one row each, the photo first."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from beit.draw import canvas

SIDE = 160  # longest side of an image
_GAP, _LETTER, _LINE = 14, 15, 20  # pixels
_INK, _FAINT, _FRAME, _MISSING = (29, 33, 39), (98, 107, 121), (40, 103, 178), (225, 225, 225)


class Match(NamedTuple):
    """An image (3, H, W) uint8, None if it is not found, and two lines below it."""

    image: Tensor | None
    first: str
    second: str


Row = list[Match]


def similar_picture(rows: list[Row]) -> bytes:
    """Draw each row's photo in a frame, and its nearest images beside it, as PNG."""
    across = max(map(len, rows))
    width, height = SIDE + _GAP, SIDE + 2 * _LINE + _GAP
    size = (across * width + 2 * _GAP, len(rows) * height + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), canvas.font(_LETTER)
    for number, row in enumerate(rows):
        for column, match in enumerate(row):
            left = _GAP + column * width + (_GAP if column else 0)
            top = _GAP + number * height
            box = (left - 4, top - 4, left + SIDE + 3, top + SIDE + 3)
            if match.image is None:
                draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill=_MISSING)
            else:
                pixels = canvas.panel(match.image, SIDE)
                h, w = pixels.shape[:2]
                place = (left + (SIDE - w) // 2, top + (SIDE - h) // 2)
                sheet.paste(Image.fromarray(pixels), place)
            if not column:
                draw.rectangle(box, outline=_FRAME, width=3)
            for line, (words, colour) in enumerate(((match.first, _INK), (match.second, _FAINT))):
                text = canvas.shortened(words, SIDE, font)
                draw.text((left, top + SIDE + 4 + line * _LINE), text, fill=colour, font=font)
    return canvas.png(np.asarray(sheet))

"""A picture of a classifier's predictions: a grid of images, the likeliest class below each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from beit.draw import canvas

SIDE = 192  # longest side of an image
# Blue and orange suit colour blindness; a tick and a cross repeat the information.
RIGHT, WRONG, PLAIN = (40, 103, 178), (186, 78, 20), (60, 60, 60)
_FRAME, _GAP, _LETTER, _LINE = 5, 16, 15, 21  # pixels
_MISSING = (225, 225, 225)


class Prediction(NamedTuple):
    """One image and its prediction.

    Attributes:
        image: (3, H, W) uint8 or [0, 1]; None if it cannot be read
        guess, probability: the likeliest class and its probability in [0, 1]
        truth: the true class; None if unknown
        right: whether the guess is right; meaningless if `truth` is None
    """

    image: Tensor | None
    guess: str = ""
    probability: float = 0.0
    truth: str | None = None
    right: bool = False


def prediction_grid(predictions: Sequence[Prediction], heading: str = "") -> bytes:
    """Draw images with their likeliest classes, as PNG; frames tell right from wrong if known.

    The heading is above them. There are about as many columns as rows, six at most.
    """
    num_columns = min(6, int(np.ceil(np.sqrt(len(predictions)))))
    panels = [None if p.image is None else canvas.panel(p.image, SIDE) for p in predictions]
    sizes = [panel.shape[:2] for panel in panels if panel is not None] or [(SIDE, SIDE)]
    height, width = max(h for h, _ in sizes), max(max(w for _, w in sizes), 120)
    framed = any(p.truth is not None for p in predictions)
    frame, num_lines = (_FRAME, 2) if framed else (0, 1)
    cell = (width + 2 * frame + _GAP, height + 2 * frame + num_lines * _LINE + _GAP)
    num_rows = -(-len(predictions) // num_columns)
    head, font = _LINE if heading else 0, canvas.font(_LETTER)
    size = num_columns * cell[0] + _GAP, head + num_rows * cell[1] + _GAP
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    words = canvas.shortened(heading, size[0] - 2 * _GAP, font)
    draw.text((_GAP, _GAP // 2), words, fill=PLAIN, font=font)
    for number, (prediction, panel) in enumerate(zip(predictions, panels, strict=True)):
        row, column = divmod(number, num_columns)
        left, top = _GAP + column * cell[0], head + _GAP + row * cell[1]
        right, bottom = left + width + 2 * frame - 1, top + height + 2 * frame - 1
        known = prediction.truth is not None and panel is not None
        colour = (RIGHT if prediction.right else WRONG) if known else PLAIN
        if known:
            draw.rectangle((left, top, right, bottom), outline=colour, width=frame)
        if panel is None:
            inside = (left + frame, top + frame, right - frame, bottom - frame)
            draw.rectangle(inside, fill=_MISSING)
            draw.text((left, bottom + 3), "cannot be read", fill=colour, font=font)
            continue
        h, w = panel.shape[:2]
        place = (left + frame + (width - w) // 2, top + frame + (height - h) // 2)
        sheet.paste(Image.fromarray(panel), place)
        share = f"{100 * prediction.probability:.0f}%"
        room = right - left - font.getlength(f"  {share}")
        name = canvas.shortened(prediction.guess, room, font)
        draw.text((left, bottom + 3), name, fill=colour, font=font)
        draw.text((right, bottom + 3), share, fill=colour, font=font, anchor="ra")
        if known:
            mark = "✓" if prediction.right else f"✗ is {prediction.truth}"
            words = canvas.shortened(mark, right - left, font)
            draw.text((left, bottom + 3 + _LINE), words, fill=colour, font=font)
    return canvas.png(np.asarray(sheet))

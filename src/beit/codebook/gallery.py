"""What codes look like: rows of framed patches, by code (BEiT v2, figures 4 and 5)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from beit.codebook.crops import Crop, framed
from beit.codebook.style import DPI, GREY, WIDTH, SavedFigure, new_figure, saved
from beit.draw import canvas
from beit.draw.report import Gallery, Picture

_COLUMNS = 4  # patches side by side in a report
_NOTE_LENGTH = 24  # letters of a note in a figure


class Row(NamedTuple):
    """The patches of one code."""

    title: str  # names the code
    notes: Sequence[str]  # lines below the title
    crops: Sequence[Crop]  # empty for an unused code
    captions: Sequence[str] = ()  # under each crop; () for none


def strips(rows: Sequence[Row], caption: str, folded: bool = False, side: int = 128) -> Gallery:
    """Return a report's gallery with one picture for each row."""
    pictures = []
    for row in rows:
        text = ". ".join([row.title, *row.notes])
        patches = [framed(crop, side) for crop in row.crops]
        if patches:
            lines = [patches[i : i + _COLUMNS] for i in range(0, len(patches), _COLUMNS)]
            below, pixels = text, canvas.mosaic(lines, gap=6)
            alt = f"{len(patches)} patches in their surroundings: {text}"
        else:
            below, alt = f"{text}: no patch.", text
            pixels = np.full((side // 4, 4 * side, 3), 128, dtype=np.uint8)
        pictures.append(Picture(below, alt, canvas.png(pixels), "image/png"))
    return Gallery(caption, pictures, folded)


def gallery_figure(rows: Sequence[Row], name: str, title: str, subtitle: str) -> SavedFigure:
    """Draw rows of patches for a printed page, with each code's title and notes beside them."""
    if not rows:
        raise ValueError("a gallery needs at least one code")
    columns = max(1, max(len(row.crops) for row in rows))
    shapes = [crop.pixels.shape for row in rows for crop in row.crops] or [(1, 1, 3)]
    ratio = max(shape[0] / shape[1] for shape in shapes)  # height to width
    margin, gap, head = 1.15, 0.05, 0.5  # inches: for titles, between patches, above them
    patch = min((WIDTH - margin) / columns - gap, 0.62)
    below = 0.15 if any(row.captions for row in rows) else 0.0
    step = max(patch * ratio + below + 0.09, 0.16 + 0.12 * max(1 + len(r.notes) for r in rows))
    height = head + step * len(rows)
    with new_figure(height, None) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.text(0.04, 0.17, title, weight="bold", size=9, va="center")
        axes.text(0.04, 0.35, subtitle, color=GREY, va="center")
        small: dict[str, Any] = {"va": "center", "color": GREY}
        for number, row in enumerate(rows):
            top = head + number * step
            axes.text(0.04, top + 0.08, row.title, weight="bold", va="center")
            for line, note in enumerate(row.notes):
                note = note if len(note) <= _NOTE_LENGTH else f"{note[: _NOTE_LENGTH - 1]}…"
                axes.text(0.04, top + 0.2 + 0.12 * line, note, size=6.5, **small)
            for column, crop in enumerate(row.crops):
                left = margin + column * (patch + gap)
                extent = (left, left + patch, top + patch * ratio, top)
                pixels = framed(crop, round(patch * DPI))
                axes.imshow(pixels, extent=extent, aspect="auto", interpolation="none")
                if column < len(row.captions):
                    x, y = left + patch / 2, top + patch * ratio + 0.07
                    axes.text(x, y, row.captions[column], ha="center", size=6, **small)
            if not row.crops:
                axes.text(margin, top + 0.08, "no patch has this code", **small)
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        alt = f"{title}: {len(rows)} codes, up to {columns} patches each. {subtitle}"
        return saved(figure, name, alt)

"""Pictures of label maps: class colours over the image, legends, a table of metrics by class."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from beit.draw import canvas
from beit.draw.canvas import Pixels
from beit.draw.report import Picture, Table
from beit.nn.confusion import MapFigures
from beit.nn.segmenter import IGNORED
from beit.segmentation.validation import Example

Palette = Sequence[tuple[int, int, int]]
SHARE = 0.6  # of a class's colour over the image
COVERED = 0.005  # a class below this share of an image is left out of the legend
_LETTER, _LINE, _SWATCH, _MARGIN = 15, 24, 16, 12  # pixels


def overlay(image: Tensor, labels: Tensor, palette: Palette, share: float = SHARE) -> Pixels:
    """Blend the colours of classes over an image; ignored pixels do not change.

    Args:
        image: (3, H, W) uint8
        labels: (H, W) of any integer type, classes or IGNORED
        palette: a colour for each class
        share: weight of the colour, in [0, 1]

    Returns: (H, W, 3)
    """
    if image.shape[1:] != labels.shape:
        raise ValueError(
            f"the image is {image.shape[1]} x {image.shape[2]} pixels and its label map "
            f"{' x '.join(map(str, labels.shape))}; expected one size"
        )
    pixels: Pixels = image.permute(1, 2, 0).cpu().numpy()
    classes = labels.cpu().numpy()
    known = classes != IGNORED
    mixed = pixels.copy()
    painted = np.asarray(palette, dtype=np.uint8)[np.where(known, classes, 0)]  # (H, W, 3)
    mixed[known] = canvas.blend(pixels[known], painted[known], share)
    return mixed


def shares(labels: Tensor, num_classes: int) -> NDArray[np.float64]:
    """Return the share of a map (H, W) that each class covers: (Y,)."""
    flat = labels.flatten().long().cpu()
    counts = torch.bincount(flat[flat != IGNORED], minlength=num_classes)
    covered: NDArray[np.float64] = (counts.double() / max(1, len(flat))).numpy()
    return covered


def legend(
    names: Sequence[str], palette: Palette, covered: NDArray[np.float64] | None = None
) -> Pixels:
    """Draw a line for each class with its colour and name: (h, w, 3).

    covered: (Y,) the share of each class, which sorts them; those below COVERED are left out. None
        lists all classes in order.
    """
    font = canvas.font(_LETTER)
    order = list(range(len(names)))
    if covered is not None:
        ordered = np.argsort(-covered, kind="stable").tolist()
        order = [number for number in ordered if covered[number] >= COVERED]
    lines = []
    for number in order:
        part = "" if covered is None else f"  {100 * covered[number]:.0f}%"
        lines.append(" ".join(names[number].split()) + part)
    left = _MARGIN + _SWATCH + 8
    width = int(max([font.getlength(line) for line in lines] or [0])) + left + _MARGIN
    sheet = Image.new("RGB", (width, _LINE * len(lines) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (number, line) in enumerate(zip(order, lines, strict=True)):
        top = _MARGIN // 2 + place * _LINE + (_LINE - _SWATCH) // 2
        box = (_MARGIN, top, _MARGIN + _SWATCH - 1, top + _SWATCH - 1)
        draw.rectangle(box, fill=tuple(palette[number]), outline=(120, 120, 120))
        draw.text((left, top - 1), line, fill=(30, 30, 30), font=font)
    return np.asarray(sheet)


def with_legend(pixels: Pixels, names: Sequence[str], palette: Palette, labels: Tensor) -> Pixels:
    """Put the legend of a map (H, W) beside a picture (h, w, 3)."""
    beside = legend(names, palette, shares(labels, len(names)))
    height = max(len(pixels), len(beside))
    sheet = np.full((height, pixels.shape[1] + beside.shape[1], 3), 255, dtype=np.uint8)
    sheet[: len(pixels), : pixels.shape[1]] = pixels
    sheet[: len(beside), pixels.shape[1] :] = beside
    return sheet


def example_picture(examples: Sequence[Example], names: Sequence[str], palette: Palette) -> Picture:
    """Draw a row for each image, with true and predicted classes over it, and a legend."""
    if not examples:
        raise ValueError("examples are empty; expected at least one image")
    side = 224
    rows, covered = [], np.zeros(len(names))
    for image, truth, guess in examples:
        drawn = (overlay(image, truth, palette), overlay(image, guess, palette))
        panels = [canvas.panel(image, side)]
        panels += [canvas.panel(torch.from_numpy(one).permute(2, 0, 1), side) for one in drawn]
        rows.append([_squared(panel, side) for panel in panels])
        covered += shares(truth, len(names)) + shares(guess, len(names))
    sheet = canvas.mosaic(rows)
    beside = canvas.opaque(legend(names, palette, covered / max(covered.sum(), 1e-9)))
    joined = np.zeros(
        (max(len(sheet), len(beside)), sheet.shape[1] + 8 + beside.shape[1], 4), dtype=np.uint8
    )
    joined[: len(sheet), : sheet.shape[1]] = sheet
    joined[: len(beside), sheet.shape[1] + 8 :] = beside
    words = f"{len(examples)} images of the validation set: image, truth, prediction"
    return Picture(f"{words}.", words, canvas.png(joined), "image/png")


def iou_table(figures: MapFigures, pixels: Tensor, names: Sequence[str]) -> Table:
    """List IoU and accuracy of each class, worst first; classes that do not occur come last.

    pixels: (Y,) true pixels of each class
    """
    total = max(1, int(pixels.sum()))
    rows: list[tuple[str, float | None, float | None, float]] = []
    for number, name in enumerate(names):
        iou, accuracy = float(figures.iou[number]), float(figures.accuracy[number])
        row = (
            name,
            None if np.isnan(iou) else 100 * iou,
            None if np.isnan(accuracy) else 100 * accuracy,
            100 * int(pixels[number]) / total,
        )
        rows.append(row)
    rows.sort(key=lambda row: 1e9 if row[1] is None else row[1])
    columns = ["Class", "IoU, %", "Accuracy, %", "Share of pixels, %"]
    return Table("Metrics by class, worst first", columns, rows)


def _squared(panel: Pixels, side: int) -> NDArray[np.uint8]:
    """Centre a panel (h, w, 3) on a square of transparent pixels: (side, side, 4)."""
    h, w = panel.shape[:2]
    square = np.zeros((side, side, 4), dtype=np.uint8)
    top, left = (side - h) // 2, (side - w) // 2
    square[top : top + h, left : left + w] = canvas.opaque(panel)
    return square

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
Shares = NDArray[np.float64]
SHARE = 0.6  # of a class's colour over the image
SIDE = 224  # of an example
COVERED = 0.005  # a class below this share of an image is left out of the legend
GROUND = 54  # grey below a legend, with light letters: for light pages and dark ones
_LETTER, _LINE, _SWATCH, _MARGIN = 15, 24, 16, 12  # pixels


def overlay(image: Tensor, labels: Tensor, palette: Palette, share: float = SHARE) -> Pixels:
    """Blend the colours of classes over an image; ignored pixels do not change.

    Takes an image (3, H, W) uint8 and classes or IGNORED, (H, W) of any integer type; `share` in
    [0, 1] is the weight of the colours. Returns: (H, W, 3)
    """
    pixels: Pixels = image.permute(1, 2, 0).cpu().numpy()
    classes = labels.cpu().numpy()
    known = classes != IGNORED
    mixed = pixels.copy()
    painted = np.asarray(palette, dtype=np.uint8)[np.where(known, classes, 0)]  # (H, W, 3)
    mixed[known] = canvas.blend(pixels[known], painted[known], share)
    return mixed


def shares(labels: Tensor, num_classes: int) -> Shares:
    """Return the share of a map (H, W) that each class covers: (Y,)."""
    flat = labels.flatten().long().cpu()
    counts = torch.bincount(flat[flat != IGNORED], minlength=num_classes)
    return np.asarray(counts.double() / max(1, len(flat)))


def legend(names: Sequence[str], palette: Palette, covered: Shares | None = None) -> Pixels:
    """Draw a line for each class with its colour and name, on `GROUND`: (h, w, 3).

    `covered` (Y,), the share of each class, sorts them and leaves out those below COVERED.
    """
    font = canvas.font(_LETTER)
    order, lines = list(range(len(names))), [" ".join(name.split()) for name in names]
    if covered is not None:
        ordered = np.argsort(-covered, kind="stable").tolist()
        order = [number for number in ordered if covered[number] >= COVERED]
        lines = [f"{lines[number]}  {100 * covered[number]:.0f}%" for number in order]
    left = _MARGIN + _SWATCH + 8
    width = int(max([font.getlength(line) for line in lines] or [0])) + left + _MARGIN
    sheet = Image.new("RGB", (width, _LINE * len(lines) + _MARGIN), (GROUND, GROUND, GROUND))
    draw = ImageDraw.Draw(sheet)
    for place, (number, line) in enumerate(zip(order, lines, strict=True)):
        top = _MARGIN // 2 + place * _LINE + (_LINE - _SWATCH) // 2
        box = (_MARGIN, top, _MARGIN + _SWATCH - 1, top + _SWATCH - 1)
        draw.rectangle(box, fill=tuple(palette[number]), outline=(120, 120, 120))
        draw.text((left, top - 1), line, fill=(240, 240, 240), font=font)
    return np.asarray(sheet)


def with_legend(pixels: Pixels, names: Sequence[str], palette: Palette, labels: Tensor) -> Pixels:
    """Put the legend of a map (H, W) beside a picture (h, w, 3)."""
    return _joined(pixels, legend(names, palette, shares(labels, len(names))), GROUND)


def example_picture(examples: Sequence[Example], names: Sequence[str], palette: Palette) -> Picture:
    """Draw a row for each image, with true and predicted classes over it, and a legend."""
    rows, covered = [], np.zeros(len(names))
    for image, *label_maps in examples:
        drawn = [torch.from_numpy(overlay(image, labels, palette)) for labels in label_maps]
        rows.append([_squared(each) for each in (image, *(d.permute(2, 0, 1) for d in drawn))])
        covered += sum(shares(labels, len(names)) for labels in label_maps)
    beside = canvas.opaque(legend(names, palette, covered / max(covered.sum(), 1e-9)))
    sheet = _joined(canvas.mosaic(rows), np.pad(beside, ((0, 0), (8, 0), (0, 0))), 0)
    words = f"{len(examples)} images of the validation set: image, truth, prediction"
    return Picture(f"{words}.", words, canvas.png(sheet), "image/png")


def iou_table(figures: MapFigures, pixels: Tensor, names: Sequence[str]) -> Table:
    """List IoU and accuracy of each class, worst first; classes that do not occur come last.

    pixels: (Y,) true pixels of each class
    """
    part = 100 * pixels.double() / max(1, int(pixels.sum()))
    percent = torch.stack([100 * figures.iou, 100 * figures.accuracy, part], dim=1)
    rows = [
        (name, *(None if np.isnan(value) else round(value, 1) for value in values))
        for name, values in zip(names, percent.tolist(), strict=True)
    ]
    rows.sort(key=lambda row: 1e9 if row[1] is None else row[1])
    columns = ["Class", "IoU, %", "Accuracy, %", "Share of pixels, %"]
    return Table("Metrics by class, worst first", columns, rows)


def _squared(image: Tensor) -> Pixels:
    """Scale an image (3, H, W) and centre it on transparent pixels: (SIDE, SIDE, 4)."""
    panel = canvas.opaque(canvas.panel(image, SIDE))
    h, w = panel.shape[:2]
    top, left = (SIDE - h) // 2, (SIDE - w) // 2
    return np.pad(panel, ((top, SIDE - h - top), (left, SIDE - w - left), (0, 0)))


def _joined(left: Pixels, right: Pixels, fill: int) -> Pixels:
    """Put two pictures side by side; the lower one is filled up at the bottom."""
    height, width = max(len(left), len(right)), left.shape[1] + right.shape[1]
    sheet = np.full((height, width, left.shape[2]), fill, dtype=np.uint8)
    sheet[: len(left), : left.shape[1]] = left
    sheet[: len(right), left.shape[1] :] = right
    return sheet

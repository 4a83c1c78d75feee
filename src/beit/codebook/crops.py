"""Crops: a patch cut out of its image with its surroundings, framed, kept in a file."""

from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.draw.canvas import Pixels, shown
from beit.draw.thumbnails import shrunk

_FRAME = (213, 94, 0)  # vermilion, between white hairlines: visible on any background


class Crop(NamedTuple):
    """A patch and its surroundings."""

    pixels: Pixels  # (h, w, 3) uint8
    frame: tuple[float, float, float, float]  # top, left, bottom, right of the patch, in [0, 1]


def crop_patch(image: Tensor, position: int, grid: tuple[int, int], context: int) -> Crop:
    """Crop a patch with `context` patches on each side; at a border the crop is moved inside.

    Args:
        image: (c, H, W) uint8
        position: in [0, N)
        grid: (Gh, Gw); image sides are multiples of it
        context: 0 or more; limited to what the image holds
    """
    (_, H, W), (Gh, Gw) = image.shape, grid
    row, column = divmod(position, Gw)
    rows, columns = min(2 * context + 1, Gh), min(2 * context + 1, Gw)
    top = min(max(row - context, 0), Gh - rows)
    left = min(max(column - context, 0), Gw - columns)
    height, width = H // Gh, W // Gw
    part = image[:, top * height : (top + rows) * height, left * width : (left + columns) * width]
    pixels: Pixels = shown(part).permute(1, 2, 0).contiguous().cpu().numpy()
    y, x = row - top, column - left
    return Crop(pixels, (y / rows, x / columns, (y + 1) / rows, (x + 1) / columns))


def framed(crop: Crop, side: int) -> Pixels:
    """Draw a crop at about `side` pixels, with a frame around the patch: (h, w, 3) uint8.

    Small crops are enlarged by a whole factor, so that each pixel stays a square.
    """
    factor = max(1, side // max(crop.pixels.shape[:2]))
    drawn = shrunk(crop.pixels, side).repeat(factor, axis=0).repeat(factor, axis=1)
    H, W = drawn.shape[:2]
    top, left, bottom, right = np.multiply(crop.frame, (H, W, H, W)).round().astype(int).tolist()
    line = max(1, side // 60)
    colours = [(255, 255, 255)] + [_FRAME] * (2 * line) + [(255, 255, 255)]
    first = -(len(colours) // 2)  # the line is centred on the patch's edge
    for inset, colour in enumerate(colours, start=first):
        a, b = max(top + inset, 0), min(bottom - 1 - inset, H - 1)
        c, d = max(left + inset, 0), min(right - 1 - inset, W - 1)
        drawn[a : b + 1, [c, d]] = colour
        drawn[[a, b], c : d + 1] = colour
    return drawn


class CropFile:
    """Crops of equal size in a file, by their places, so that they need no memory."""

    def __init__(self, file: IO[bytes], places: Tensor, side: int) -> None:
        """Prepare a file for the crops of `places` (m,) int64 sorted, shrunk to `side` pixels."""
        self._file, self._places, self._side = file, places, side
        self._pixels: NDArray[np.uint8] | None = None
        self._frames = np.zeros((len(places), 4))  # zero height: not in the file

    def add(self, place: int, crop: Crop) -> None:
        """Write the crop of a place."""
        pixels = shrunk(crop.pixels, self._side)
        if self._pixels is None:
            shape = (len(self._places), *pixels.shape)
            self._pixels = np.memmap(self._file, np.uint8, "w+", shape=shape)
        row = int(torch.searchsorted(self._places, place))
        self._pixels[row], self._frames[row] = pixels, crop.frame

    def find(self, place: int) -> Crop | None:
        """Read the crop of a place; None if it was not added."""
        row = int(torch.searchsorted(self._places, place))
        if row == len(self._places) or self._places[row] != place or self._pixels is None:
            return None
        top, left, bottom, right = self._frames[row].tolist()
        return Crop(np.array(self._pixels[row]), (top, left, bottom, right)) if bottom else None

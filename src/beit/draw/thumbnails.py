"""Small pictures for pages: shrunk, and encoded as WebP."""

import io

import numpy as np
from PIL import Image

from beit.draw.canvas import Pixels

TINY = 24  # pixels: pictures with no longer side are encoded without loss
LOSSLESS = 100
# Tried in this order until a page is small enough; the first for tiny pictures only.
QUALITIES = (LOSSLESS, 88, 80, 72, 64, 56, 48, 40, 32, 24, 16, 8, 2)


def shrunk(pixels: Pixels, side: int) -> Pixels:
    """Resize (h, w, 3) so that no side is longer than `side`; smaller crops are not changed."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be (h, w, 3) uint8, got {pixels.shape} {pixels.dtype}")
    h, w = pixels.shape[:2]
    if max(h, w) <= side:
        return pixels
    size = (max(1, round(w * side / max(h, w))), max(1, round(h * side / max(h, w))))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def tiled(cells: Pixels, down: int, across: int, fill: int = 0) -> Pixels:
    """Lay out cells (n, h, w, 3) row by row; places without one have the value `fill`."""
    n, h, w, _ = cells.shape
    whole = np.full((down * across, h, w, 3), fill, np.uint8)
    whole[:n] = cells
    rows = whole.reshape(down, across, h, w, 3).transpose(0, 2, 1, 3, 4)
    return rows.reshape(down * h, across * w, 3)


def webp(pixels: Pixels, quality: int) -> bytes:
    """Encode (h, w, 3) as WebP, without loss at quality `LOSSLESS`."""
    file = io.BytesIO()
    options = {"quality": quality, "lossless": quality == LOSSLESS, "method": 2}
    Image.fromarray(pixels).save(file, "WEBP", use_sharp_yuv=True, **options)
    return file.getvalue()


def thumbnail(pixels: Pixels, side: int = 256) -> bytes:
    """Encode an image (H, W, 3) uint8 as WebP, its longest side at most `side` pixels."""
    tiny = max(pixels.shape[:2]) <= TINY
    return webp(shrunk(pixels, side), LOSSLESS if tiny else 80)

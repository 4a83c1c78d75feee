"""Pixels of the report's pictures: enlarged images, coloured cells, panels side by side, PNG."""

import io
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.uint8]
Value = TypeVar("Value", bound=np.generic)
SIDE = 256  # longest side of a panel, about


def panel(image: Tensor, side: int = SIDE) -> Pixels:
    """Bring an image (3, H, W), uint8 or float in [0, 1], to about `side` pixels.

    Small images grow by a whole factor, each pixel a sharp square; large ones are averaged down.
    Returns: (h, w, 3)
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"an image has shape (3, H, W), got {tuple(image.shape)}")
    if image.dtype != torch.uint8:
        image = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels: Pixels = image.permute(1, 2, 0).cpu().numpy()
    longest = max(pixels.shape[:2])
    if longest > side:
        H, W = pixels.shape[:2]
        size = (max(1, round(W * side / longest)), max(1, round(H * side / longest)))
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    factor = side // longest
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def cells(values: NDArray[Value], grid: tuple[int, int], like: Pixels) -> NDArray[Value]:
    """Spread values (N, ...) of the grid's patches over the pixels of a panel (h, w, 3).

    Returns: (h, w, ...)
    """
    h, w = like.shape[:2]
    rows, columns = np.arange(h) * grid[0] // h, np.arange(w) * grid[1] // w
    spread: NDArray[Value] = values.reshape(*grid, *values.shape[1:])[rows][:, columns]
    return spread


def depth_in_cell(grid: tuple[int, int], like: Pixels) -> NDArray[np.float64]:
    """Give each pixel of a panel its distance from its cell's edge: 0 there, 1 in the middle.

    Returns: (h, w)
    """
    h, w = like.shape[:2]
    across = 1 - np.abs((np.arange(w) + 0.5) * grid[1] / w % 1 * 2 - 1)
    down = 1 - np.abs((np.arange(h) + 0.5) * grid[0] / h % 1 * 2 - 1)
    depth: NDArray[np.float64] = np.minimum(down[:, None], across[None, :])
    return depth


def opaque(pixels: Pixels) -> Pixels:
    """Add the fourth channel: (h, w, 3) to (h, w, 4)."""
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def blend(first: Pixels, second: Pixels, share: float) -> Pixels:
    """Mix two panels; share is the second's."""
    mixed = first.astype(np.float32) * (1 - share) + second.astype(np.float32) * share
    return mixed.round().astype(np.uint8)


def mosaic(rows: Sequence[Sequence[Pixels]], gap: int = 8) -> Pixels:
    """Lay out equal panels (h, w, 3 or 4) in rows; gaps and missing panels are transparent.

    So the picture fits pages of any colour. Returns: (H, W, 4)
    """
    h, w = rows[0][0].shape[:2]
    num_columns = max(map(len, rows))
    sheet = np.zeros(
        (len(rows) * (h + gap) - gap, num_columns * (w + gap) - gap, 4), dtype=np.uint8
    )
    for i, row in enumerate(rows):
        for j, pixels in enumerate(row):
            top, left = i * (h + gap), j * (w + gap)
            sheet[top : top + h, left : left + w] = (
                opaque(pixels) if pixels.shape[2] == 3 else pixels
            )
    return sheet


def png(pixels: Pixels) -> bytes:
    """Encode pixels (H, W, 3 or 4); the same pixels give the same bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()

"""Pixels of the report's pictures: scaled images, coloured cells, panels side by side, PNG."""

import functools
import io
import logging
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFont
from torch import Tensor

from beit.draw.report import Picture
from beit.nn.channels import as_rgb

Pixels = NDArray[np.uint8]
Value = TypeVar("Value", bound=np.generic)
log = logging.getLogger(__name__)

SIDE = 256  # approximate longest side of a panel


def shown(images: Tensor) -> Tensor:
    """Return images (..., c, H, W) as RGB (..., 3, H, W), and log once what is shown of others."""
    _say_once(images.shape[-3])
    return as_rgb(images)


def shown_facts(channels: int) -> dict[str, str]:
    """Say on a page which of so many channels its pictures show; empty for RGB."""
    if channels == 3:
        return {}
    what = "channels 1, 2 and 3 as red, green and blue" if channels > 3 else "channel 1 as grey"
    return {"pictures": f"show {what}, of {channels} channels"}


@functools.cache
def _say_once(channels: int) -> None:
    for facts in shown_facts(channels).items():
        log.info("%s %s", *facts)


def panel(image: Tensor, side: int = SIDE) -> Pixels:
    """Scale an image (c, H, W), uint8 or float in [0, 1], to about `side` pixels: (h, w, 3).

    Small images are enlarged by an integer factor without smoothing; large ones are averaged down.
    """
    if image.ndim != 3:
        raise ValueError(f"an image has shape (c, H, W), got {tuple(image.shape)}")
    image = shown(image)
    if image.dtype != torch.uint8:
        image = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels: Pixels = image.permute(1, 2, 0).cpu().numpy()
    (H, W), longest = pixels.shape[:2], max(pixels.shape[:2])
    if longest > side:
        size = (max(1, round(W * side / longest)), max(1, round(H * side / longest)))
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    return pixels.repeat(side // longest, axis=0).repeat(side // longest, axis=1)


def cells(values: NDArray[Value], grid: tuple[int, int], like: Pixels) -> NDArray[Value]:
    """Repeat values (N, ...) of the grid's patches over a panel's pixels (h, w, 3): (h, w, ...)."""
    h, w = like.shape[:2]
    rows, columns = np.arange(h) * grid[0] // h, np.arange(w) * grid[1] // w
    spread: NDArray[Value] = values.reshape(*grid, *values.shape[1:])[rows][:, columns]
    return spread


def depth_in_cell(grid: tuple[int, int], like: Pixels) -> NDArray[np.float64]:
    """Return each pixel's distance (h, w) from the edge of its cell: 0 there, 1 in the middle."""
    h, w = like.shape[:2]
    across = 1 - np.abs((np.arange(w) + 0.5) * grid[1] / w % 1 * 2 - 1)
    down = 1 - np.abs((np.arange(h) + 0.5) * grid[0] / h % 1 * 2 - 1)
    depth: NDArray[np.float64] = np.minimum(down[:, None], across[None, :])
    return depth


def opaque(pixels: Pixels) -> Pixels:
    """Add an opaque alpha channel: (h, w, 3) to (h, w, 4)."""
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def masked_view(
    image: Tensor, masked: Tensor, grid: tuple[int, int]
) -> tuple[Pixels, Pixels, NDArray[np.bool_]]:
    """Show an image (3, H, W) uint8 or [0, 1] with its patches `masked` (M,) int64 in grey.

    Returns: the panel (h, w, 3), the same with grey patches (h, w, 4), and where those are (h, w)
    """
    whole = panel(image)
    is_masked = np.zeros(grid[0] * grid[1], dtype=bool)
    is_masked[masked.cpu().numpy()] = True
    hidden = cells(is_masked, grid, whole)
    view = opaque(whole)
    view[hidden] = (128, 128, 128, 90)
    return whole, view, hidden


def over_masked(
    colours: Pixels, grid: tuple[int, int], whole: Pixels, hidden: NDArray[np.bool_]
) -> Pixels:
    """Show the colours (N, 3) of the `hidden` patches over the faded panel: (h, w, 4)."""
    faded = opaque(whole)
    faded[..., 3] = 70
    return np.where(hidden[..., None], opaque(cells(colours, grid, whole)), faded)


def mark(pixels: Pixels, where: NDArray[np.bool_], grid: tuple[int, int]) -> None:
    """Put a white frame with a dark edge inside each cell `where` (h, w), in place."""
    depth = depth_in_cell(grid, pixels)
    for edge, shade in ((0.22, 255), (0.08, 20)):
        pixels[..., :3][where & (depth < edge)] = shade


def blend(first: Pixels, second: Pixels, share: float) -> Pixels:
    """Mix two panels; `share` is the weight of the second."""
    mixed = first.astype(np.float32) * (1 - share) + second.astype(np.float32) * share
    return mixed.round().astype(np.uint8)


def mosaic(rows: Sequence[Sequence[Pixels]], gap: int = 8) -> Pixels:
    """Lay out panels (h, w, 3 or 4) in rows: (H, W, 4). Gaps and missing panels are transparent."""
    h, w = rows[0][0].shape[:2]
    num_columns = max(map(len, rows))
    size = (len(rows) * (h + gap) - gap, num_columns * (w + gap) - gap, 4)
    sheet = np.zeros(size, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, pixels in enumerate(row):
            place = sheet[i * (h + gap) :, j * (w + gap) :]
            place[:h, :w] = opaque(pixels) if pixels.shape[2] == 3 else pixels
    return sheet


def png(pixels: Pixels) -> bytes:
    """Encode pixels (H, W, 3 or 4) as PNG; the same pixels give the same bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def picture(caption: str, alt: str, rows: Sequence[Sequence[Pixels]], gap: int = 8) -> Picture:
    """Return panels laid out in rows by `mosaic` as a picture of the report."""
    return Picture(caption, alt, png(mosaic(rows, gap)), "image/png")


def shortened(words: str, room: float, font: ImageFont.FreeTypeFont) -> str:
    """Shorten words to one line of at most `room` pixels."""
    words = " ".join(words.split())
    if font.getlength(words) <= room:
        return words
    while words and font.getlength(f"{words}…") > room:
        words = words[:-1]
    return f"{words.rstrip()}…"


def font(size: int) -> ImageFont.FreeTypeFont:
    """Open matplotlib's own font: Pillow's has no letters beyond English ones."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)

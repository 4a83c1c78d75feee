"""Random brightness, contrast and saturation of a batch of views, each image with its own."""

from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beit.nn.patches import LUMA

_ORDERS = list(permutations(("brightness", "contrast", "saturation")))
_EXACT = 256  # rows of uint8 whose sum fits into uint16
_PIECE = 1 << 16  # pixels changed at once on a CPU: their floats fit into its cache


def draw_changes(strength: float, draws: list[float], grey_mean: float) -> list[list[float]]:
    """Draw the three changes of an image from four random numbers in [0, 1).

    `grey_mean` is the mean luma of the whole image, for contrast.

    Returns: for each change, in their random order, the factors of a pixel's colours and of its
        luma, and what is added
    """
    factors = [1 + strength * (2 * draw - 1) for draw in draws[:3]]
    brightness, contrast, saturation = factors
    changes = list[list[float]]()
    for change in _ORDERS[int(draws[3] * len(_ORDERS))]:
        if change == "brightness":
            changes.append([brightness, 0, 0])
            grey_mean = min(grey_mean * brightness, 255.0)
        elif change == "contrast":
            changes.append([contrast, 0, grey_mean * (1 - contrast)])
        else:
            changes.append([saturation, 1 - saturation, 0])
    return changes


def recoloured(views: Tensor, changes: Tensor) -> Tensor:
    """Apply changes (B, 3, 3) of `draw_changes` to views (B, 3, H, W) uint8, on their device.

    All arithmetic is element-wise, so an image's result depends neither on the others nor on the
    number of threads. Devices differ by one level at most.

    Returns: (B, 3, H, W) uint8; `views` themselves if `changes` are empty
    """
    if not changes.numel():
        return views
    count, result = len(views), torch.empty_like(views)
    if views.is_cpu:
        count = max(1, _PIECE // views[0, 0].numel())
    pieces = (tensor.split(count) for tensor in (views, changes, result))
    for piece, change, out in zip(*pieces, strict=True):
        if count == 1:
            colours = _changed(piece, change[0].tolist())
        else:
            columns = change.to(views.device, non_blocking=True)[..., None, None, None].unbind(1)
            colours = _changed(piece, [column.unbind(1) for column in columns])
        out.copy_(colours.to(torch.int16))  # faster than to uint8 at once
    return result


def _changed(views: Tensor, changes: Iterable[Sequence[float | Tensor]]) -> Tensor:
    """Return 0.5 above the changed colours; three numbers a change, or (B, 1, 1, 1) of them."""
    colours = views.to(torch.float32)
    red, green, blue = colours.split(1, dim=1)
    for factor, luma_factor, added in changes:
        if isinstance(luma_factor, Tensor) or luma_factor:
            luma = red * LUMA[0]
            added = luma.add_(green * LUMA[1]).add_(blue * LUMA[2]).mul_(luma_factor).add_(added)
        colours.mul_(factor)
        if isinstance(added, Tensor) or added:
            colours.add_(added)
        colours.clamp_(0, 255)
    return colours.add_(0.5)


def grey_mean(images: Tensor) -> Any:
    """Return the mean luma of images (..., 3, H, W) uint8 in memory, from exact integer sums."""
    pixels = images.numpy()
    height, width = pixels.shape[-2:]
    sums: Any = 0  # (..., 3)
    for top in range(0, height, _EXACT):
        rows = pixels[..., top : top + _EXACT, :]
        sums = sums + np.add.reduce(rows, axis=-2, dtype=np.uint16).sum(axis=-1, dtype=np.int64)
    red, green, blue = sums[..., 0], sums[..., 1], sums[..., 2]
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue) / (height * width)

"""Segmentation of images of any size, by a model with a fixed input size.

The image is resized, classified in overlapping windows, and the logits are averaged where windows
overlap. Or the whole image is resized to the model's input size. As published for ADE20K
(mmsegmentation 0.11; docs/reference/segmentation.md, "Inference"), with windows in batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from beit.nn.patches import Size, pixels_of, unchecked
from beit.nn.segmenter import resize_maps

Classify = Callable[[Tensor], Tensor]  # (n, 3, h, w) float in [0, 1] to (n, Y, h', w') logits
WINDOW_PIXELS = 2**19  # default number of pixels classified at a time: 2 windows of 512 x 512
STRIP = 2**26  # logits computed at a time at the image's own size: 256 MB


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return the starts of windows along one side, `stride` apart, the last aligned to the end."""
    if not 1 <= stride <= window:
        raise ValueError(
            f"stride is {stride}; expected 1 to {window}, the window's side, to cover all pixels"
        )
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def sliding_logits(
    classify: Classify,
    images: Tensor,
    window: Size,
    stride: Size,
    batch_size: int | None = None,
    padding: Tensor | None = None,
) -> Tensor:
    """Average the logits of overlapping windows.

    Args:
        classify: maps windows (n, 3, h, w) to logits, which are resized to the window size
        images: (B, 3, H, W) uint8 or float in [0, 1]
        window: (height, width) of a window
        stride: pixels between windows, vertically and horizontally
        batch_size: windows classified at a time; None for as many as have WINDOW_PIXELS
        padding: (3, 1, 1) in [0, 1], colour of the padding on the right and below images smaller
            than the window (published: the mean colour); None for black

    Returns: (B, Y, H, W) float32. ValueError: the logits are not finite.
    """
    images = pixels_of(images)
    (B, _, H, W), (h, w) = images.shape, window
    if H < h or W < w:
        colour = images.new_zeros(3, 1, 1) if padding is None else padding.to(images)
        padded = colour.expand(B, 3, max(H, h), max(W, w)).clone()
        padded[:, :, :H, :W] = images
        images = padded
    tops = window_starts(images.shape[2], h, stride[0])
    lefts = window_starts(images.shape[3], w, stride[1])
    places = [(b, y, x) for y, x in product(tops, lefts) for b in range(B)]
    total, counts = torch.empty(0), images.new_zeros(images.shape[2:])
    batch_size = batch_size or max(1, WINDOW_PIXELS // (h * w))
    for first in range(0, len(places), batch_size):
        batch = places[first : first + batch_size]
        views = torch.stack([images[b, :, y : y + h, x : x + w] for b, y, x in batch])
        with unchecked():
            logits = classify(views)  # (n, Y, h', w')
        if not first:
            total = counts.new_zeros(B, logits.shape[1], *images.shape[2:])  # (B, Y, H, W)
        for (b, y, x), coarse in zip(batch, logits.split(1), strict=True):
            total[b, :, y : y + h, x : x + w] += resize_maps(coarse.float(), window)[0]
    for y, x in product(tops, lefts):
        counts[y : y + h, x : x + w] += 1
    if not bool(total.isfinite().all()):
        raise ValueError(
            "the segmenter's logits are not finite; its weights may be damaged, or the precision "
            "too low: try --device.precision 32-true"
        )
    return total.div_(counts)[:, :, :H, :W]


def working_size(size: Size, short: int, long: int | None = None) -> Size:
    """Scale (height, width) to a shorter side of `short`, or less to keep both sides within `long`.

    Halves are rounded up, as in mmcv.
    """
    scale = short / min(size) if long is None else min(short / min(size), long / max(size))
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def rescaled(images: Tensor, size: Size) -> Tensor:
    """Resize images (B, 3, H, W) uint8 bilinearly, without antialiasing as published, to uint8."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return resize_maps(images.float(), size).round_().to(torch.uint8)


@dataclass(frozen=True)
class MapViewConfig:
    """Views of an image for segmentation; the defaults are those published for ADE20K.

    Args:
        mode: use sliding windows, or resize the whole image to the model's input size
        stride: pixels between windows; null for two thirds of the window (341 of 512)
        scales: scales of the image; the published scales for BEiT v1, used with flip, are 0.5,
            0.75, ... 1.75
        flip: add mirror images
        short_side: shorter side of an image at scale 1; null for the model's, 0 for no resizing
        batch_size: windows classified at a time; null for half a million pixels, 2 of 512 x 512
    """

    mode: Literal["slide", "whole"] = "slide"
    stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    short_side: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if not self.scales or not all(scale > 0 for scale in self.scales):
            raise ValueError(f"scales must be one or more numbers above 0, got {self.scales}")
        if self.short_side is not None and self.short_side < 0:
            raise ValueError(f"short_side is {self.short_side}; expected 0 (no resizing) or more")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected 1 window or more")
        if self.mode == "whole" and tuple(self.scales) != (1.0,):
            raise ValueError("scales need mode slide; mode whole has one scale")


class MapPredictor:
    """Predicts label maps of images of any size.

    With several scales or mirror images, the probabilities of all views are averaged at the image's
    own size. With one view, logits are used: the result is the same.
    """

    def __init__(self, window: Size, config: MapViewConfig, padding: Tensor | None = None) -> None:
        """Set up views for a model whose input is (height, width); padding as `sliding_logits`."""
        self.window, self.config, self.padding = window, config, padding
        h, w = (2 * side // 3 if config.stride is None else config.stride for side in window)
        self.stride = h, w
        for side, stride in zip(window, self.stride, strict=True):
            window_starts(side, side, stride)

    def sizes(self, size: Size) -> list[Size]:
        """Return the sizes of the views of an image of (height, width).

        With one scale, the shorter side becomes `short_side`, and the longer side at most four
        times that, as published (2048, 512). With several, the shorter side is not below the
        window's, and the longer side has no limit, as in BEiT v1's `_ms` configurations.
        """
        if self.config.mode == "whole":
            return [self.window]
        window, base = min(self.window), self.config.short_side
        base = window if base is None else base
        shorts = [int((base or min(size)) * scale) for scale in self.config.scales]
        if len(shorts) == 1:
            return [working_size(size, shorts[0], 4 * shorts[0] if base else None)]
        return [working_size(size, max(short, window)) for short in shorts]

    def views(self, images: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Yield each view (B, 3, h, w) of images (B, 3, H, W) uint8, and whether it is mirrored."""
        for size in self.sizes((images.shape[2], images.shape[3])):
            view = rescaled(images, size)
            yield view, False
            if self.config.flip:
                yield view.flip(3), True

    def __call__(self, classify: Classify, images: Tensor) -> Tensor:
        """Predict the class of every pixel of images (B, 3, H, W) uint8: (B, H, W) int64."""
        B, _, H, W = images.shape
        single_view, total = len(self.config.scales) == 1 and not self.config.flip, torch.empty(0)
        for view, mirrored in self.views(images):
            logits = sliding_logits(
                classify, view, self.window, self.stride, self.config.batch_size, self.padding
            )  # (B, Y, h, w)
            parts = strips(logits, (H, W))
            if single_view:
                return torch.cat([strip.argmax(dim=1) for _, strip in parts], dim=1)
            if not len(total):
                total = logits.new_zeros(B, logits.shape[1], H, W)
            for first, strip in parts:
                probabilities = strip.softmax(dim=1)
                rows = slice(first, first + strip.shape[2])
                total[:, :, rows] += probabilities.flip(3) if mirrored else probabilities
            del logits, parts  # may be gigabytes: free them before the next view
        return total.argmax(dim=1)


def strips(logits: Tensor, size: Size, entries: int = STRIP) -> Iterator[tuple[int, Tensor]]:
    """Resize logits (B, Y, h, w) as `resize_maps` does, a strip of rows at a time.

    The full-size logits of a photograph take gigabytes for 150 classes.

    Yields: number of the first row, from 0; (B, Y, rows, W)
    """
    (B, Y, h, _), (H, W) = logits.shape, size
    rows = max(1, entries // (B * Y * W))
    if rows >= H:
        yield 0, resize_maps(logits, size)
        return
    for first in range(0, H, rows):
        row = torch.arange(first, min(first + rows, H), device=logits.device)
        place = ((row + 0.5) * (h / H) - 0.5).clamp(0, h - 1)  # between centres of input rows
        above = place.floor().long()
        below = (above + 1).clamp(max=h - 1)
        weight = (place - above)[:, None].to(logits.dtype)  # (rows, 1)
        strip = torch.lerp(logits[:, :, above], logits[:, :, below], weight)  # (B, Y, rows, w)
        yield first, resize_maps(strip, (len(row), W))

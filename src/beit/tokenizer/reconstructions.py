"""Pictures of what a tokenizer's codes hold of an image: the image beside its reconstruction."""

import math

from torch import Tensor

from beit.draw import canvas
from beit.draw.report import Gallery, Picture
from beit.nn.patches import as_float


def reconstructions(images: Tensor, painted: Tensor, caption: str) -> Gallery:
    """Show each image, what was painted from its codes, and how far apart they are.

    Args:
        images: (B, 3, H, W) uint8 or [0, 1]
        painted: the same shape, uint8 or [0, 1]
        caption: what images these are
    """
    if images.ndim != 4 or images.shape[1] != 3 or painted.shape != images.shape:
        raise ValueError(
            f"images {tuple(images.shape)} and painted {tuple(painted.shape)} "
            "must both be (B, 3, H, W)"
        )
    pictures = []
    for index, (image, copy) in enumerate(zip(images, painted, strict=True)):
        error = (as_float(image).float() - as_float(copy).float()).abs()
        mean_square = float(error.square().mean())
        words = f"PSNR {-10 * math.log10(mean_square):.1f} dB" if mean_square else "no error"
        # Grey by the mean over channels; off by a quarter of the range is black.
        away = (1 - 4 * error.mean(0, keepdim=True)).clamp(0, 1).expand(3, -1, -1)
        panels = [canvas.panel(pixels) for pixels in (image, copy, away)]
        alt = f"Image {index + 1}, what its codes hold of it, and where the two differ: {words}"
        data = canvas.png(canvas.mosaic([panels]))
        pictures.append(Picture(words, alt, data, "image/png"))
    legend = (
        "Left to right: the image, painted from its codes, and their distance, white for none and "
        "black from a quarter of the range on."
    )
    return Gallery(f"{caption} {legend}".strip(), pictures)

"""Pictures of images beside their reconstructions from codes."""

import math

from torch import Tensor

from beit.draw import canvas
from beit.draw.report import Gallery
from beit.nn.patches import as_float


def reconstructions(images: Tensor, painted: Tensor, caption: str) -> Gallery:
    """Show each image, its reconstruction `painted`, and their difference.

    images, painted: (B, 3, H, W) uint8 or [0, 1]; caption: which images these are
    """
    if images.ndim != 4 or images.shape[1] != 3 or painted.shape != images.shape:
        got = f"images {tuple(images.shape)} and painted {tuple(painted.shape)}"
        raise ValueError(f"{got} must both be (B, 3, H, W)")
    pictures = []
    for index, (image, copy) in enumerate(zip(images, painted, strict=True)):
        error = (as_float(image).float() - as_float(copy).float()).abs()
        mean_square = float(error.square().mean())
        words = f"PSNR {-10 * math.log10(mean_square):.1f} dB" if mean_square else "no error"
        # The mean difference over channels; a quarter of the range or more is black.
        difference = (1 - 4 * error.mean(0, keepdim=True)).clamp(0, 1).expand(3, -1, -1)
        panels = [canvas.panel(pixels) for pixels in (image, copy, difference)]
        alt = f"Image {index + 1}, its reconstruction, and their difference: {words}"
        pictures.append(canvas.picture(words, alt, [panels]))
    legend = (
        "Left to right: the image, its reconstruction from codes, and their difference: white for "
        "none, black for a quarter of the range or more."
    )
    return Gallery(f"{caption} {legend}".strip(), pictures)

"""Pictures of images beside their reconstructions from codes."""

import math

from torch import Tensor

from beit.draw import canvas
from beit.draw.report import Gallery
from beit.nn.patches import as_float


def reconstructions(images: Tensor, painted: Tensor, caption: str) -> Gallery:
    """Show each image, its reconstruction `painted`, and their difference.

    images, painted: (B, c, H, W) uint8 or [0, 1]; caption: which images these are
    """
    if images.ndim != 4 or painted.shape != images.shape:
        got = f"images {tuple(images.shape)} and painted {tuple(painted.shape)}"
        raise ValueError(f"{got} must both be (B, c, H, W)")
    pictures = []
    for index, (image, copy) in enumerate(zip(images, painted, strict=True)):
        error = as_float(copy).float() - as_float(image).float()
        mean_square = float(error.square().mean())
        words = f"PSNR {-10 * math.log10(mean_square):.1f} dB" if mean_square else "no error"
        difference = (0.5 + 2 * error).clamp(0, 1)  # a quarter of the range is at an end
        panels = [canvas.panel(pixels) for pixels in (image, copy, difference)]
        alt = f"Image {index + 1}, its reconstruction, and their difference: {words}"
        pictures.append(canvas.picture(words, alt, [panels]))
    legend = (
        "Left to right: the image, its reconstruction from codes, and their difference: grey for "
        "none, lighter where the reconstruction is, by up to a quarter of the range."
    )
    return Gallery(f"{caption} {legend}".strip(), pictures)

"""Pictures of what a pretraining model predicts of hidden patches, whatever its target is."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from beit.draw import canvas
from beit.draw.canvas import Pixels
from beit.draw.numbers import short_number
from beit.draw.report import Gallery, Picture
from beit.draw.tokens import masked_predictions
from beit.nn.mim import take
from beit.nn.targets import FeatureTarget, PixelTarget, Target


def predictions(
    target: Target,
    images: Tensor,
    masked: Tensor,
    predicted: Tensor,
    wanted: Tensor,
    grid: tuple[int, int],
) -> Gallery:
    """Draw masked images and what is predicted of their hidden patches.

    Args:
        images: (B, 3, H, W) uint8
        masked: (B, M) int64, the hidden patches
        predicted: (B, M, K) or (B, M, T), what the model says of them
        wanted: (B, N) int64 or (B, N, T), the truth of all patches
        grid: (Gh, Gw), N = Gh * Gw
    """
    if isinstance(target, PixelTarget):
        caption = "Masked images, and the pixels predicted."
        if target.normalised:
            caption += " Each predicted patch has the true one's mean and deviation."
        painted = target.paint(images, masked, predicted)
        return painted_predictions(images, masked, painted, grid, caption)
    if isinstance(target, FeatureTarget):
        near = F.cosine_similarity(predicted.float(), take(wanted, masked), dim=-1)
        caption = "Masked images, and how near the predicted features came."
        return similarity_maps(images, masked, near, grid, caption)
    caption = "Masked images, their tokens, and the tokens predicted."
    guessed = predicted.argmax(dim=2)
    return masked_predictions(images, masked, guessed, wanted, grid, target.width, caption)


def painted_predictions(
    images: Tensor, masked: Tensor, painted: Tensor, grid: tuple[int, int], caption: str
) -> Gallery:
    """Show each image, what the model saw of it, and the hidden patches as it predicts them.

    Args:
        images: (B, 3, H, W) uint8 or [0, 1]
        masked: (B, M) int64, the hidden patches
        painted: (B, 3, H, W) in [0, 1], the images with the predicted patches in place
        grid: (Gh, Gw)
        caption: what images these are
    """
    if painted.shape != images.shape:
        raise ValueError(f"painted {tuple(painted.shape)} must be {tuple(images.shape)}")
    pictures = []
    for index, (image, with_guess) in enumerate(zip(images, painted, strict=True)):
        seen, view, hidden = _as_seen(image, masked[index], grid)
        guess = canvas.opaque(canvas.panel(with_guess))
        guess[~hidden] = canvas.opaque(seen)[~hidden]  # rounding apart, the same
        alt = (
            f"Image {index + 1}, the image with {masked.shape[1]} patches hidden, and the image "
            "with the predicted patches in their place"
        )
        pixels = canvas.mosaic([[seen, view, guess]])
        words = f"{masked.shape[1]} of {grid[0] * grid[1]} patches predicted"
        pictures.append(Picture(words, alt, canvas.png(pixels), "image/png"))
    legend = "Left to right: the image, what the model saw of it, its prediction in place."
    return Gallery(f"{caption} {legend}".strip(), pictures)


def similarity_maps(
    images: Tensor, masked: Tensor, similarity: Tensor, grid: tuple[int, int], caption: str
) -> Gallery:
    """Show each image, what the model saw of it, and how near its predictions came.

    Args:
        images: (B, 3, H, W) uint8 or [0, 1]
        masked: (B, M) int64, the hidden patches
        similarity: (B, M) in [-1, 1], the cosine of prediction and truth
        grid: (Gh, Gw)
        caption: what images these are
    """
    if similarity.shape != masked.shape:
        raise ValueError(f"similarity {tuple(similarity.shape)} must be {tuple(masked.shape)}")
    pictures = []
    for index, image in enumerate(images):
        seen, view, hidden = _as_seen(image, masked[index], grid)
        near = similarity[index].detach().float().cpu()
        shade = np.zeros(grid[0] * grid[1], np.uint8)
        shade[masked[index].cpu().numpy()] = (near.clamp(0, 1) * 255).round().byte().numpy()
        spread = canvas.cells(shade, grid, seen)
        chart = canvas.opaque(seen)
        chart[..., 3] = 70
        chart[hidden] = np.dstack([spread, spread, spread, np.full_like(spread, 255)])[hidden]
        mean = short_number(float(near.mean()))
        alt = (
            f"Image {index + 1}, what the model saw of it, and the cosines there, {mean} on average"
        )
        pixels = canvas.mosaic([[seen, view, chart]])
        pictures.append(Picture(f"mean cosine {mean}", alt, canvas.png(pixels), "image/png"))
    legend = (
        "Left to right: the image, what the model saw of it, and the cosine of predicted and true "
        "features at hidden patches, black for 0 or less, white for 1."
    )
    return Gallery(f"{caption} {legend}".strip(), pictures)


def _as_seen(
    image: Tensor, masked: Tensor, grid: tuple[int, int]
) -> tuple[Pixels, Pixels, NDArray[np.bool_]]:
    """Give the panel of an image (h, w, 3), the same with its hidden patches grey, and where."""
    seen = canvas.panel(image)
    is_hidden = np.zeros(grid[0] * grid[1], bool)
    is_hidden[masked.cpu().numpy()] = True
    hidden = canvas.cells(is_hidden, grid, seen)  # (h, w)
    view = canvas.opaque(seen)
    view[hidden] = (128, 128, 128, 90)
    return seen, view, hidden

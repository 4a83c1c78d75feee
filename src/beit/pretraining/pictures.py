"""Pictures of a pretraining model's predictions for masked patches, for every kind of target."""

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from beit.draw import canvas
from beit.draw.numbers import short_number
from beit.draw.report import Gallery, Picture
from beit.draw.tokens import masked_predictions
from beit.nn.mim import take
from beit.nn.target_metrics import Target
from beit.nn.targets import FeatureTarget, PixelTarget


def predictions(
    target: Target,
    images: Tensor,
    masked: Tensor,
    predicted: Tensor,
    targets: Tensor,
    grid: tuple[int, int],
) -> Gallery:
    """Draw masked images and the predictions for their masked patches.

    Args:
        images: (B, 3, H, W) uint8
        masked: (B, M) int64, the masked patches
        predicted: (B, M, K) or (B, M, T), the model's output for them
        targets: (B, N) int64 or (B, N, T), the targets of all patches
        grid: (Gh, Gw), N = Gh * Gw
    """
    if isinstance(target, PixelTarget):
        caption = "Masked images and the predicted pixels."
        if target.normalised:
            caption += " Each predicted patch is shown with the true patch's mean and deviation."
        painted = target.paint(images, masked, predicted)
        return painted_predictions(images, masked, painted, grid, caption)
    if isinstance(target, FeatureTarget):
        near = F.cosine_similarity(predicted.float(), take(targets, masked), dim=-1)
        caption = "Masked images and the similarity of predicted and true features."
        return similarity_maps(images, masked, near, grid, caption)
    caption = "Masked images, their tokens and the predicted tokens."
    predicted_codes = predicted.argmax(dim=2)
    return masked_predictions(images, masked, predicted_codes, targets, grid, target.width, caption)


def painted_predictions(
    images: Tensor, masked: Tensor, painted: Tensor, grid: tuple[int, int], caption: str
) -> Gallery:
    """Show each image, its masked version, and the image with the predicted patches.

    Args:
        images: (B, 3, H, W) uint8 or [0, 1]
        masked: (B, M) int64, the masked patches
        painted: (B, 3, H, W) in [0, 1], the images with the predicted patches in place
        grid: (Gh, Gw)
        caption: which images these are
    """
    if painted.shape != images.shape:
        raise ValueError(f"painted {tuple(painted.shape)} must be {tuple(images.shape)}")
    pictures = []
    for index, (image, prediction) in enumerate(zip(images, painted, strict=True)):
        whole, view, hidden = canvas.masked_view(image, masked[index], grid)
        filled = np.where(hidden[..., None], canvas.panel(prediction), whole)
        alt = (
            f"Image {index + 1}, the image with {masked.shape[1]} patches masked, and the image "
            "with the predicted patches in their place"
        )
        pixels = canvas.mosaic([[whole, view, filled]])
        words = f"{masked.shape[1]} of {grid[0] * grid[1]} patches predicted"
        pictures.append(Picture(words, alt, canvas.png(pixels), "image/png"))
    legend = (
        "Left to right: the image, the masked image that the model sees, the image with the "
        "predicted patches."
    )
    return Gallery(f"{caption} {legend}".strip(), pictures)


def similarity_maps(
    images: Tensor, masked: Tensor, similarity: Tensor, grid: tuple[int, int], caption: str
) -> Gallery:
    """Show each image, its masked version, and the similarity of its predictions to the targets.

    Args:
        images: (B, 3, H, W) uint8 or [0, 1]
        masked: (B, M) int64, the masked patches
        similarity: (B, M) in [-1, 1], the cosine of prediction and target
        grid: (Gh, Gw)
        caption: which images these are
    """
    if similarity.shape != masked.shape:
        raise ValueError(f"similarity {tuple(similarity.shape)} must be {tuple(masked.shape)}")
    pictures = []
    for index, image in enumerate(images):
        whole, view, hidden = canvas.masked_view(image, masked[index], grid)
        cosines = similarity[index].detach().float().cpu()
        grey = np.zeros((grid[0] * grid[1], 3), np.uint8)
        shades = (cosines.clamp(0, 1) * 255).round().byte().numpy()
        grey[masked[index].cpu().numpy()] = shades[:, None]
        chart = canvas.opaque(whole)
        chart[..., 3] = 70
        chart[hidden] = canvas.opaque(canvas.cells(grey, grid, whole))[hidden]
        mean = short_number(float(cosines.mean()))
        alt = f"Image {index + 1}, the masked image, and the cosines there, {mean} on average"
        pixels = canvas.mosaic([[whole, view, chart]])
        pictures.append(Picture(f"mean cosine {mean}", alt, canvas.png(pixels), "image/png"))
    legend = (
        "Left to right: the image, the masked image that the model sees, and the cosine of "
        "predicted and true features at masked patches: black for 0 or less, white for 1."
    )
    return Gallery(f"{caption} {legend}".strip(), pictures)

"""Pictures of a pretraining model's predictions for masked patches, for every kind of target."""

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from beit.draw import canvas
from beit.draw.components import codebook_colours
from beit.draw.numbers import short_number
from beit.draw.report import Gallery
from beit.draw.tokens import masked_predictions
from beit.nn.code_statistics import code_vectors
from beit.nn.patches import take
from beit.nn.target import Target
from beit.nn.targets import FeatureTarget, PixelTarget, TokenTarget

_LEGEND = "Left to right: the image, the masked image that the model sees,"


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
    assert isinstance(target, TokenTarget)
    colours = codebook_colours(code_vectors(target.tokenizer))
    return masked_predictions(images, masked, predicted, targets, grid, colours, caption)


def painted_predictions(
    images: Tensor, masked: Tensor, painted: Tensor, grid: tuple[int, int], caption: str
) -> Gallery:
    """Show each image, its masked version, and the image with the predicted patches.

    Args as for `predictions`; painted: (B, 3, H, W) in [0, 1], with the predicted patches in place.
    """
    if painted.shape != images.shape:
        raise ValueError(f"painted {tuple(painted.shape)} must be {tuple(images.shape)}")
    M, pictures = masked.shape[1], []
    for index, (image, prediction) in enumerate(zip(images, painted, strict=True)):
        whole, view, hidden = canvas.masked_view(image, masked[index], grid)
        filled = np.where(hidden[..., None], canvas.panel(prediction), whole)
        words = f"{M} of {grid[0] * grid[1]} patches predicted"
        alt = (
            f"Image {index + 1}, the image with {M} patches masked, and the image "
            "with the predicted patches in their place"
        )
        pictures.append(canvas.picture(words, alt, [[whole, view, filled]]))
    return Gallery(f"{caption} {_LEGEND} the image with the predicted patches.".strip(), pictures)


def similarity_maps(
    images: Tensor, masked: Tensor, similarity: Tensor, grid: tuple[int, int], caption: str
) -> Gallery:
    """Show each image, its masked version, and the similarity of its predictions to the targets.

    Args as for `predictions`; similarity: (B, M) in [-1, 1], the cosine of prediction and target.
    """
    if similarity.shape != masked.shape:
        raise ValueError(f"similarity {tuple(similarity.shape)} must be {tuple(masked.shape)}")
    pictures = []
    for index, (image, places) in enumerate(zip(images, masked, strict=True)):
        whole, view, hidden = canvas.masked_view(image, places, grid)
        cosines = similarity[index].detach().float().cpu()
        greys = np.zeros((grid[0] * grid[1], 3), np.uint8)
        greys[places.cpu().numpy()] = (cosines.clamp(0, 1)[:, None] * 255).round().byte().numpy()
        chart = canvas.over_masked(greys, grid, whole, hidden)
        mean = short_number(float(cosines.mean()))
        alt = f"Image {index + 1}, the masked image, and the cosines there, {mean} on average"
        pictures.append(canvas.picture(f"mean cosine {mean}", alt, [[whole, view, chart]]))
    legend = (
        f"{_LEGEND} and the cosine of predicted and true features at masked patches: "
        "black for 0 or less, white for 1."
    )
    return Gallery(f"{caption} {legend}".strip(), pictures)

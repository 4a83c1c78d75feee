"""Panels of tokens: token maps, masked input, predictions, features."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.draw import canvas
from beit.draw.components import Components, feature_colours
from beit.draw.panels import Panel, heat

WORDS_UP_TO = 6  # cells in a row; with more, code numbers would be too small to read
HIDDEN = (150, 150, 150)
FADED = 0.72  # share of white in visible patches
SMALL = 0.3  # depth in a cell at which the small square of a wrong token begins

Colours = NDArray[np.uint8]


class Predictions(NamedTuple):
    """The predictions of a model for one image's hidden patches.

    Attributes:
        masked: (M,) int64, the hidden patches
        codes: (M,) int64, the most probable code of each
        probability: (M,) of that code
        true_probability: (M,) of the true code
    """

    masked: Tensor
    codes: Tensor
    probability: Tensor
    true_probability: Tensor

    def correct(self, codes: Tensor) -> Tensor:
        """Compare with the true codes (N,): (M,) bool."""
        return self.codes == codes[self.masked]


def with_predictions(codes: Tensor, predictions: Sequence[Predictions]) -> Tensor:
    """Replace the codes (B, N) of hidden patches by the predicted ones: (B, N)."""
    masked = torch.stack([prediction.masked for prediction in predictions])
    return codes.scatter(1, masked, torch.stack([prediction.codes for prediction in predictions]))


def token_panels(
    image: Tensor, codes: Tensor, grid: tuple[int, int], colours: Colours
) -> list[Panel]:
    """Return panels of an image, its tokens, and both blended.

    Args:
        image: (3, H, W) uint8 or [0, 1]
        codes: (N,) int64
        grid: (Gh, Gw), N = Gh * Gw
        colours: (K, 3), one for each code
    """
    pixels, row = canvas.panel(image), codes.cpu().numpy()
    tokens = canvas.cells(colours[row], grid, pixels)
    distinct = f"{len(np.unique(row))} codes, {len(row)} patches"
    return [
        Panel(pixels, "image"),
        Panel(tokens, "tokens", distinct, _numbers(row, grid), grid),
        Panel(canvas.blend(pixels, tokens, 0.5), "both"),
    ]


def prediction_panels(
    image: Tensor,
    codes: Tensor,
    predictions: Predictions,
    grid: tuple[int, int],
    colours: Colours,
    highest: float,
) -> list[Panel]:
    """Return panels of an image, the masked input, true and predicted tokens and probabilities.

    A correct token fills its patch; a wrong one is a small square.

    Args:
        image: (3, H, W) uint8 or [0, 1]
        codes: (N,) int64, the true tokens of all patches
        predictions: for the hidden patches
        grid: (Gh, Gw)
        colours: (K, 3)
        highest: probability at the top of the colour scale
    """
    pixels, true, masked = canvas.panel(image), codes.cpu().numpy(), predictions.masked.numpy()
    predicted = true.copy()
    predicted[masked] = predictions.codes.numpy()
    is_hidden = np.zeros(len(true), bool)
    is_hidden[masked] = True
    hidden = canvas.cells(is_hidden, grid, pixels)  # (h, w)
    faded = canvas.blend(pixels, np.full_like(pixels, 255), FADED)
    view, true_map, predicted_map = pixels.copy(), faded.copy(), faded.copy()
    view[hidden] = HIDDEN
    true_map[hidden] = canvas.cells(colours[true], grid, pixels)[hidden]
    predicted_map[hidden] = canvas.cells(colours[predicted], grid, pixels)[hidden]
    wrong = hidden & canvas.cells(predicted != true, grid, pixels)
    predicted_map[wrong & (canvas.depth_in_cell(grid, pixels) < SMALL)] = 255
    correct = f"{int(predictions.correct(codes).sum())} of {len(masked)} correct"
    panels = [
        Panel(pixels, "image"),
        Panel(view, "masked input", f"{len(masked)} of {len(true)} hidden"),
        Panel(true_map, "true tokens", "", _numbers(true, grid, is_hidden), grid),
        Panel(predicted_map, "predicted", correct, _numbers(predicted, grid, is_hidden), grid),
    ]
    for title, probability in (
        ("p(predicted)", predictions.probability),
        ("p(true)", predictions.true_probability),
    ):
        values = np.zeros(len(true))
        values[masked] = probability.detach().float().numpy()
        map_ = faded.copy()
        map_[hidden] = canvas.cells(heat(values / highest), grid, faded)[hidden]
        percents = [
            f"{value:.0%}" if shown else "" for value, shown in zip(values, is_hidden, strict=True)
        ]
        words = percents if grid[1] <= WORDS_UP_TO else []
        panels.append(Panel(map_, title, f"mean {values[masked].mean():.1%}", words, grid))
    return panels


def feature_panels(
    image: Tensor,
    features: Mapping[str, Tensor],
    grid: tuple[int, int],
    fitted: Mapping[str, Components],
) -> list[Panel]:
    """Return panels of an image and of features (N, T) in three principal components.

    Args:
        image: (3, H, W) uint8 or [0, 1]
        features: by title
        grid: (Gh, Gw)
        fitted: the components of each; maps with the same components can be compared
    """
    pixels = canvas.panel(image)
    colours = {title: feature_colours(rows, fitted[title]) for title, rows in features.items()}
    maps = [Panel(canvas.cells(rgb, grid, pixels), title) for title, rgb in colours.items()]
    return [Panel(pixels, "image"), *maps]


def _numbers(
    codes: NDArray[np.int64], grid: tuple[int, int], shown: NDArray[np.bool_] | None = None
) -> list[str]:
    """Return the number of each shown code as text, if the cells are large enough."""
    if grid[1] > WORDS_UP_TO:
        return []
    return [str(code) if shown is None or shown[i] else "" for i, code in enumerate(codes)]

"""Tokens as panels of a figure: maps, masked input, predictions, rebuilt images, features."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.draw import canvas
from beit.draw.components import Components, feature_colours
from beit.draw.panels import Panel, heat

WORDS_UP_TO = 6  # cells in a row: in more of them, code numbers could not be read
HIDDEN = (150, 150, 150)
FADED = 0.72  # how white what is not asked about becomes
SMALL = 0.3  # depth in a cell from which a wrong token's small square begins

Colours = NDArray[np.uint8]


class Guesses(NamedTuple):
    """What a model says of one image's hidden patches.

    Attributes:
        masked: (M,) int64, the hidden patches
        predicted: (M,) int64, the likeliest code of each
        probability: (M,) of that code
        of_truth: (M,) of the true code
    """

    masked: Tensor
    predicted: Tensor
    probability: Tensor
    of_truth: Tensor


def with_guesses(codes: Tensor, guesses: Sequence[Guesses]) -> Tensor:
    """Put the predicted codes in the place of the hidden patches' true ones: (B, N)."""
    masked = torch.stack([guess.masked for guess in guesses])
    return codes.scatter(1, masked, torch.stack([guess.predicted for guess in guesses]))


def token_panels(
    image: Tensor, codes: Tensor, grid: tuple[int, int], colours: Colours
) -> list[Panel]:
    """Show an image, its tokens, and the one over the other.

    Args:
        image: (3, H, W) uint8 or [0, 1]
        codes: (N,) int64
        grid: (Gh, Gw), N = Gh * Gw
        colours: (K, 3), one for each code
    """
    seen, row = canvas.panel(image), codes.cpu().numpy()
    tokens = canvas.cells(colours[row], grid, seen)
    distinct = f"{len(np.unique(row))} codes, {len(row)} patches"
    return [
        Panel(seen, "image"),
        Panel(tokens, "tokens", distinct, _numbers(row, grid), grid),
        Panel(canvas.blend(seen, tokens, 0.5), "both"),
    ]


def prediction_panels(
    image: Tensor,
    codes: Tensor,
    guesses: Guesses,
    grid: tuple[int, int],
    colours: Colours,
    highest: float,
) -> list[Panel]:
    """Show an image, what the model saw of it, true and predicted tokens, and how likely they are.

    A predicted token fills its patch where it is right and is a small square where it is wrong.

    Args:
        codes: (N,) int64, the true tokens of all patches
        highest: probability that has the highest colour
    """
    seen, true = canvas.panel(image), codes.cpu().numpy()
    masked, predicted = guesses.masked.cpu().numpy(), guesses.predicted.cpu().numpy()
    faded = canvas.blend(seen, np.full_like(seen, 255), FADED)
    is_hidden = np.zeros(len(true), bool)
    is_hidden[masked] = True
    hidden = canvas.cells(is_hidden, grid, seen)  # (h, w)
    view, truth, guess = seen.copy(), faded.copy(), faded.copy()
    view[hidden] = HIDDEN
    truth[hidden] = canvas.cells(colours[true], grid, seen)[hidden]
    guessed = true.copy()
    guessed[masked] = predicted
    guess[hidden] = canvas.cells(colours[guessed], grid, seen)[hidden]
    wrong = hidden & canvas.cells(guessed != true, grid, seen)
    guess[wrong & (canvas.depth_in_cell(grid, seen) < SMALL)] = 255
    hits = int((predicted == true[masked]).sum())
    return [
        Panel(seen, "image"),
        Panel(view, "masked input", f"{len(masked)} of {len(true)} hidden"),
        Panel(truth, "true tokens", "", _numbers(true, grid, is_hidden), grid),
        Panel(
            *(guess, "predicted", f"{hits} of {len(masked)} right"),
            *(_numbers(guessed, grid, is_hidden), grid),
        ),
        _likelihood("p(predicted)", guesses.probability, masked, hidden, faded, grid, highest),
        _likelihood("p(true)", guesses.of_truth, masked, hidden, faded, grid, highest),
    ]


def feature_panels(
    image: Tensor,
    features: Mapping[str, Tensor],
    grid: tuple[int, int],
    fitted: Mapping[str, Components],
) -> list[Panel]:
    """Show an image and maps of features (N, T) in their first three principal components.

    Args:
        features: by title
        fitted: the components that each of them is seen in; maps with the same can be compared
    """
    seen = canvas.panel(image)
    panels = [Panel(seen, "image")]
    for title, rows in features.items():
        panels.append(Panel(canvas.cells(feature_colours(rows, fitted[title]), grid, seen), title))
    return panels


def _likelihood(
    title: str,
    probability: Tensor,
    masked: NDArray[np.int64],
    hidden: NDArray[np.bool_],
    faded: canvas.Pixels,
    grid: tuple[int, int],
    highest: float,
) -> Panel:
    """Colour the hidden patches by a probability (M,), and write it into large ones."""
    values = np.zeros(grid[0] * grid[1])
    values[masked] = probability.detach().float().cpu().numpy()
    pixels = faded.copy()
    pixels[hidden] = canvas.cells(heat(values / highest), grid, faded)[hidden]
    words = [""] * len(values)
    if grid[1] <= WORDS_UP_TO:
        for place in masked:
            words[place] = f"{values[place]:.0%}"
    return Panel(pixels, title, f"mean {values[masked].mean():.1%}", words, grid)


def _numbers(
    codes: NDArray[np.int64], grid: tuple[int, int], where: NDArray[np.bool_] | None = None
) -> list[str]:
    """Write the number of each code, where the cells are large enough."""
    if grid[1] > WORDS_UP_TO:
        return []
    return [str(c) if where is None or where[i] else "" for i, c in enumerate(codes)]

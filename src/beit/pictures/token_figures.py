"""The figures of `beit visualise tokens`: token maps, predictions, features; and their sections."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from beit.draw import canvas
from beit.draw.components import Components, components, directions, feature_colours
from beit.draw.panels import Panel, heat
from beit.draw.report import Cell, Section, Table
from beit.pictures.images import WORDS_UP_TO, image_figures

HIDDEN = (150, 150, 150)
TOKEN_TEXT = (
    "Each patch has the colour of its code. Codes near each other in the codebook have similar "
    "colours: from dark to light along its first principal component, from blue to yellow along "
    "the second, from green to red along the third. The colours do not depend on the images."
)
PREDICTION_TEXT = (
    "Grey patches are hidden from the model. Similar codes have similar colours; a frame marks a "
    "prediction that is exactly right. On the right are the probabilities of the predicted and "
    "the true token."
)

Colours = NDArray[np.uint8]


class Predictions(NamedTuple):
    """The predictions of a model for the hidden patches of images (B, M), or of one image (M,).

    Attributes:
        masked: int64, the hidden patches
        codes: int64, the most probable code of each
        probability: of that code
        true_probability: of the true code
    """

    masked: Tensor
    codes: Tensor
    probability: Tensor
    true_probability: Tensor

    def each(self) -> "list[Predictions]":
        """Return the predictions of each image."""
        return [Predictions(*parts) for parts in zip(*self, strict=True)]

    def correct(self, codes: Tensor) -> Tensor:
        """Compare with the true codes (B, N): (B, M) bool."""
        return self.codes == codes.gather(-1, self.masked)

    def filled(self, codes: Tensor) -> Tensor:
        """Replace the codes (B, N) of hidden patches by the predicted ones: (B, N)."""
        return codes.scatter(-1, self.masked, self.codes)


# ── panels of one image ─────────────────────────────────────────────────────────────────────────


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
        Panel(tokens, "tokens", distinct, _words(row, grid), grid),
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

    A frame marks a correct token. Arguments as for `token_panels`; `highest` is the probability at
    the top of the colour scale.
    """
    pixels, true, masked = canvas.panel(image), codes.cpu().numpy(), predictions.masked.numpy()
    predicted = predictions.filled(codes.cpu()).numpy()
    is_hidden = np.zeros(len(true), bool)
    is_hidden[masked] = True
    hidden = canvas.cells(is_hidden, grid, pixels)  # (h, w)

    def in_hidden(patches: Colours) -> canvas.Pixels:
        return canvas.over_masked(patches, grid, pixels, hidden)

    view, predicted_map = pixels.copy(), in_hidden(colours[predicted])
    view[hidden] = HIDDEN
    right = hidden & canvas.cells(predicted == true, grid, pixels)
    canvas.mark(predicted_map, right, grid)
    correct = f"{int(predictions.correct(codes).sum())} of {len(masked)} correct"
    true_words, predicted_words = (_words(row, grid, is_hidden) for row in (true, predicted))
    panels = [
        Panel(pixels, "image"),
        Panel(view, "masked input", f"{len(masked)} of {len(true)} hidden"),
        Panel(in_hidden(colours[true]), "true tokens", "", true_words, grid),
        Panel(predicted_map, "predicted", correct, predicted_words, grid),
    ]
    for title, probability in (
        ("p(predicted)", predictions.probability),
        ("p(true)", predictions.true_probability),
    ):
        values = np.zeros(len(true))
        values[masked] = probability.detach().float().numpy()
        words = _words((f"{value:.0%}" for value in values), grid, is_hidden)
        mean = f"mean {values[masked].mean():.1%}"
        panels.append(Panel(in_hidden(heat(values / highest)), title, mean, words, grid))
    return panels


def feature_panels(
    image: Tensor,
    features: Mapping[str, Tensor],
    grid: tuple[int, int],
    fitted: Mapping[str, Components],
) -> list[Panel]:
    """Return panels of an image and of features (N, T), by title, in their fitted components."""
    pixels = canvas.panel(image)
    colours = {title: feature_colours(rows, fitted[title]) for title, rows in features.items()}
    maps = [Panel(canvas.cells(rgb, grid, pixels), title) for title, rgb in colours.items()]
    return [Panel(pixels, "image"), *maps]


def _words(
    words: Iterable[object], grid: tuple[int, int], shown: NDArray[np.bool_] | None = None
) -> list[str]:
    """Return the words of the shown cells as text, if the cells are large enough."""
    if grid[1] > WORDS_UP_TO:
        return []
    return [str(word) if shown is None or shown[i] else "" for i, word in enumerate(words)]


# ── sections of the page ────────────────────────────────────────────────────────────────────────


def token_section(
    output: Path,
    images: Tensor,
    codes: Tensor,
    grid: tuple[int, int],
    colours: Colours,
    painted: Mapping[str, Tensor],
) -> Section:
    """Draw images (B, 3, H, W) with their tokens (B, N) into the folder `output`.

    painted: images (B, 3, H, W) decoded from tokens, by title
    """
    rows = [token_panels(i, c, grid, colours) for i, c in zip(images, codes, strict=True)]
    for title, copies in painted.items():
        each = zip(rows, copies, strict=True)
        rows = [[*row, Panel(canvas.panel(copy), title)] for row, copy in each]
    title = f"Images and their tokens, {len(colours)} codes"
    return Section("Tokens", TOKEN_TEXT, image_figures(output, "tokens", title, rows))


def prediction_section(
    output: Path,
    images: Tensor,
    codes: Tensor,
    predictions: Predictions,
    grid: tuple[int, int],
    colours: Colours,
) -> Section:
    """Draw masked images with true and predicted tokens; arguments as for `token_section`."""
    highest = float(predictions.probability.max())
    rows = [
        prediction_panels(*row, grid, colours, highest)
        for row in zip(images, codes, predictions.each(), strict=True)
    ]
    title, ends = "Masked images and predicted tokens", ("0", f"{highest:.0%}")
    figures = image_figures(output, "predictions", title, rows, "probability of a token", ends)
    return Section("Predictions", PREDICTION_TEXT, figures)


def feature_section(
    output: Path, images: Tensor, features: Mapping[str, Tensor], grid: tuple[int, int]
) -> Section:
    """Draw images and their features (B, N, T), by title, in three principal components."""
    fitted = fitted_to(features)
    rows = [
        feature_panels(image, {t: f[n] for t, f in features.items()}, grid, fitted)
        for n, image in enumerate(images)
    ]
    title = "Features of patches, first three principal components"
    figures = image_figures(output, "features", title, rows)
    first = next(iter(features))
    text = (
        "The first three principal components of the features' directions: from dark to light, "
        "from blue to yellow, from green to red. Each map has its own range. "
    )
    if len(features) > 1 and all(each.axes is fitted[first].axes for each in fitted.values()):
        text += f"All maps use the components of the {first}'s features. "
    shares = ", ".join(f"{share:.0%}" for share in fitted[first].shares.tolist())
    text += f"The components explain {shares} of the variance of the {first}'s features."
    return Section("Features", text, figures)


def fitted_to(features: Mapping[str, Tensor]) -> dict[str, Components]:
    """Return the components to show features (B, N, T) in, by title.

    All use those of the first, each with its own range; those with another T use their own.
    """
    rows = {title: directions(vectors) for title, vectors in features.items()}
    first = components(next(iter(rows.values())))
    return {
        title: first.spanning(r) if r.shape[1] == len(first.mean) else components(r)
        for title, r in rows.items()
    }


def token_table(names: Sequence[str], codes: Tensor, predictions: Predictions | None) -> Table:
    """List the images and the metrics of their codes (B, N), in the order of the figures."""
    columns = ["image", "file", "different codes"]
    images = enumerate(zip(names, codes, strict=True), 1)
    rows: list[list[Cell]] = [[n, name, len(row.unique())] for n, (name, row) in images]
    if predictions is not None:
        columns += ["hidden", "correct", "probability of predictions, %", "of true tokens, %"]
        for cells, row, one in zip(rows, codes, predictions.each(), strict=True):
            means = [
                round(float(100 * p.mean()), 1) for p in (one.probability, one.true_probability)
            ]
            cells += [len(one.masked), int(one.correct(row).sum()), *means]
    return Table("Numbered as in the figures.", columns, rows)


def summary_figures(codes: Tensor, predictions: Predictions | None) -> dict[str, str]:
    """Return the main numbers of the codes (B, N), for the top of the page."""
    figures = {"images": str(len(codes)), "different codes": str(len(codes.unique()))}
    if predictions is not None:
        correct = predictions.correct(codes)
        figures["hidden tokens correct"] = f"{int(correct.sum())} of {correct.numel()}"
    return figures

"""The sections of the page of `beit visualise tokens`; each figure is saved as PNG and SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from beit.draw import canvas
from beit.draw.components import Components, components, directions
from beit.draw.panels import Panel, draw_panels
from beit.draw.report import Cell, Item, Section, Table
from beit.pictures.images import saved_picture
from beit.pictures.token_panels import (
    Colours,
    Predictions,
    feature_panels,
    prediction_panels,
    token_panels,
)

IMAGES_PER_FIGURE = 6
TOKEN_TEXT = (
    "Each patch has the colour of its code. Codes near each other in the codebook have similar "
    "colours: from dark to light along its first principal component, from blue to yellow along "
    "the second, from green to red along the third. The colours do not depend on the images."
)
PREDICTION_TEXT = (
    "Grey patches are hidden from the model. A correct prediction fills its patch, a wrong one "
    "is a small square; similar codes have similar colours. On the right are the probabilities of "
    "the predicted and the true token."
)


def token_section(
    output: Path,
    images: Tensor,
    codes: Tensor,
    grid: tuple[int, int],
    colours: Colours,
    painted: Mapping[str, Tensor],
) -> Section:
    """Draw images with their tokens.

    Args:
        output: folder of the figures
        images: (B, 3, H, W)
        codes: (B, N)
        grid: (Gh, Gw)
        colours: (K, 3)
        painted: images (B, 3, H, W) decoded from tokens, by title
    """
    rows = [token_panels(i, c, grid, colours) for i, c in zip(images, codes, strict=True)]
    for title, copies in painted.items():
        each = zip(rows, copies, strict=True)
        rows = [[*row, Panel(canvas.panel(copy), title)] for row, copy in each]
    title = f"Images and their tokens, {len(colours)} codes"
    return Section("Tokens", TOKEN_TEXT, _figures(output, "tokens", title, rows))


def prediction_section(
    output: Path,
    images: Tensor,
    codes: Tensor,
    predictions: Sequence[Predictions],
    grid: tuple[int, int],
    colours: Colours,
) -> Section:
    """Draw masked images with true and predicted tokens; arguments as for `token_section`."""
    highest = max(float(prediction.probability.max()) for prediction in predictions)
    rows = [
        prediction_panels(image, codes[n], predictions[n], grid, colours, highest)
        for n, image in enumerate(images)
    ]
    title, ends = "Masked images and predicted tokens", ("0", f"{highest:.0%}")
    figures = _figures(output, "predictions", title, rows, "probability of a token", ends)
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
    figures = _figures(output, "features", title, rows)
    return Section("Features", _feature_text(features, fitted), figures)


def fitted_to(features: Mapping[str, Tensor]) -> dict[str, Components]:
    """Return the components to show features (B, N, T) in, by title.

    All use those of the first, each with its own range; those with another T use their own.
    """
    rows = {title: directions(vectors) for title, vectors in features.items()}
    first = components(next(iter(rows.values())))
    return {
        title: first.spanning(vectors)
        if vectors.shape[1] == len(first.mean)
        else components(vectors)
        for title, vectors in rows.items()
    }


def token_table(
    names: Sequence[str], codes: Tensor, predictions: Sequence[Predictions] | None
) -> Table:
    """List the images with their metrics, in the order of the figures."""
    rows: list[list[Cell]] = []
    for number, (name, row) in enumerate(zip(names, codes, strict=True), 1):
        cells: list[Cell] = [number, name, len(row.unique())]
        if predictions is not None:
            prediction = predictions[number - 1]
            cells += [len(prediction.masked), int(prediction.correct(row).sum())]
            cells += [float(100 * prediction.probability.mean())]
            cells += [float(100 * prediction.true_probability.mean())]
        rows.append(cells)
    columns = ["image", "file", "different codes"]
    if predictions is not None:
        columns += ["hidden", "correct", "probability of predictions, %", "of true tokens, %"]
    return Table("Numbered as in the figures.", columns, rows)


def summary_figures(codes: Tensor, predictions: Sequence[Predictions] | None) -> dict[str, str]:
    """Return the main numbers, for the top of the page."""
    figures = {"images": str(len(codes)), "different codes": str(len(codes.unique()))}
    if predictions is not None:
        pairs = zip(predictions, codes, strict=True)
        correct = torch.cat([prediction.correct(row) for prediction, row in pairs])
        figures["hidden tokens correct"] = f"{int(correct.sum())} of {len(correct)}"
    return figures


def _figures(
    output: Path,
    name: str,
    title: str,
    rows: Sequence[Sequence[Panel]],
    bar: str = "",
    ends: tuple[str, str] = ("0", "largest"),
) -> list[Item]:
    """Draw a line of panels for each image, save the figures and return their pictures."""
    pictures: list[Item] = []
    for first in range(0, len(rows), IMAGES_PER_FIGURE):
        part = list(rows[first : first + IMAGES_PER_FIGURE])
        labels = [f"image {first + index + 1}" for index in range(len(part))]
        part = [part[0], *([panel._replace(title="") for panel in row] for row in part[1:])]
        drawing = draw_panels(part, title, labels=labels, bar=bar, bar_ends=ends)
        number = first // IMAGES_PER_FIGURE + 1
        file = name if len(rows) <= IMAGES_PER_FIGURE else f"{name}-{number:02d}"
        alt = f"{title}: images {first + 1} to {first + len(part)}"
        pictures.append(saved_picture(drawing, output, file, alt))
    return pictures


def _feature_text(features: Mapping[str, Tensor], fitted: Mapping[str, Components]) -> str:
    """Explain the colours of the features."""
    first = next(iter(features))
    shares = ", ".join(f"{share:.0%}" for share in fitted[first].shares.tolist())
    shared = all(fitted[title].axes is fitted[first].axes for title in features)
    text = (
        "The first three principal components of the features' directions: from dark to light, "
        "from blue to yellow, from green to red. Each map has its own range. "
    )
    if len(features) > 1 and shared:
        text += f"All maps use the components of the {first}'s features. "
    return f"{text}The components explain {shares} of the variance of the {first}'s features."

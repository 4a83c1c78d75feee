"""The page of `beit visualise tokens`: chapters of figures, each saved as PNG and SVG as well."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from beit.draw import canvas
from beit.draw.components import Components, components, directions
from beit.draw.panels import Panel, draw_panels
from beit.draw.report import Cell, Item, Picture, Section, Table
from beit.pictures.token_panels import (
    Colours,
    Guesses,
    feature_panels,
    prediction_panels,
    token_panels,
)

PAGE = 6  # images in one figure
TOKEN_WORDS = (
    "Each patch has the colour of its code. Codes that are near in the codebook have like colours: "
    "along its first principal component from dark to light, along the second from blue to yellow, "
    "along the third from green to red. The colours belong to this codebook, whatever the images."
)
PREDICTION_WORDS = (
    "Grey patches are hidden from the model. A predicted token fills its patch where it is right, "
    "and is a small square where it is wrong; near misses have like colours. Further right, how "
    "likely the model holds its guess and the true token."
)


def token_chapter(
    output: Path,
    images: Tensor,
    codes: Tensor,
    grid: tuple[int, int],
    colours: Colours,
    painted: Mapping[str, Tensor],
) -> Section:
    """Draw images (B, 3, H, W) and their tokens (B, N), and what was painted from them, by title.

    Args:
        output: folder of the figures
        grid: (Gh, Gw)
        colours: (K, 3)
        painted: (B, 3, H, W) each
    """
    rows = [token_panels(i, c, grid, colours) for i, c in zip(images, codes, strict=True)]
    for title, copies in painted.items():
        each = zip(rows, copies, strict=True)
        rows = [[*row, Panel(canvas.panel(copy), title)] for row, copy in each]
    title = f"Images and their tokens, {len(colours)} codes"
    return Section("Tokens", TOKEN_WORDS, _pages(output, "tokens", title, rows))


def prediction_chapter(
    output: Path,
    images: Tensor,
    codes: Tensor,
    guesses: Sequence[Guesses],
    grid: tuple[int, int],
    colours: Colours,
) -> Section:
    """Draw masked images, their true tokens and those predicted; arguments as `token_chapter`."""
    highest = max(float(guess.probability.max()) for guess in guesses)
    rows = [
        prediction_panels(image, codes[n], guesses[n], grid, colours, highest)
        for n, image in enumerate(images)
    ]
    title, ends = "Masked images and the tokens predicted", ("0", f"{highest:.0%}")
    pages = _pages(output, "predictions", title, rows, "probability of a token", ends)
    return Section("Predictions", PREDICTION_WORDS, pages)


def feature_chapter(
    output: Path, images: Tensor, features: Mapping[str, Tensor], grid: tuple[int, int]
) -> Section:
    """Draw images beside their features (B, N, T), by title, in three principal components."""
    fitted = fitted_to(features)
    rows = [
        feature_panels(image, {t: f[n] for t, f in features.items()}, grid, fitted)
        for n, image in enumerate(images)
    ]
    title = "Features of patches, first three principal components"
    pages = _pages(output, "features", title, rows)
    return Section("Features", _feature_words(features, fitted), pages)


def fitted_to(features: Mapping[str, Tensor]) -> dict[str, Components]:
    """Find the components that features (B, N, T) by title are seen in.

    All in those of the first, each over its own extent; in their own where T differs.
    """
    rows = {title: directions(vectors) for title, vectors in features.items()}
    first = components(next(iter(rows.values())))
    return {
        title: first.spanning(vectors)
        if vectors.shape[1] == len(first.mean)
        else components(vectors)
        for title, vectors in rows.items()
    }


def token_table(names: Sequence[str], codes: Tensor, guesses: Sequence[Guesses] | None) -> Table:
    """List the images with their figures, in the order of the pictures."""
    rows: list[list[Cell]] = []
    for number, (name, row) in enumerate(zip(names, codes, strict=True), 1):
        cells: list[Cell] = [number, name, len(row.unique())]
        if guesses is not None:
            guess = guesses[number - 1]
            right = int((guess.predicted == row[guess.masked]).sum())
            likely = [float(100 * share.mean()) for share in (guess.probability, guess.of_truth)]
            cells += [len(guess.masked), right, *likely]
        rows.append(cells)
    columns = ["image", "file", "different codes"]
    if guesses is not None:
        columns += ["hidden", "right", "probability of guesses, %", "of true tokens, %"]
    return Table("Numbered as in the figures.", columns, rows)


def told(codes: Tensor, guesses: Sequence[Guesses] | None) -> dict[str, str]:
    """Say the few figures that stand above the page."""
    told = {"images": str(len(codes)), "different codes": str(len(codes.unique()))}
    if guesses is not None:
        hits = [g.predicted == row[g.masked] for g, row in zip(guesses, codes, strict=True)]
        right = torch.cat(hits)
        told["hidden tokens right"] = f"{int(right.sum())} of {len(right)}"
    return told


def _pages(
    output: Path,
    name: str,
    title: str,
    rows: Sequence[Sequence[Panel]],
    bar: str = "",
    ends: tuple[str, str] = ("0", "largest"),
) -> list[Item]:
    """Draw a line for each image, so many on a figure; save and return the figures."""
    pictures: list[Item] = []
    for first in range(0, len(rows), PAGE):
        part = list(rows[first : first + PAGE])
        labels = [f"image {first + index + 1}" for index in range(len(part))]
        part = [part[0], *([panel._replace(title="") for panel in row] for row in part[1:])]
        drawing = draw_panels(part, title, labels=labels, bar=bar, bar_ends=ends)
        file = name if len(rows) <= PAGE else f"{name}-{first // PAGE + 1:02d}"
        drawing.save(output, file)
        alt = f"{title}: images {first + 1} to {first + len(part)}"
        pictures.append(Picture(f"{file}.png, {file}.svg", alt, drawing.png, "image/png"))
    return pictures


def _feature_words(features: Mapping[str, Tensor], fitted: Mapping[str, Components]) -> str:
    """Say what the colours of the features mean."""
    first = next(iter(features))
    told = ", ".join(f"{share:.0%}" for share in fitted[first].shares.tolist())
    alike = all(fitted[title].axes is fitted[first].axes for title in features)
    words = (
        "The first three principal components of the features' directions, from dark to light, "
        "from blue to yellow, from green to red, each map over its own extent. "
    )
    if len(features) > 1 and alike:
        words += f"All maps are seen along the components of the {first}'s features. "
    return f"{words}These hold {told} of the variance of the {first}'s features."

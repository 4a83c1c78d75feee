"""The codebook laid out in two dimensions, each code drawn as its mean patch."""

import logging
import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.codebook.contents import Codebook
from beit.codebook.style import DPI, WIDTH, SavedFigure, new_figure, saved
from beit.draw import canvas
from beit.draw.canvas import Pixels
from beit.nn.quantizer import unit

logger = logging.getLogger(__name__)

Layout = Literal["tsne", "none"]
MIN_TSNE = 5  # codes; fewer have no neighbourhoods to preserve
_SIDE = round(0.92 * WIDTH * DPI)  # pixels of the map


class Layouts(NamedTuple):
    """The used codes of a codebook in two dimensions.

    Attributes:
        codes: (k,) int64, most used first
        components: (k, 2) float32, by principal components
        shares: (2,) float32, of the variance that they explain
        near: (k, 2) float32, by t-SNE; None without
        why_not: why there is no t-SNE; empty if there is one, or none is wanted
    """

    codes: Tensor
    components: Tensor
    shares: Tensor
    near: Tensor | None
    why_not: str = ""


def lay_out(book: Codebook, layout: Layout, seed: int) -> Layouts:
    """Lay out the used codes by principal components, and by t-SNE if wanted and possible."""
    uses = book.measures.uses
    codes = uses.argsort(descending=True, stable=True)[: int((uses > 0).sum())]
    vectors = book.vectors[codes]
    places, shares = principal_components(vectors, book.on_sphere)
    if layout == "none":
        return Layouts(codes, places, shares, None)
    if len(codes) < MIN_TSNE:
        why_not = f"No t-SNE: it needs {MIN_TSNE} codes or more."
        return Layouts(codes, places, shares, None, why_not)
    try:
        return Layouts(codes, places, shares, tsne(vectors, seed, book.on_sphere))
    except ModuleNotFoundError as error:
        why_not = f"No t-SNE: {error.name} is not installed; pip install scikit-learn."
        logger.warning(why_not)
        return Layouts(codes, places, shares, None, why_not)


def principal_components(vectors: Tensor, l2_normalised: bool = True) -> tuple[Tensor, Tensor]:
    """Project vectors (k, C) on their first two principal components, the largest weight positive.

    `l2_normalised`: normalise them first, as the tokenizer does to compare them. Missing
    components, as with one vector, give zeros.

    Returns: (k, 2) float32; (2,) float32, their shares of the variance
    """
    rows = (unit(vectors) if l2_normalised else vectors.float()).double()
    rows = rows - rows.mean(0)
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    directions = directions[:2]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    places = rows @ (directions * largest.sign()).T  # (k, 2 or fewer)
    places = torch.nn.functional.pad(places, (0, 2 - places.shape[1]))
    variance = torch.nn.functional.pad(sizes.square(), (0, 2))
    return places.float(), (variance[:2] / variance.sum().clamp(min=1e-30)).float()


def tsne(vectors: Tensor, seed: int, l2_normalised: bool = True) -> Tensor:
    """Embed vectors (k, C), k at least `MIN_TSNE`, by t-SNE: (k, 2) float32.

    Van der Maaten and Hinton 2008. The start is the principal components, so that the seed changes
    little.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    from sklearn.manifold import TSNE

    rows = unit(vectors) if l2_normalised else vectors.float()
    start, _ = principal_components(vectors, l2_normalised)
    start = start / start[:, 0].std().clamp(min=1e-12) * 1e-4
    perplexity = min(30.0, (len(rows) - 1) / 3)
    # On the sphere squared distances are 2 - 2 cosines, so this suits both kinds of codebook.
    fit = TSNE(2, perplexity=perplexity, init=start.numpy(), random_state=seed, method="barnes_hut")
    return torch.from_numpy(fit.fit_transform(rows.numpy()).astype(np.float32))


def free_cells(points: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    """Assign each point its own cell in a square of side x side cells: the nearest free one.

    points: (k, 2) in [0, 1], in order of priority. Returns: (k, 2), column and row
    """
    rows, columns = np.divmod(np.arange(side * side), side)
    cells: list[int] = []
    for x, y in points * (side - 1):
        distance = (columns - x) ** 2 + (rows - y) ** 2
        distance[cells] = np.inf
        cells.append(int(distance.argmin()))
    return np.stack([columns[cells], rows[cells]], axis=1)


def map_figure(
    places: Tensor, patches: Pixels, name: str, title: str, labels: tuple[str, str]
) -> SavedFigure:
    """Draw each code as its mean patch near its place, without overlap.

    Args:
        places: (k, 2), k at least 1, in order of priority for their exact place
        patches: (k, p, p, 3)
        labels: of the axes
    """
    points = places.double().numpy()
    low, high = points.min(axis=0), points.max(axis=0)
    scale = max(float((high - low).max()), 1e-12)
    centred = (points - (low + high) / 2) / scale + 0.5  # one scale for both axes
    side = max(3, math.ceil(1.6 * math.sqrt(len(points))))
    cells = free_cells(np.stack([centred[:, 0], 1 - centred[:, 1]], axis=1), side)
    cells[:, 1] -= cells[:, 1].min()
    step = _SIDE // side
    inner = max(1, round(step * 0.92))
    sheet = np.zeros((int(cells[:, 1].max() + 1) * step, side * step, 4), dtype=np.uint8)
    for (column, row), patch in zip(cells.tolist(), patches, strict=True):
        big = Image.fromarray(patch).resize((inner, inner), Image.Resampling.NEAREST)
        y, x = row * step, column * step
        sheet[y : y + inner, x : x + inner] = canvas.opaque(np.asarray(big))
    with new_figure(0.6 + 0.95 * WIDTH * len(sheet) / sheet.shape[1]) as figure:
        axes = figure.subplots()
        axes.imshow(sheet, interpolation="none")
        axes.set(xticks=[], yticks=[], xlabel=labels[0], ylabel=labels[1])
        axes.set_title(title)
        if not any(labels):
            axes.spines[:].set_visible(False)
        alt = f"{title}: {len(points)} codes, each drawn as the mean of its patches"
        return saved(figure, name, alt)

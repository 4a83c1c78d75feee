"""The codebook laid out in two dimensions, each code drawn as its mean patch."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.codebook.gallery import DOTS, WIDTH, Drawing, drawing, new_figure, styled
from beit.draw.canvas import Pixels
from beit.nn.quantizer import unit

MIN_TSNE = 5  # codes; fewer have no neighbourhoods to keep
_SIDE = round(0.92 * WIDTH * DOTS)  # pixels of the map


def principal_components(vectors: Tensor, l2_normalised: bool = True) -> tuple[Tensor, Tensor]:
    """Project vectors on their two directions of most variance.

    Signs are such that the largest weight of each direction is positive. Directions that the
    vectors do not have, as with one vector, give zeros.

    Args:
        vectors: (k, C), k at least 1
        l2_normalised: bring them to length 1 first, as the tokenizer compares them

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
    """Lay vectors (k, C) out so that neighbours stay neighbours (van der Maaten and Hinton 2008).

    By scikit-learn, which anybody who probes has: UMAP would need umap-learn and with it numba, a
    compiler of its own that keeps to chosen versions of Python and NumPy. From the principal
    components, so that the seed changes little.

    Returns: (k, 2) float32

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        ValueError: there are fewer than `MIN_TSNE` vectors.
    """
    if len(vectors) < MIN_TSNE:
        raise ValueError(f"t-SNE needs {MIN_TSNE} codes or more, got {len(vectors)}")
    from sklearn.manifold import TSNE

    rows = unit(vectors) if l2_normalised else vectors.float()
    start, _ = principal_components(vectors, l2_normalised)
    start = start / start[:, 0].std().clamp(min=1e-12) * 1e-4
    perplexity = min(30.0, (len(rows) - 1) / 3)
    # On the sphere squared distances are 2 - 2 cosines: this one serves both kinds of codebook.
    fit = TSNE(2, perplexity=perplexity, init=start.numpy(), random_state=seed, method="barnes_hut")
    return torch.from_numpy(fit.fit_transform(rows.numpy()).astype(np.float32))


def free_cells(places: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    """Give each point a cell of its own in a square of side x side cells, as near as is free.

    Args:
        places: (k, 2) in [0, 1], k <= side * side; the first ones choose first

    Returns: (k, 2), column and row
    """
    if len(places) > side * side:
        raise ValueError(f"{len(places)} points do not fit into {side} x {side} cells")
    axis = np.arange(side)
    columns, rows = (part.ravel() for part in np.meshgrid(axis, axis))
    taken = np.zeros(side * side, dtype=bool)
    cells = np.empty((len(places), 2), dtype=np.int64)
    for number, (x, y) in enumerate(places * (side - 1)):
        distance = (columns - x) ** 2 + (rows - y) ** 2
        distance[taken] = np.inf
        cell = int(distance.argmin())
        taken[cell] = True
        cells[number] = columns[cell], rows[cell]
    return cells


def map_figure(
    places: Tensor, patches: Pixels, name: str, title: str, labels: tuple[str, str]
) -> Drawing:
    """Draw codes as their mean patches where they lie, none over another.

    Args:
        places: (k, 2), the codes that choose their place first in front
        patches: (k, p, p, 3)
        name: of the figure
        title: of the figure
        labels: of the axes
    """
    if not len(places) or len(places) != len(patches):
        raise ValueError(
            f"a map needs 1 code or more and a patch for each, got {len(places)} and {len(patches)}"
        )
    points = places.double().numpy()
    low, high = points.min(axis=0), points.max(axis=0)
    scale = max(float((high - low).max()), 1e-12)
    centred = (points - (low + high) / 2) / scale + 0.5  # one scale for both axes
    side = max(3, math.ceil(1.6 * math.sqrt(len(points))))
    cells = free_cells(np.stack([centred[:, 0], 1 - centred[:, 1]], axis=1), side)
    rows_used = cells[:, 1].max() - cells[:, 1].min() + 1
    cells[:, 1] -= cells[:, 1].min()
    step = _SIDE // side
    inner = max(1, round(step * 0.92))
    sheet = np.full((int(rows_used) * step, side * step, 3), 255, dtype=np.uint8)
    for (column, row), patch in zip(cells.tolist(), patches, strict=True):
        big = Image.fromarray(patch).resize((inner, inner), Image.Resampling.NEAREST)
        sheet[row * step : row * step + inner, column * step : column * step + inner] = np.asarray(
            big
        )
    with styled():
        figure = new_figure(0.6 + 0.95 * WIDTH * len(sheet) / sheet.shape[1])
        axes = figure.subplots()
        axes.imshow(sheet, interpolation="none")
        axes.set(xticks=[], yticks=[], xlabel=labels[0], ylabel=labels[1])
        axes.set_title(title)
        if not any(labels):
            axes.spines[:].set_visible(False)
        alt = f"{title}: {len(points)} codes, each drawn as the mean of its patches"
        return drawing(figure, name, alt)

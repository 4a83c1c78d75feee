"""Pictures of attention: each head's map, the patches with most of its mass, a smooth overlay."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from beit.draw import canvas
from beit.draw.canvas import Pixels
from beit.draw.panels import Drawing, Panel, draw_panels, heat
from beit.nn.attention_maps import top_mass

TINT = (213, 94, 0)  # vermilion: told from green by eyes that confuse red and green
MOST_COLUMNS = 7  # panels beside the image
BAR = "attention, over the panel's largest"


class Query(NamedTuple):
    """Whose attention is shown.

    Attributes:
        patch: its index in [0, N); None for [CLS]
        words: what it is called in a title
        name: what it is called in a file name
    """

    patch: int | None
    words: str
    name: str


class Row(NamedTuple):
    """Attention of one query, to be drawn: by one head, or the mean of several."""

    words: str
    weights: Tensor  # (N,), to the patches alone


def attention_figure(
    image: Tensor,
    query: Query,
    rows: Sequence[Row],
    grid: tuple[int, int],
    title: str,
    mass: float,
) -> Drawing:
    """Draw a query's attention: maps, patches with the top share of the mass, smooth overlays.

    Args:
        image: (3, H, W) uint8 or [0, 1]
        rows: a panel of each kind for each
        grid: (Gh, Gw), N = Gh * Gw
        title: of the figure
        mass: share of the attention on patches that the second kind of panel holds
    """
    lines: list[list[Panel | None]] = []
    seen = Panel(with_query(image, query.patch, grid), query.words)
    chunk = math.ceil(len(rows) / math.ceil(len(rows) / MOST_COLUMNS))
    for first in range(0, len(rows), chunk):
        drawn = [_kinds(image, row, grid, mass) for row in rows[first : first + chunk]]
        for number, panels in enumerate(zip(*drawn, strict=True)):
            lines.append([seen if first == number == 0 else None, *panels])
    labels = ["attention", f"top {mass:.0%}", "overlay"] * (len(lines) // 3)
    return draw_panels(lines, title, labels=labels, bar=BAR)


def rollout_figure(
    image: Tensor,
    rows: Sequence[tuple[Query, Tensor]],
    grid: tuple[int, int],
    title: str,
    mass: float,
) -> Drawing:
    """Draw, a line for each query, the image and where the rollout of attention leads.

    Args:
        rows: queries with their weights (N,)
    """
    lines: list[list[Panel | None]] = []
    for query, weights in rows:
        seen = Panel(with_query(image, query.patch, grid), query.words)
        flat, top, smooth = _kinds(image, Row("rollout", weights), grid, mass)
        top, smooth = top._replace(title=f"top {mass:.0%}"), smooth._replace(title="overlay")
        lines.append([seen, flat, top, smooth])
    return draw_panels(lines, title, bar=BAR)


def _kinds(image: Tensor, row: Row, grid: tuple[int, int], mass: float) -> list[Panel]:
    share = float(row.weights.max())
    held = int(top_mass(row.weights, mass).sum())
    return [
        Panel(flat_map(row.weights, grid, canvas.panel(image)), row.words, f"peak {share:.1%}"),
        Panel(
            mass_mask(image, row.weights, grid, mass), "", f"{held} of {len(row.weights)} patches"
        ),
        Panel(overlay(image, row.weights, grid)),
    ]


def flat_map(weights: Tensor, grid: tuple[int, int], like: Pixels) -> Pixels:
    """Colour each patch by its weight (N,) over the largest, a square each: (h, w, 3)."""
    return canvas.cells(heat(_over_largest(weights)), grid, like)


def mass_mask(image: Tensor, weights: Tensor, grid: tuple[int, int], mass: float) -> Pixels:
    """Show the patches that hold the top share of the mass, tinted and outlined, the rest faded.

    Returns: (h, w, 3)
    """
    seen = canvas.panel(image)
    chosen = canvas.cells(top_mass(weights, mass).cpu().numpy(), grid, seen)  # (h, w)
    faded = canvas.blend(seen, np.full_like(seen, 255), 0.55)
    tinted = canvas.blend(seen, np.full_like(seen, TINT), 0.4)
    picture = np.where(chosen[..., None], tinted, faded)
    picture[_outline(chosen, 2)] = TINT
    return picture


def overlay(image: Tensor, weights: Tensor, grid: tuple[int, int]) -> Pixels:
    """Lay the weights (N,) over the image in grey, interpolated between patches: (h, w, 3)."""
    seen = canvas.panel(image)
    h, w = seen.shape[:2]
    field = torch.from_numpy(_over_largest(weights)).view(1, 1, *grid)
    smooth = F.interpolate(field, (h, w), mode="bicubic", align_corners=False).clamp(0, 1)
    grey = (seen @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    backdrop = np.repeat(grey[..., None], 3, axis=2)
    return canvas.blend(backdrop, heat(smooth[0, 0].numpy()), 0.6)


def with_query(image: Tensor, patch: int | None, grid: tuple[int, int]) -> Pixels:
    """Mark the query's patch: its inner half tinted as published, and framed. [CLS] has none.

    Returns: (h, w, 3)
    """
    seen = canvas.panel(image).copy()
    if patch is None:
        return seen
    here = np.zeros(grid[0] * grid[1], bool)
    here[patch] = True
    inside = canvas.cells(here, grid, seen)
    inner = inside & (canvas.depth_in_cell(grid, seen) > 0.5)
    seen[inner] = canvas.blend(seen, np.full_like(seen, TINT), 0.65)[inner]
    seen[_outline(inside, 4)] = 255
    seen[_outline(inside, 2)] = TINT
    return seen


def _outline(region: NDArray[np.bool_], thick: int) -> NDArray[np.bool_]:
    """Return the pixels of a region (h, w) that lie within `thick` pixels of its edge."""
    padded = np.pad(region, thick)
    core = region.copy()
    h, w = region.shape
    for shift in range(1, thick + 1):
        for dy, dx in ((shift, 0), (-shift, 0), (0, shift), (0, -shift)):
            core &= padded[thick + dy : thick + dy + h, thick + dx : thick + dx + w]
    return region & ~core


def _over_largest(weights: Tensor) -> NDArray[np.float64]:
    known = weights.detach().cpu().double()
    share: NDArray[np.float64] = (known / known.max().clamp(min=1e-30)).numpy()
    return share

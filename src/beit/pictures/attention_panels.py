"""Figures of attention: each head's map, the patches with most of its mass, a smooth overlay."""

import math
from collections.abc import Iterable, Mapping
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
from beit.nn.patches import LUMA

TINT = (213, 94, 0)  # vermilion: distinct from green with red-green colour blindness
FADED = 115  # alpha of the other patches
MOST_COLUMNS = 7  # panels beside the image
BAR = "attention, relative to the panel's largest"


class Query(NamedTuple):
    """A token whose attention is shown.

    Attributes:
        patch: its index in [0, N); None for [CLS]
        title: its name in a title
        file: its name in a file name
    """

    patch: int | None
    title: str
    file: str


def patch_query(patch: int, columns: int) -> Query:
    """Return a patch of a grid as a query; its names count rows and columns from 1."""
    row, column = patch // columns + 1, patch % columns + 1
    return Query(patch, f"patch ({row}, {column})", f"row{row:02d}-col{column:02d}")


def attention_figure(
    image: Tensor,
    query: Query,
    heads: Mapping[str, Tensor],
    grid: tuple[int, int],
    title: str,
    mass: float,
) -> Drawing:
    """Draw a query's attention: maps, patches with the top share of the mass, smooth overlays.

    Args:
        image: (3, H, W) uint8 or [0, 1]; the query is marked in it
        heads: attention (N,) to the patches, by title; each gives a panel of each kind
        mass: share of the attention that the patches in the second kind of panel hold
    """
    lines: list[list[Panel | None]] = []
    shown = Panel(with_query(image, query.patch, grid), query.title)
    columns = [_kinds(image, name, weights, grid, mass) for name, weights in heads.items()]
    chunk = math.ceil(len(columns) / math.ceil(len(columns) / MOST_COLUMNS))
    for first in range(0, len(columns), chunk):
        for number, panels in enumerate(zip(*columns[first : first + chunk], strict=True)):
            lines.append([shown if first == number == 0 else None, *panels])
    labels = ["attention", f"top {mass:.0%}", "overlay"] * (len(lines) // 3)
    return draw_panels(lines, title, labels=labels, bar=BAR)


def rollout_figure(
    image: Tensor,
    rows: Iterable[tuple[Query, Tensor]],
    grid: tuple[int, int],
    title: str,
    mass: float,
) -> Drawing:
    """Draw the image and the attention rollout (N,), a line for each query."""
    lines: list[list[Panel]] = []
    for query, weights in rows:
        shown = Panel(with_query(image, query.patch, grid), query.title)
        flat, top, smooth = _kinds(image, "rollout", weights, grid, mass)
        top, smooth = top._replace(title=f"top {mass:.0%}"), smooth._replace(title="overlay")
        lines.append([shown, flat, top, smooth])
    return draw_panels(lines, title, bar=BAR)


def _kinds(
    image: Tensor, title: str, weights: Tensor, grid: tuple[int, int], mass: float
) -> list[Panel]:
    count = f"{int(top_mass(weights, mass).sum())} of {len(weights)} patches"
    peak = f"peak {float(weights.max()):.1%}"
    return [
        Panel(flat_map(weights, grid, canvas.panel(image)), title, peak),
        Panel(mass_mask(image, weights, grid, mass), "", count),
        Panel(overlay(image, weights, grid)),
    ]


def flat_map(weights: Tensor, grid: tuple[int, int], like: Pixels) -> Pixels:
    """Colour each patch by its weight (N,) relative to the largest: (h, w, 3)."""
    return canvas.cells(heat(_over_largest(weights)), grid, like)


def mass_mask(image: Tensor, weights: Tensor, grid: tuple[int, int], mass: float) -> Pixels:
    """Tint and outline the patches with the top share of the mass, fade the rest: (h, w, 4)."""
    pixels = canvas.panel(image)
    chosen = canvas.cells(top_mass(weights, mass).cpu().numpy(), grid, pixels)  # (h, w)
    tinted = canvas.blend(pixels, np.full_like(pixels, TINT), 0.4)
    picture = canvas.opaque(np.where(chosen[..., None], tinted, pixels))
    picture[~chosen, 3] = FADED
    picture[_outline(chosen, 2), :3] = TINT
    return picture


def overlay(image: Tensor, weights: Tensor, grid: tuple[int, int]) -> Pixels:
    """Blend the interpolated weights (N,) over the grey image: (h, w, 3)."""
    return smoothed(image, torch.from_numpy(_over_largest(weights)), grid)


def smoothed(image: Tensor, shares: Tensor, grid: tuple[int, int]) -> Pixels:
    """Blend interpolated shares (N,) in [0, 1] over the grey image: (h, w, 3)."""
    pixels = canvas.panel(image)
    h, w = pixels.shape[:2]
    field = shares.view(1, 1, *grid)
    smooth = F.interpolate(field, (h, w), mode="bicubic", align_corners=False).clamp(0, 1)
    grey = (pixels @ np.array(LUMA)).astype(np.uint8)
    backdrop = np.repeat(grey[..., None], 3, axis=2)
    return canvas.blend(backdrop, heat(smooth[0, 0].numpy()), 0.6)


def with_query(image: Tensor, patch: int | None, grid: tuple[int, int]) -> Pixels:
    """Frame the query's patch, None for [CLS], and tint its inner half as published: (h, w, 3)."""
    pixels = canvas.panel(image).copy()
    if patch is None:
        return pixels
    here = np.zeros(grid[0] * grid[1], bool)
    here[patch] = True
    inside = canvas.cells(here, grid, pixels)
    inner = inside & (canvas.depth_in_cell(grid, pixels) > 0.5)
    pixels[inner] = canvas.blend(pixels, np.full_like(pixels, TINT), 0.65)[inner]
    pixels[_outline(inside, 4)] = 255
    pixels[_outline(inside, 2)] = TINT
    return pixels


def _outline(region: NDArray[np.bool_], thickness: int) -> NDArray[np.bool_]:
    """Return the pixels of a region (h, w) that lie within `thickness` pixels of its edge."""
    padded = np.pad(region, thickness)
    core = padded.copy()
    for shift in range(1, thickness + 1):
        for axis in (0, 1):
            core &= np.roll(padded, shift, axis) & np.roll(padded, -shift, axis)
    return region & ~core[thickness:-thickness, thickness:-thickness]


def _over_largest(weights: Tensor) -> NDArray[np.float64]:
    weights = weights.detach().cpu().double()
    share: NDArray[np.float64] = (weights / weights.max().clamp(min=1e-30)).numpy()
    return share

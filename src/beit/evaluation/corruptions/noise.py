"""Noise of ImageNet-C (Hendrycks & Dietterich 2019), and the random numbers of all corruptions.

Every function takes `images`, (B, 3, H, W) float in 0..255, which it may overwrite, and one
generator an image, and returns the same shape, to be clipped to 0..255. `PARAMETERS` holds the
published numbers of the five severities, by side of the images: `make_imagenet_c.py` (224) and
`make_cifar_c.py` (32) of github.com/hendrycks/robustness.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

Generators = Sequence[torch.Generator]
Parameters = dict[int, list[tuple[float, ...]]]

PARAMETERS: dict[str, Parameters] = {
    "gaussian_noise": {
        224: [(0.08,), (0.12,), (0.18,), (0.26,), (0.38,)],
        32: [(0.04,), (0.06,), (0.08,), (0.09,), (0.10,)],
    },
    "shot_noise": {
        224: [(60,), (25,), (12,), (5,), (3,)],
        32: [(500,), (250,), (100,), (75,), (50,)],
    },
    "impulse_noise": {
        224: [(0.03,), (0.06,), (0.09,), (0.17,), (0.27,)],
        32: [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)],
    },
}


_CELLS = 4096  # of `shot_noise`: one chance in a hundred falls where the count changes


def gaussian_noise(images: Tensor, generators: Generators, deviation: float) -> Tensor:
    """Add noise of standard deviation `deviation` · 255."""
    return normals(generators, images.shape[1:]).mul_(255 * deviation).add_(images)


def shot_noise(images: Tensor, generators: Generators, photons: int) -> Tensor:
    """Count photons, Poisson, of which white has `photons` on average; `photons` of them are white.

    images: whole numbers. The distribution is inverted: one chance in [0, 1) a value.
    """
    table, thresholds = _poisson_table(photons)
    chances = uniforms(generators, images.shape[1:])
    cells = (chances * _CELLS).to(torch.int32).add_(images.to(torch.int32), alpha=_CELLS)
    counts = table.index_select(0, cells.flatten())
    doubtful = (counts < 0).nonzero().squeeze(1)
    levels = images.flatten().index_select(0, doubtful).double()
    asked = chances.flatten().index_select(0, doubtful).double() + levels
    found = torch.searchsorted(thresholds, asked, right=True) - levels.long() * photons
    counts.index_copy_(0, doubtful, found.to(counts.dtype))
    return counts.view(images.shape).to(images.dtype).mul_(255 / photons)


@lru_cache(maxsize=1)
def _poisson_table(photons: int) -> tuple[Tensor, Tensor]:
    """Invert the distributions of the photons of all 256 levels.

    Returns: (256 · _CELLS,) int16, the count for a level's chances of one cell (the _CELLS-th part
    of 0..1), -1 where they differ; and the chances below which no more than 0, 1, ... photons are
    counted, each plus its level, (256 · photons,) float64.
    """
    levels = torch.arange(256, dtype=torch.float64)[:, None]
    rates, counts = levels * photons / 255, torch.arange(photons, dtype=torch.float64)
    logarithms = torch.xlogy(counts, rates) - rates - torch.lgamma(counts + 1)
    chances = logarithms.exp().cumsum(1).clamp_(max=1)  # (256, photons)
    places = (chances * _CELLS).long().clamp_(max=_CELLS - 1) + levels.long() * _CELLS
    met = places.flatten().bincount(minlength=256 * _CELLS).view(256, _CELLS)
    table = torch.where(met > 0, -1, met.cumsum(1))
    return table.flatten().to(torch.int16), (chances + levels).flatten()


def impulse_noise(images: Tensor, generators: Generators, amount: float) -> Tensor:
    """Make a share `amount` of all values, each channel for itself, black or white alike often."""
    chances = uniforms(generators, images.shape[1:])
    flags = torch.empty_like(chances)  # 0 or 1, as numbers: much quicker than to fill by a mask
    images.mul_(torch.ge(chances, amount / 2, out=flags))
    return images.add_(torch.ge(chances, 1 - amount / 2, out=flags), alpha=255)


def normals(generators: Generators, shape: Sequence[int]) -> Tensor:
    """Draw from the standard normal distribution. Returns: (B, *shape)."""
    values = torch.empty(len(generators), *shape)
    for row, generator in zip(values, generators, strict=True):
        row.normal_(generator=generator)
    return values


def uniforms(generators: Generators, shape: Sequence[int]) -> Tensor:
    """Draw uniformly from [0, 1). Returns: (B, *shape)."""
    values = torch.empty(len(generators), *shape)
    for row, generator in zip(values, generators, strict=True):
        row.uniform_(generator=generator)
    return values


def integers(generators: Generators, low: int, high: int, shape: Sequence[int]) -> Tensor:
    """Draw uniformly from low .. high - 1. Returns: (B, *shape) int64."""
    values = torch.empty(len(generators), *shape, dtype=torch.int64)
    for row, generator in zip(values, generators, strict=True):
        row.random_(low, high, generator=generator)
    return values

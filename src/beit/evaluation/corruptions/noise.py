"""Noise of ImageNet-C (Hendrycks & Dietterich 2019), and random numbers for all corruptions.

Every corruption takes `images`, (B, 3, H, W) float in 0..255, which it may overwrite, and one
generator per image. It returns the same shape, not yet clipped to 0..255. `PARAMETERS` holds the
published numbers of the five severities by image size: `make_imagenet_c.py` (224) and
`make_cifar_c.py` (32) of github.com/hendrycks/robustness.
"""

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

_CELLS = 4096  # of `shot_noise`'s table: in 1 of 100 draws the cell does not determine the count


def gaussian_noise(images: Tensor, generators: Generators, deviation: float) -> Tensor:
    """Add noise of standard deviation `deviation` · 255."""
    return normals(generators, images.shape[1:]).mul_(255 * deviation).add_(images)


def shot_noise(images: Tensor, generators: Generators, photons: int) -> Tensor:
    """Draw Poisson counts of photons; white (255) has `photons` on average.

    The distribution function is inverted: one uniform number per value. Images hold whole numbers.
    """
    table, thresholds = _poisson_table(photons)
    chances = uniforms(generators, images.shape[1:])
    cells = (chances * _CELLS).to(torch.int32).add_(images.to(torch.int32), alpha=_CELLS)
    counts = table.index_select(0, cells.flatten())
    unsettled = (counts < 0).nonzero().squeeze(1)
    levels = images.flatten().index_select(0, unsettled).double()
    keys = chances.flatten().index_select(0, unsettled).double() + levels
    searched = torch.searchsorted(thresholds, keys, right=True) - levels.long() * photons
    counts.index_copy_(0, unsettled, searched.to(counts.dtype))
    return counts.view(images.shape).to(images.dtype).mul_(255 / photons)


@lru_cache(maxsize=1)
def _poisson_table(photons: int) -> tuple[Tensor, Tensor]:
    """Invert the Poisson distribution functions of all 256 levels.

    Returns: (256 · _CELLS,) int16, the count in each of a level's equal cells of [0, 1), -1 if it
    changes within the cell; (256 · photons,) float64, each level's functions at 0, 1, ... plus it.
    """
    levels = torch.arange(256, dtype=torch.float64)[:, None]
    rates, counts = levels * photons / 255, torch.arange(photons, dtype=torch.float64)
    logarithms = torch.xlogy(counts, rates) - rates - torch.lgamma(counts + 1)
    chances = logarithms.exp().cumsum(1).clamp_(max=1)  # (256, photons)
    places = (chances * _CELLS).long().clamp_(max=_CELLS - 1) + levels.long() * _CELLS
    jumps = places.flatten().bincount(minlength=256 * _CELLS).view(256, _CELLS)
    table = torch.where(jumps > 0, -1, jumps.cumsum(1))
    return table.flatten().to(torch.int16), (chances + levels).flatten()


def impulse_noise(images: Tensor, generators: Generators, amount: float) -> Tensor:
    """Set a share `amount` of all values to 0 or 255 equally often, each channel by itself."""
    chances = uniforms(generators, images.shape[1:])
    flags = torch.empty_like(chances)  # 0 or 1 as floats: much faster than masked filling
    images.mul_(torch.ge(chances, amount / 2, out=flags))
    return images.add_(torch.ge(chances, 1 - amount / 2, out=flags), alpha=255)


def normals(generators: Generators, shape: Sequence[int]) -> Tensor:
    """Draw from the standard normal distribution. Returns: (B, *shape)."""
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators])


def uniforms(generators: Generators, shape: Sequence[int]) -> Tensor:
    """Draw uniformly from [0, 1). Returns: (B, *shape)."""
    return torch.stack([torch.rand(*shape, generator=generator) for generator in generators])

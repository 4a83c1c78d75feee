"""Orders that draw some images more often than others: rare classes, sets of a mixture."""

from collections.abc import Sequence

import torch
from torch import Tensor

from beit.data.order import generator_of


def balanced_order(
    labels: Tensor, seed: int, epoch: int, balance: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draw n of n images, those of rare classes more often than others.

    A class of c images is drawn in proportion to c ** (1 - balance): at 0 every image once, at 1
    every class equally often. 0.5 is the square-root sampling of Mahajan et al. (2018). Systematic
    sampling of the images, sorted by class and in random order within a class, draws each image and
    each class its expected number of times, rounded up or down.

    From labels (n,) int64, 0 or more. Returns: (n,) int64 indices in random order; (n,) int64, the
    number of each draw among the draws of its image, from 0, which gives each draw its own view.
    """
    counts = torch.bincount(labels).double()
    return _weighted(labels, counts**-balance, generator_of("balance", seed, epoch))


def mixed_order(
    origins: Tensor, shares: Sequence[float], seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """Draw n of n images from several sets, each set its share of the draws, an image as another.

    From origins (n,) int64, the number of each image's set. Returns what `balanced_order` does; no
    set is drawn more than one time more or less than its share, and no image.
    """
    counts = torch.bincount(origins, minlength=len(shares)).double()
    weights = torch.tensor(shares, dtype=torch.float64) / counts
    return _weighted(origins, weights, generator_of("mixture", seed, epoch))


def _weighted(groups: Tensor, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw n of n images by the weight of an image of each group, as `balanced_order` says."""
    n = len(groups)
    shuffled = torch.randperm(n, generator=generator)
    images = shuffled[groups[shuffled].argsort(stable=True)]  # group by group
    ends = weights[groups[images]].cumsum(0)  # ends of the intervals of the images
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    points = (torch.arange(n, dtype=torch.float64) + offset) * (ends[-1] / n)
    drawn = torch.searchsorted(ends, points, right=True).clamp_(max=n - 1)
    repeats = torch.arange(n) - torch.searchsorted(drawn, drawn)  # draws since the image's first
    order = torch.randperm(n, generator=generator)
    return images[drawn[order]], repeats[order]

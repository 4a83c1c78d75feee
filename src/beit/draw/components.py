"""Principal components as colours, of codes by their codebook vectors and of patch features."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.draw.colours import place_colours

SHOWN = 3  # components, one for each dimension of colour
FLAT = 1e-6  # components below this fraction of the first one's deviation are set to zero
ENDS = (0.02, 0.98)  # quantiles at the ends of a colour axis


class Components(NamedTuple):
    """The first principal components of some vectors.

    Attributes:
        mean: (T,) float64
        axes: (T, 3) float64, orthonormal, the largest entry positive; zeros without variance
        shares: (3,) float64, of the variance
        low, high: (3,) float64, the quantiles `ENDS` of the projected vectors
    """

    mean: Tensor
    axes: Tensor
    shares: Tensor
    low: Tensor
    high: Tensor

    def of(self, vectors: Tensor) -> Tensor:
        """Project vectors (n, T). Returns: (n, 3) float64 on the CPU."""
        return (vectors.detach().cpu().double() - self.mean) @ self.axes

    def spanning(self, vectors: Tensor) -> "Components":
        """Keep mean and axes, and take low and high from other vectors (n, T)."""
        low, high = _ends(self.of(vectors))
        return self._replace(low=low, high=high)


def components(vectors: Tensor) -> Components:
    """Find the first three principal components of finite vectors (n, T); deterministic."""
    if vectors.ndim != 2 or not len(vectors) or not bool(vectors.isfinite().all()):
        got = f"got {tuple(vectors.shape)}, all finite: {bool(vectors.isfinite().all())}"
        raise ValueError(f"vectors must be (n, T), n at least 1, and finite; {got}")
    rows = vectors.detach().cpu().double()
    mean = rows.mean(dim=0)
    centred = rows - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(rows))  # ascending
    count = min(SHOWN, rows.shape[1])
    variances, axes = variances.clamp(min=0).flip(0), axes.flip(1)[:, :count]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))  # (1, count)
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    axes = axes * (variances[:count].sqrt() > FLAT * variances[0].sqrt())
    total = variances.sum().clamp(min=torch.finfo(torch.float64).tiny)
    three, shares = torch.zeros(rows.shape[1], SHOWN).double(), torch.zeros(SHOWN).double()
    three[:, :count], shares[:count] = axes, variances[:count] / total
    return Components(mean, three, shares, *_ends(centred @ three))


def _ends(projected: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.quantile(projected, torch.tensor(ENDS).double(), dim=0)
    return low, high


def codebook_colours(vectors: Tensor) -> NDArray[np.uint8]:
    """Colour codes (K, 3) uint8 sRGB so that similar codebook vectors (K, C) have similar colours.

    The codes are ranked along each of the first three principal components of their vectors, so
    that colours are used evenly. The first component is lightness.
    """
    vectors = vectors.nan_to_num(0, 0, 0)  # of a run that diverges, which says so itself
    projected = components(vectors).of(vectors).numpy()  # (K, 3)
    places = np.full(projected.shape, 0.5)
    for axis in range(SHOWN):
        distinct, order = np.unique(projected[:, axis], return_inverse=True)
        if len(distinct) > 1:
            places[:, axis] = order / (len(distinct) - 1)
    return place_colours(places)


def feature_colours(features: Tensor, fitted: Components | None = None) -> NDArray[np.uint8]:
    """Colour features (..., T) by their first three principal components: (..., 3) uint8 sRGB.

    Each vector is first divided by its length, as in the tokenizer's loss. With `fitted` components
    of other `directions`, colours mean the same in both pictures.
    """
    rows = directions(features)
    axes = components(rows) if fitted is None else fitted
    extent = axes.high > axes.low
    length = (axes.high - axes.low).where(extent, 1.0)
    places = ((axes.of(rows) - axes.low) / length).clamp(0, 1).where(extent, 0.5)
    return place_colours(places.numpy()).reshape(*features.shape[:-1], 3)


def directions(features: Tensor) -> Tensor:
    """Return features (..., T) as rows (n, T) of length 1."""
    return torch.nn.functional.normalize(features.detach().float().cpu().flatten(0, -2), dim=-1)

"""Means over a logging interval, kept on the device until somebody reads them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Means:
    """Weighted means of named figures since the last reading.

    Adding does not wait for the device; reading does, once for all figures. Sums are in float64
    (float32 on MPS, which has no other), so that long intervals lose no digits.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    @torch.no_grad()
    def add(self, figures: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        """Count figures, numbers or tensors of one element, with a weight such as the images."""
        for name, figure in figures.items():
            value = torch.as_tensor(figure, dtype=_wide(figure)).reshape(()) * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def read(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Return the means and start anew; a figure whose weights sum to 0 is left out.

        Args:
            reduce: sums a tensor over all processes, each of which has added the same names;
                the result is then the mean over everything that all of them added.
        """
        if not self._sums:
            return {}
        names = list(self._sums)
        device = next((s.device for s in self._sums.values() if s.device.type != "cpu"), None)
        sums = torch.stack([value.to(device) for value in self._sums.values()])
        weights = sums.new_tensor([self._weights[name] for name in names])
        table = torch.stack([sums, weights])  # (2, names)
        totals, counts = (table if reduce is None else reduce(table)).tolist()
        self._sums, self._weights = {}, {}
        return {
            name: total / count
            for name, total, count in zip(names, totals, counts, strict=True)
            if count
        }


def _wide(figure: Tensor | float) -> torch.dtype:
    on_mps = isinstance(figure, Tensor) and figure.device.type == "mps"
    return torch.float32 if on_mps else torch.float64

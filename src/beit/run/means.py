"""Means over a logging interval, accumulated on the device."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Means:
    """Weighted means of named metrics since the last call of `read`.

    `add` does not synchronise with the device; `read` does, once for all metrics. Sums are float64
    (float32 on MPS, which has no float64).
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    @torch.no_grad()
    def add(self, metrics: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        """Add numbers or tensors of one element, with a weight such as the number of images."""
        for name, metric in metrics.items():
            on_mps = isinstance(metric, Tensor) and metric.device.type == "mps"
            dtype = torch.float32 if on_mps else torch.float64
            value = torch.as_tensor(metric, dtype=dtype).reshape(()) * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def read(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Return the means and reset them; a metric whose weights sum to 0 is omitted.

        Args:
            reduce: sums a tensor over all processes, which must have added the same names; the
                means are then over all processes
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

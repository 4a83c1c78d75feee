"""Means over a logging interval, accumulated on the device."""

from collections.abc import Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.run.device import summed


class Means:
    """Weighted means of named metrics since the last call of `read`.

    `add` does not synchronise with the device; the others do, once for all metrics. Sums are
    float64 (float32 on MPS, which has no float64).
    """

    def __init__(self, fabric: Fabric | None = None) -> None:
        """Start without metrics.

        Args:
            fabric: of processes that add the same names, for means over all of them
        """
        self._sums: dict[str, Tensor | float] = {}
        self._weights: dict[str, Tensor | float] = {}
        self._fabric = fabric

    @torch.no_grad()
    def add(self, metrics: Mapping[str, Tensor | float], weight: Tensor | float = 1.0) -> None:
        """Add numbers or tensors of one element, weighted, or only if a () bool weight is True."""
        for name, metric in metrics.items():
            on_mps = isinstance(metric, Tensor) and metric.device.type == "mps"
            dtype = torch.float32 if on_mps else torch.float64
            value = torch.as_tensor(metric, dtype=dtype).reshape(())
            value = value.where(weight, 0) if isinstance(weight, Tensor) else value * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def read(self) -> dict[str, float]:
        """Return the means and reset them; a metric whose weights sum to 0 is omitted."""
        means = _means(self._totals(self._fabric))
        self._sums, self._weights = {}, {}
        return means

    def peek(self, name: str) -> dict[str, float]:
        """Return one mean over this process alone, without resetting it."""
        return {n: mean for n, mean in _means(self._totals(None)).items() if n == name}

    def state_dict(self) -> dict[str, tuple[float, float]]:
        """Return the sum and the weight of each metric over all processes, for a checkpoint."""
        return self._totals(self._fabric)

    def load_state_dict(self, state: Mapping[str, tuple[float, float]]) -> None:
        """Restore what `state_dict` returned, in one of the processes."""
        self._sums = {name: total for name, (total, _) in state.items()}
        self._weights = {name: weight for name, (_, weight) in state.items()}

    def _totals(self, fabric: Fabric | None) -> dict[str, tuple[float, float]]:
        if not self._sums:
            return {}
        names, values = list(self._sums), list(self._sums.values())
        tensors = [value for value in values if isinstance(value, Tensor)]
        device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
        kind = tensors[0].dtype if tensors else torch.float64
        values += [self._weights[name] for name in names]
        table = torch.stack([torch.as_tensor(v, dtype=kind, device=device) for v in values])
        table = table.view(2, len(names))  # sums, weights
        totals, counts = (table if fabric is None else summed(fabric, table)).tolist()
        return dict(zip(names, zip(totals, counts, strict=True), strict=True))


def _means(totals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: total / count for name, (total, count) in totals.items() if count}

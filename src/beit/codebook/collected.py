"""What is collected from a stream of images: statistics of the codes, and patches of each code."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from beit.data.batch import Batch
from beit.nn.code_statistics import CodeStatistics
from beit.nn.reservoir import Reservoir, in_steps, random_keys
from beit.run.device import gathered, summed

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Collected(NamedTuple):
    """Sums over all patches, and the closest and random patches of each code."""

    statistics: CodeStatistics
    closest: Reservoir
    random: Reservoir

    def megabytes(self) -> float:
        """Return the memory that it takes."""
        tensors = [*self.statistics.tensors(), self.closest.entries, self.random.entries]
        return sum(tensor.nbytes for tensor in tensors) / 1e6

    def add(self, seed: int, batch: Batch, codes: Tensor, scores: Tensor) -> None:
        """Add the images of a batch with their codes and scores (B, N)."""
        device, N = self.statistics.total.device, codes.shape[1]
        parts = (batch.images, codes, scores, batch.labels, batch.indices)
        images, codes, scores, labels, indices = (part.to(device) for part in parts)
        self.statistics.add(images, codes, scores, labels)
        places = (indices[:, None] * N + torch.arange(N, device=device)).flatten()
        codes, scores = codes.flatten(), in_steps(scores).flatten()
        self.closest.add(codes, scores, places, scores)
        self.random.add(codes, random_keys(seed, places), places, scores)

    def reduce(self, fabric: "Fabric") -> None:
        """Combine the statistics and patches of all processes, in place."""
        if fabric.world_size == 1:
            return
        device = fabric.device
        for tensor in self.statistics.tensors():
            tensor.copy_(summed(fabric, tensor.to(device)))
        for reservoir in (self.closest, self.random):
            K = len(reservoir.entries)
            rows = gathered(fabric, reservoir.entries.to(device)).to(reservoir.entries.device)
            reservoir.entries = rows[:K].clone()
            for entries in rows[K:].split(K):
                reservoir.merge(entries)

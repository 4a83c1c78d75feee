"""The mean of a teacher's features, which targets can be freed of."""

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from beit.run.device import summed


class Centre(nn.Module):
    """Takes from features the mean that they had in the steps so far; part of checkpoints.

    What all patches of all images share says nothing of an image. Where it is most of the features,
    codes that say nothing reach a small loss, and little is left to learn from.
    """

    mean: Tensor  # (T,)
    steps: Tensor  # ()

    def __init__(self, fabric: Fabric, width: int) -> None:
        super().__init__()
        self._fabric, self._noted = fabric, list[Tensor]()  # (T,) of each micro-step
        self.register_buffer("mean", torch.zeros(width, device=fabric.device))
        self.register_buffer("steps", torch.zeros((), device=fabric.device))

    def forward(self, features: Tensor) -> Tensor:
        """Return features (B, N, T) less the mean; in training, note them for `update`."""
        if self.training:
            self._noted.append(features.mean((0, 1)))
        return features - self.mean

    def update(self, kept: Tensor) -> None:
        """Add what was noted in a step to the mean, unless `kept`, () bool, is False."""
        noted, self._noted = torch.stack(self._noted).mean(0), []
        noted, steps = summed(self._fabric, noted) / self._fabric.world_size, self.steps + kept
        self.mean = torch.where(kept, self.mean + (noted - self.mean) / steps, self.mean)
        self.steps = steps

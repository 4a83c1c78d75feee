"""The moving average of a model's weights, and the best weights so far."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from beit.run.sharding import is_sharded, shard, weights


class WeightAverage:
    """A copy of a model whose weights are an exponential moving average of the model's.

    average = decay * average + (1 - decay) * weights. It starts at the model's weights, without a
    warm-up, as in the published code.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; expected 0 or more and below 1")
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def place(self, device: torch.device, model: nn.Module) -> None:
        """Move the average to the device of `model`, and shard it if that is sharded."""
        self.model.to(device)
        if is_sharded(model):
            shard(self.model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average from `model`, of the same architecture, after an optimiser step."""
        torch._foreach_lerp_(weights(self.model), weights(model), 1 - self.decay)
        for average, value in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights, for a checkpoint."""
        return dict(self.model.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore averaged weights."""
        self.model.load_state_dict(state)


class BestWeights:
    """The weights with the highest score so far, the first of equals, held on the CPU.

    They are part of each checkpoint, so a resumed run keeps the same weights as an uninterrupted
    one.

    Attributes:
        step: after which they were taken; 0 before the first call of `offer`
        score: of these weights
        weights: tensors by name
    """

    def __init__(self) -> None:
        self.step, self.score = 0, float("-inf")
        self.weights: dict[str, Tensor] = {}

    def offer(self, score: float, step: int, model: nn.Module) -> None:
        """Keep a copy of the model's weights if their score is higher than any before."""
        if score > self.score:
            self.step, self.score = step, score
            self.weights = {
                name: tensor.detach().to("cpu", copy=True)
                for name, tensor in model.state_dict().items()
            }

    def state_dict(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        return {"step": self.step, "figure": self.score, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.step, self.score = state["step"], state["figure"]
        self.weights = dict(state["weights"])

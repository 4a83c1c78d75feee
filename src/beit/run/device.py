"""Devices and precision of a run, and sums over its processes, by lightning-fabric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class DeviceConfig:
    """Devices and precision of a run.

    Args:
        accelerator: auto takes CUDA, else MPS, else the CPU.
        devices: number per node; auto takes all. A number set by torchrun or srun is used instead.
        num_nodes: number of nodes; torchrun and srun set it themselves.
        precision: 32-true, or autocast to bfloat16 or (on a GPU) float16 with loss scaling. auto:
            bfloat16 for trainings on machines with bfloat16 instructions, else float32.
        compile: compile the model with torch.compile.
        gradient_checkpointing: in training, store only the input of each Transformer block and
            recompute the rest in the backward pass: less memory, more time, the same weights.
        shard: in a training with several processes, divide weights, gradients and the optimiser's
            state among them (FSDP2): each process needs less memory, but there is more
            communication; the losses are the same.
        timeout: minutes that a process waits for the others; then all processes end.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int | Literal["auto"] = 1
    num_nodes: int = 1
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    shard: bool = False
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ValueError(f"device.{name} is {value}; expected 1 or more")
        if not 0 < self.timeout < 1e6:
            raise ValueError(f"device.timeout is {self.timeout}; expected minutes, more than 0")


def summed(fabric: Fabric, tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes."""
    return cast(torch.Tensor, fabric.all_reduce(tensor, reduce_op="sum"))


def gathered(fabric: Fabric, rows: torch.Tensor) -> torch.Tensor:
    """Return the rows (n, ...) of all processes, in order of rank: (processes * n, ...)."""
    return cast(torch.Tensor, fabric.all_gather(rows)).reshape(-1, *rows.shape[1:])


def precision_of(fabric: Fabric) -> dict[str, str]:
    """Return the precision of a launched run and the reason for it, for its records."""
    precision: Any = fabric.strategy.precision
    return {"precision": precision.precision, "precision_reason": precision.reason}


class LossScaling:
    """The state of float16 loss scaling, for a checkpoint; empty in other precisions."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    def state_dict(self) -> dict[str, Any]:
        """Return the state, for a checkpoint."""
        return dict(self._fabric.strategy.precision.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; ValueError if only one of the two runs scales its loss."""
        if bool(state) != (scaler_of(self._fabric) is not None):
            raise ValueError(
                f"the checkpoint was written {'with' if state else 'without'} float16 loss scaling "
                f"and this run is {'without' if state else 'with'} it; resume in the same precision"
            )
        self._fabric.strategy.precision.load_state_dict(dict(state))


def scaler_of(fabric: Fabric) -> Any:
    """Return what scales float16 losses; None in other precisions."""
    return getattr(fabric.strategy.precision, "scaler", None)

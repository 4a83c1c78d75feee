"""Sharded training: each process keeps its part of weights, gradients and moments (FSDP2).

Two models share the buffers: a copy that only trains, whose blocks gather their weights when they
are computed, and the model that the loops know, which is whole or empty. It becomes whole, in all
processes together, in eval mode and for its state; training mode empties it again. So validations,
reports, averages and checkpoints work as with DDP, and a checkpoint is the same file whatever the
processes that wrote it.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.strategy import _BackwardSyncControl
from torch import Tensor, nn
from torch.distributed import broadcast
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from beit.nn.block import Block


class ShardedStrategy(DDPStrategy):
    """The processes of DDP, with models sharded by FSDP2 in place of DDP's wrapper."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._backward_sync_control = _EachMicroStep()

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        """Shard a model; the given one becomes whole when needed."""
        return shard(module)

    def setup_module_and_optimizers(
        self, module: nn.Module, optimizers: list[Optimizer], scheduler: Any = None
    ) -> tuple[nn.Module, list[Optimizer], Any]:
        """Shard a model, and let optimisers, which have no state yet, update the shards."""
        sharded = shard(module)
        shards = dict(zip(module.parameters(), sharded.parameters(), strict=True))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["params"] = [shards[parameter] for parameter in group["params"]]
            optimizer.register_state_dict_post_hook(_whole_state)
            optimizer.register_load_state_dict_pre_hook(_sharded_state)
        return sharded, optimizers, scheduler

    def clip_gradients_norm(self, *args: Any, **kwargs: Any) -> Tensor:
        """Clip by the norm of the whole gradient, which all processes get."""
        return whole(super().clip_gradients_norm(*args, **kwargs))


class _EachMicroStep(_BackwardSyncControl):
    """Add each micro-step's gradients to the shards: whole ones would need DDP's memory."""

    def no_backward_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[None]:
        return nullcontext()


def shard(model: nn.Module) -> nn.Module:
    """Return a copy of a model for training, sharded; the given one becomes whole when needed.

    Raises:
        ValueError: the model has no Transformer blocks.
    """
    if not any(isinstance(module, Block) for module in model.modules()):
        raise ValueError(
            "device.shard divides a model by its Transformer blocks, and this model has none; "
            "leave it out"
        )
    for tensor in (*model.parameters(), *model.buffers()):
        broadcast(tensor.detach(), 0)  # as DDP does
    sharded = copy.deepcopy(model)
    for own, copied in zip(model.modules(), sharded.modules(), strict=True):
        copied._buffers.update(own._buffers)
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in sharded.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    _Whole(model, sharded)
    return sharded


class _Whole:
    """Makes a model whole from its shards, and empties it."""

    def __init__(self, model: nn.Module, sharded: nn.Module) -> None:
        shards = cast(Iterator[DTensor], sharded.parameters())
        self.pairs = list(zip(model.parameters(), shards, strict=True))
        self.empty = False
        model.__dict__["_whole"] = self
        for module in (model, *model.children()):  # loops call `embed`, or evaluate the backbone
            module.__dict__["train"] = partial(self.train, module)  # `eval` calls it
            module.register_forward_pre_hook(self.fill)
            module.register_state_dict_pre_hook(self.fill)
        model.register_load_state_dict_pre_hook(self.fill)
        model.register_load_state_dict_post_hook(self.spread)

    def train(self, module: nn.Module, mode: bool = True) -> nn.Module:
        """Set the mode of a module; fill the model for evaluation, empty it for training."""
        self.clear() if mode else self.fill()
        return type(module).train(module, mode)

    @torch.no_grad()
    def fill(self, *_: Any) -> None:
        """Gather the weights of all processes, unless they are here."""
        if self.empty:
            for parameter, part in self.pairs:
                parameter.data = whole(part)
            self.empty = False

    def clear(self) -> None:
        """Forget the whole weights, which the next step changes."""
        if not self.empty:
            for parameter, _ in self.pairs:
                parameter.data = parameter.new_empty(0)
            self.empty = True

    @torch.no_grad()
    def spread(self, *_: Any) -> None:
        """Give this process's part of loaded weights to the sharded model."""
        for parameter, part in self.pairs:
            part.copy_(like(parameter, part))


def is_sharded(model: nn.Module) -> bool:
    """Tell whether a model is one that becomes whole from shards."""
    return "_whole" in model.__dict__


def weights(model: nn.Module) -> list[Tensor]:
    """Return the weights that this process holds, to change them: all of them, or its shards."""
    whole_model: _Whole | None = model.__dict__.get("_whole")
    if whole_model is None:
        return list(model.parameters())
    whole_model.clear()
    return [part.to_local() for _, part in whole_model.pairs]


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, in all processes together; others are returned as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, part: Tensor) -> Tensor:
    """Shard a tensor, which all processes have whole, as `part` is; or return it as it is."""
    if not isinstance(part, DTensor):
        return tensor
    settings = part.device_mesh, part.placements
    return distribute_tensor(tensor.detach(), *settings, src_data_rank=None).clone()


def _whole_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an optimiser with whole tensors, on the CPU of the first process."""
    first, gathered = torch.distributed.get_rank() == 0, dict[int, dict[str, Any]]()
    for index, values in state["state"].items():
        gathered[index] = {}
        for name, value in values.items():
            if isinstance(value, DTensor):
                value = whole(value).cpu() if first else whole(value).new_empty(0)
            gathered[index][name] = value
    return {**state, "state": gathered}


def _sharded_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a state with this process's parts of its tensors."""
    weights_of = dict(enumerate(w for group in optimizer.param_groups for w in group["params"]))

    def part(index: int, value: Any) -> Any:
        weight = weights_of.get(index)  # None: PyTorch refuses the state
        if weight is None or not isinstance(value, Tensor) or value.shape != weight.shape:
            return value
        return like(value, weight)

    sharded = {
        index: {name: part(index, value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": sharded}

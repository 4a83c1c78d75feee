"""The batches of a training and of its validation, from the settings that all trainings have."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.data.batches import EvalBatches, TrainBatches
from beit.data.sources import Source
from beit.run.directory import RunConfig
from beit.run.optim import OptimConfig, StepOptimConfig


class WorkerConfig(Protocol):
    """The number of reading processes, a setting of every training's data."""

    @property
    def num_workers(self) -> int: ...


class BatchConfig(Protocol):
    """The settings that batches depend on."""

    @property
    def run(self) -> RunConfig: ...
    @property
    def data(self) -> WorkerConfig: ...
    @property
    def optim(self) -> OptimConfig | StepOptimConfig: ...


def train_batches(
    config: BatchConfig,
    source: Source,
    views: Callable[[Tensor, torch.Generator], tuple[Tensor, ...]],
    fabric: Fabric,
    start_step: int,
    last_step: int,
    **settings: Any,
) -> TrainBatches:
    """Return this process's share of the training batches that are left.

    Args:
        views: of an image, drawn with a generator
        start_step: steps done before
        last_step: after which the run ends
        settings: further ones of `TrainBatches`
    """
    return TrainBatches(
        source,
        views,
        batch_size=config.optim.micro_batch_size(fabric.world_size),
        seed=config.run.seed,
        start_step=start_step,
        num_steps=last_step,
        accumulate=config.optim.accumulate,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=config.data.num_workers,
        **settings,
    )


def eval_batches(
    config: BatchConfig,
    source: Source,
    view: Callable[[Tensor], Tensor | tuple[Tensor, ...]],
    fabric: Fabric,
    batch_size: int | None = None,
    **settings: Any,
) -> EvalBatches:
    """Return this process's share of a set that is evaluated.

    Args:
        batch_size: None for that of a training's micro-step
        settings: further ones of `EvalBatches`
    """
    return EvalBatches(
        source,
        view,
        batch_size or config.optim.micro_batch_size(fabric.world_size),
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=config.data.num_workers,
        **settings,
    )

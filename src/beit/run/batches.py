"""The training and validation batches of a run, built from settings that all trainings share."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.data.batches import DataConfig, EvalBatches, TrainBatches
from beit.data.source import Source
from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.run.budget import Sets
from beit.run.journal import Journal, TrainingConfig
from beit.run.reading import ImageBatches


class ImageSetConfig(TrainingConfig, Protocol):
    """The settings of a training on images alone."""

    @property
    def data(self) -> DataConfig: ...
    @property
    def crop_ratio(self) -> float: ...


def open_train(data: DataConfig) -> Source:
    """Open the training images."""
    return open_source(
        data.train, split="train", cache_gigabytes=data.cache_gigabytes, limit=data.limit
    )


def train_batches(
    journal: Journal,
    source: Source,
    views: Callable[[Tensor, torch.Generator], tuple[Tensor, ...]],
    **settings: Any,
) -> TrainBatches:
    """Return this process's share of the remaining training batches.

    Args:
        views: draws the views of an image with a generator
        settings: more arguments of `TrainBatches`
    """
    config, fabric = journal.config, journal.fabric
    return TrainBatches(
        source,
        views,
        batch_size=config.optim.micro_batch_size(fabric.world_size),
        seed=config.run.seed,
        start_step=journal.start_step,
        num_steps=journal.last_step,
        accumulate=config.optim.accumulate,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=config.data.num_workers,
        device=fabric.device,
        **settings,
    )


def eval_batches(
    config: TrainingConfig,
    source: Source,
    view: Callable[[Tensor], Tensor | tuple[Tensor, ...]],
    fabric: Fabric,
    batch_size: int | None = None,
    **settings: Any,
) -> EvalBatches:
    """Return this process's share of the batches of a validation set.

    Args:
        batch_size: None for that of a training micro-step
        settings: more arguments of `EvalBatches`
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


def open_validation(
    config: ImageSetConfig, size: tuple[int, int], fabric: Fabric
) -> EvalBatches | None:
    """Open this process's share of the validation images, centre crops; None without a set."""
    data = config.data
    if not data.validation:
        return None
    source = open_source(data.validation, split="test", cache_gigabytes=data.cache_gigabytes)
    return eval_batches(config, source, EvalView(size, config.crop_ratio), fabric)


def open_sets(data: DataConfig) -> Sets:
    """Open the images of a training without keeping them in memory."""
    train = open_source(data.train, split="train", limit=data.limit)
    return Sets(train, open_source(data.validation, split="test") if data.validation else ())


def image_sets(source: Source, validation: ImageBatches | None) -> dict[str, Any]:
    """Name the images of a training by its options, for `beit.run.images`."""
    held_out = None if validation is None else validation.source
    return {"data.train": source, "data.validation": held_out}


def open_shown(data: DataConfig) -> Source:
    """Open the images that a report shows: for validation or, without a set, for training."""
    if data.validation:
        return open_source(data.validation, split="test")
    return open_source(data.train, split="train")

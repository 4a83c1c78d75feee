"""The training and validation batches of a run, built from settings that all trainings share."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.data.batches import FIELDS, DataConfig, EvalBatches, TrainBatches
from beit.data.folders.listing import say_once
from beit.data.shrinking import Need, Shrinking, ShrunkImages
from beit.data.source import Source
from beit.data.sources import open_source
from beit.data.splits import Split
from beit.data.views import EvalView, EvalViews, TrainViews
from beit.run.budget import Sets
from beit.run.journal import Journal, TrainingConfig
from beit.run.optim import micro_batch_size
from beit.run.quarantine import NotedBatches
from beit.run.reading import ImageBatches


class ImageSetConfig(TrainingConfig, Protocol):
    """The settings of a training on images alone."""

    @property
    def data(self) -> DataConfig: ...
    @property
    def crop_ratio(self) -> float: ...


class View(Protocol):
    """What cuts views from images, and says how large these must be."""

    @property
    def need(self) -> Need: ...


def open_set(
    data: DataConfig, spec: str, split: Split, *views: View, limit: int | None = None
) -> Source:
    """Open the images of a run, shrunk to what the largest of `views` needs if `data.shrink`."""
    shrinking = _shrinking(data, spec, split, views) if data.shrink else None
    cache = data.cache_gigabytes
    return open_source(spec, split=split, cache_gigabytes=cache, limit=limit, shrinking=shrinking)


def _shrinking(data: DataConfig, spec: str, split: Split, views: Iterable[View]) -> Shrinking:
    """Shrink images to what the largest of the views needs, and log that."""
    need = Need(*map(max, zip(*(view.need for view in views), strict=True)))
    images, kept = None, "nothing is kept on disk"
    if data.shrink_gigabytes:
        images = ShrunkImages(data.shrink_cache, data.shrink_gigabytes)
        kept = f"kept in {images.folder}, at most {data.shrink_gigabytes:g} GB"
    side, _ = need.size_for(10**6, 10**6)
    whose = f"{spec}: {'training' if split == 'train' else 'validation'} images"
    say_once(
        f"{whose} larger than the views need are shrunk, a square one to {side} x {side}; {kept}"
    )
    return Shrinking(need, images)


def open_train(config: ImageSetConfig, views: TrainViews) -> Source:
    """Open the training images, for these views and for centre crops, as other runs need them."""
    centre = EvalView(views.size, config.crop_ratio)
    return open_set(config.data, config.data.train, "train", views, centre, limit=config.data.limit)


def train_batches(
    journal: Journal,
    source: Source,
    views: Callable[[Tensor, torch.Generator], tuple[Tensor, ...]],
    **settings: Any,
) -> NotedBatches:
    """Return this process's share of the remaining training batches, after `on_batches` saw them.

    Args:
        views: draws the views of an image with a generator
        settings: more arguments of `TrainBatches`
    """
    config, fabric = journal.config, journal.fabric
    batches = TrainBatches(
        source,
        views,
        batch_size=micro_batch_size(config.optim, fabric.world_size),
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
    fabric.call("on_batches", batches)
    return NotedBatches(batches, config.run.output)


def eval_batches(
    config: TrainingConfig,
    source: Source,
    view: Callable[[Tensor], Tensor | tuple[Tensor, ...]],
    fabric: Fabric,
    batch_size: int | None = None,
    **settings: Any,
) -> NotedBatches:
    """Return this process's share of the batches of a validation set.

    Args:
        batch_size: None for that of a training micro-step
        settings: more arguments of `EvalBatches`
    """
    batches = EvalBatches(
        source,
        view,
        batch_size or micro_batch_size(config.optim, fabric.world_size),
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=config.data.num_workers,
        **settings,
    )
    return NotedBatches(batches, config.run.output)


def open_validation(
    config: ImageSetConfig,
    size: tuple[int, int],
    fabric: Fabric,
    target_size: tuple[int, int] | None = None,
    by_lanczos: bool = False,
) -> NotedBatches | None:
    """Open this process's share of the validation images, centre crops; None without a set.

    Args:
        target_size: of `Batch.target_images`, see `EvalViews`; None for `size`
    """
    data = config.data
    if not data.validation:
        return None
    view = EvalViews(size, target_size or size, config.crop_ratio, by_lanczos)
    source = open_set(data, data.validation, "test", view)
    return eval_batches(config, source, view, fabric, fields=FIELDS)


def open_sets(config: ImageSetConfig, views: TrainViews) -> Sets:
    """Open the images of a training as it does, without keeping them in memory."""
    data = replace(config.data, cache_gigabytes=0.0)
    centre = EvalView(views.size, config.crop_ratio)
    train = open_set(data, data.train, "train", views, centre, limit=data.limit)
    # Of those for validation only the number counts: they need not be shrunk.
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

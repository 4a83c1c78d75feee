"""Train a segmenter on top of a pretrained ViT (BEiT v2, section 3.3).

This module builds the parts, runs the loop in `beit.segmentation.loop` and saves the results.
"""

import json
import logging
from dataclasses import asdict, replace
from functools import partial
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import nn

from beit.command.ending import Ending, beside, last_values, words
from beit.data.channels import compare_pixels, pixel_options
from beit.draw.names import percent
from beit.draw.report import Section
from beit.nn.segmenter import LAYERS, SegmenterConfig, SemanticSegmenter
from beit.nn.sliding import MapViewConfig
from beit.nn.vit import ViTConfig
from beit.run.averaging import BestWeights
from beit.run.batches import eval_batches, train_batches
from beit.run.budget import Sets, within_budget
from beit.run.device import DeviceConfig
from beit.run.directory import RunDirectory
from beit.run.environment import environment
from beit.run.familiar import warn_of_shared
from beit.run.finished import kept_step
from beit.run.images import check_images, keep_images, warn_of_changes
from beit.run.journal import Journal, Result
from beit.run.launch import launch, launch_run
from beit.run.optim import micro_batch_size
from beit.run.parameters import build_optimizer, can_fuse, parameter_groups
from beit.run.prepare import prepared
from beit.run.quarantine import NotedBatches
from beit.run.reading import Reading
from beit.segmentation.batches import FIELDS, stacked, views_of, whole
from beit.segmentation.config import Config
from beit.segmentation.label_maps import LabelMaps, image_spec, open_label_maps
from beit.segmentation.loop import Segmentation, train
from beit.segmentation.report import report
from beit.segmentation.validation import validate
from beit.segmentation.views import SegmentViews
from beit.weights.bands import check_bands
from beit.weights.file import save_weights
from beit.weights.open import load, load_start
from beit.weights.transfer import backbone_for_finetuning, carry_backbone, carry_decoder

logger = logging.getLogger(__name__)

VERB = "segment"


def run(config: Config, directory: RunDirectory | None = None, changed_ok: bool = False) -> Result:
    """Train a new segmenter, or resume the run in `directory` from its last checkpoint."""
    config = within_budget(run, config, partial(all_sets, config))
    fabric = launch_run(config, directory)
    optim = config.optim
    source, held_out = open_data(config)
    sets = {"data.train": source, "data.validation": held_out}
    named = image_spec(config.data.train, source)
    if held_out is not None:
        validated_on = image_spec(config.data.validation, held_out)
        compare_pixels(pixel_options(named), "the training images have", validated_on)
    if config.init:
        check_bands(config.init, named)
    images = check_images(directory, sets, changed_ok, labelled=True)
    torch.manual_seed(config.run.seed)
    segmenter, transferred = build_segmenter(config, source)
    segmenter = synchronised(segmenter, fabric, micro_batch_size(optim, fabric.world_size))
    vit = segmenter.config.backbone
    if vit.image_channels != 3:
        raise ValueError(
            f"the model takes images of {vit.image_channels} channels, and segmentation is of RGB "
            "only; start from a model of RGB"
        )
    journal = Journal(environment(VERB), config, fabric, optim.schedule(len(source)), directory)
    batches = training_batches(config, source, vit, journal)
    validation = validation_batches(config, held_out, fabric)

    groups = parameter_groups(segmenter, optim.weight_decay, config.layer_decay)
    optimizer = build_optimizer(groups, optim, fused=can_fuse(fabric))
    model, optimizer = fabric.setup(prepared(segmenter, config.device), optimizer)
    parts = Segmentation(
        *(fabric, segmenter, model, optimizer, BestWeights()),
        keeps_best=config.keep == "best",
        auxiliary_weight=config.head.auxiliary_weight,
        optim=optim,
        seed=config.run.seed,
        validation_views=config.validation_views,
        validation=validation,
        validate_every=config.validate_every,
    )
    journal.begin(batches, model=segmenter, optimizer=optimizer, best=parts.best)
    keep_images(journal, images)
    warn_of_shared(journal, sets)
    if transferred:
        journal.message(f"{config.init}: {transferred}")
    validated = train(parts, journal)
    metrics = validated.metrics if validated else {}
    save = partial(save_weights, model=segmenter.eval(), pixel_options=pixel_options(named))
    step = parts.best.step or journal.last_step
    draw = partial(report, journal.directory, config, source, transferred, step, validated)
    return journal.finish(metrics, save, draw)


def all_sets(config: Config) -> Sets:
    """Open the images of a training."""
    train, validation = open_data(config)
    return Sets(train, validation or ())


def redraw(config: Config, directory: RunDirectory) -> list[Section]:
    """Draw the report of a finished run again."""
    fabric = launch(DeviceConfig())
    segmenter = load(directory.path).to(fabric.device)
    assert isinstance(segmenter, SemanticSegmenter)
    source, held_out = open_data(config)
    sets = {"data.train": source, "data.validation": held_out}
    warn_of_changes(directory, sets, labelled=True)
    batches, validated = validation_batches(config, held_out, fabric), None
    if batches is not None:
        reading = Reading(batches, fabric, config.data.max_unreadable, logger.warning)
        validated = validate(fabric, segmenter, config.validation_views, reading)
    step = kept_step(directory.metrics_file, "val_miou" if config.keep == "best" else None)
    return report(directory, config, source, "", step, validated)


def ending(config: Config, result: Result) -> Ending:
    """Say the mIoU; the evaluation of the segmenter is next, or its label maps."""
    run, data = RunDirectory(result.directory), config.data
    miou = result.metrics.get("val_miou")
    if miou is not None:
        figure = f"mIoU {percent(miou)} on the validation images"
        output = beside(run.path, f"{run.path.name}-evaluation")
        usual = asdict(MapViewConfig())
        views = {  # so that it finds the same
            f"views.{name}": value if isinstance(value, str) else json.dumps(value)
            for name, value in asdict(config.validation_views).items()
            if value != usual[name]
        }
        then = words(
            "evaluate",
            model=run.path,
            data=data.validation,
            maps=data.validation_maps,
            classes=data.classes,
            reduce_zero_label="true" * data.reduce_zero_label,
            output=output,
            **views,
        )
    else:
        loss = last_values(run.metrics_file, {}).get("loss", 0.0)
        figure = f"training loss {loss:.3g}; give --validation IMAGES to measure the mIoU"
        output = beside(run.path, f"{run.path.name}-maps")
        then = words("predict", str(run.path), data.train, output=output)
    return Ending(f"{run.path}, a segmenter; report {run.report_file}", figure, then)


def open_data(config: Config) -> tuple[LabelMaps, LabelMaps | None]:
    """Open the training and validation images, with the class numbers of the training set."""
    data = config.data
    if not data.train:
        raise ValueError("no training images given; give them, as in --data FOLDER")
    train = open_label_maps(
        data.train,
        maps=data.maps,
        classes=data.classes,
        reduce_zero_label=data.reduce_zero_label,
        limit=data.limit,
    )
    if len(train.class_names) < 2:
        raise ValueError(f"--data {data.train} has one class only; expected 2 or more")
    if not data.validation:
        return train, None
    validation = open_label_maps(
        data.validation,
        role="validation",
        maps=data.validation_maps,
        classes=data.classes,
        reduce_zero_label=data.reduce_zero_label,
        names=train.class_names,
    )
    return train, validation


def training_batches(
    config: Config, source: LabelMaps, vit: ViTConfig, journal: Journal
) -> NotedBatches:
    """Return this process's share of the remaining training batches."""
    images = stacked(source, config.data.cache_gigabytes)
    views = partial(views_of, SegmentViews(config.view, vit.image_size, vit.mean))
    return train_batches(journal, images, views, fields=FIELDS)


def validation_batches(
    config: Config, source: LabelMaps | None, fabric: Fabric
) -> NotedBatches | None:
    """Return this process's share of the validation set; None without one."""
    if source is None:
        return None
    images, size = stacked(source, config.data.cache_gigabytes), config.validation_batch
    return eval_batches(config, images, whole, fabric, size, fields=FIELDS)


def build_segmenter(config: Config, source: LabelMaps) -> tuple[SemanticSegmenter, str]:
    """Build the segmenter, with its backbone from `init` or random, and a random decoder.

    If `init` is a segmenter, pyramid and decoder are carried over if their shapes are the same, and
    the classification layers if the class names are the same.

    Returns: the segmenter, and a description of the parts carried over from a segmenter
    """
    start = None
    if config.init is None:
        assert config.backbone is not None
        vit = config.backbone
    else:
        heads, mean, std = config.num_heads, config.mean, config.std
        overrides: dict[str, Any] = {"num_heads": heads, "mean": mean, "std": std}
        start = load_start(config.init, config.image_size, **overrides)
        backbone = backbone_for_finetuning(start, config.init, config.image_size)
        vit = backbone.config
    head = config.head
    settings = SegmenterConfig(
        replace(vit, drop_path=config.drop_path),
        num_classes=len(source.class_names),
        layers=chosen_layers(config, vit.depth, start),
        channels=head.channels,
        auxiliary=head.auxiliary,
        auxiliary_channels=head.auxiliary_channels,
        dropout=head.dropout,
        class_names=tuple(source.class_names),
        palette=tuple(source.palette),
        head=head.kind,
    )
    if head.kind == "upernet" and settings.layers[-1] != vit.depth:
        raise ValueError(
            f"head.layers are {settings.layers}, but the blocks after the last one would not be "
            f"trained; it must be {vit.depth}, the last block"
        )
    segmenter = SemanticSegmenter(settings)
    if start is None or config.init is None:
        return segmenter, ""
    carry_backbone(backbone, segmenter.backbone, config.init)
    return segmenter, carry_decoder(start, segmenter)


def chosen_layers(config: Config, depth: int, start: nn.Module | None) -> tuple[int, ...]:
    """Return the blocks that feed the pyramid: configured, those of `start`, or the default."""
    if config.head.layers is not None:
        return tuple(config.head.layers)
    if isinstance(start, SemanticSegmenter) and start.config.layers:
        return start.config.layers
    return LAYERS.get(depth, tuple(-(-depth * quarter // 4) for quarter in (1, 2, 3, 4)))


def synchronised(
    segmenter: SemanticSegmenter, fabric: Fabric, micro_batch: int
) -> SemanticSegmenter:
    """Synchronise batch normalisation over all processes, as published.

    Raises:
        ValueError: there is only one image to normalise over, or the processes are not on GPUs.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in segmenter.modules()):
        return segmenter
    if micro_batch * fabric.world_size < 2:
        raise ValueError(
            "batch normalisation needs 2 images or more at a time; raise optim.batch_size or lower "
            "optim.accumulate, or use --head.kind linear"
        )
    if fabric.world_size == 1:
        return segmenter
    if fabric.device.type != "cuda":
        raise ValueError(
            f"batch normalisation over {fabric.world_size} processes needs GPUs; use one process "
            "on this machine, or --head.kind linear"
        )
    return cast(SemanticSegmenter, nn.SyncBatchNorm.convert_sync_batchnorm(segmenter))

"""Train a segmenter on top of a pretrained ViT (BEiT v2, section 3.3).

This module builds what the loop in `beit.segmentation.loop` needs, runs it and keeps the result.
"""

import logging
from dataclasses import replace
from typing import cast

import torch
from lightning_fabric import Fabric
from torch import nn

from beit.data.batches import EvalBatches, TrainBatches
from beit.data.prefetch import prefetch
from beit.draw.report import Section
from beit.nn.segmenter import LAYERS, SegmenterConfig, SemanticSegmenter
from beit.nn.vit import ViTConfig
from beit.run.averaging import BestWeights
from beit.run.batches import eval_batches, train_batches
from beit.run.device import DeviceConfig, can_fuse, launch, prepared
from beit.run.directory import RunDirectory
from beit.run.journal import Journal, Result, launched
from beit.run.log import kept_step
from beit.run.optim import build_optimizer, parameter_groups
from beit.run.reading import Reading
from beit.segmentation.batches import FIELDS, StackedViews, stacked, whole
from beit.segmentation.config import Config
from beit.segmentation.label_maps import LabelMaps, open_label_maps
from beit.segmentation.loop import Segmentation, train
from beit.segmentation.report import report
from beit.segmentation.validation import validate
from beit.segmentation.views import SegmentViews
from beit.weights.file import save_weights
from beit.weights.open import load, load_sized
from beit.weights.transfer import backbone_for_finetuning, carry_backbone, carry_decoder

logger = logging.getLogger(__name__)

VERB = "segment"


def run(config: Config, directory: RunDirectory | None = None) -> Result:
    """Train a new segmenter, or resume the run in a directory from its last checkpoint."""
    fabric = launched(config, directory)
    optim = config.optim
    source, held_out = open_data(config)
    torch.manual_seed(config.run.seed)
    segmenter, transferred = build_segmenter(config, source)
    segmenter = synchronised(segmenter, fabric, optim.micro_batch_size(fabric.world_size))
    vit = segmenter.config.backbone
    journal = Journal(VERB, config, fabric, optim.schedule(len(source)), directory)
    batches = training_batches(config, source, vit, fabric, *journal.span)
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
    stream = prefetch(batches, fabric.device)
    journal.begin(stream, model=segmenter, optimizer=optimizer, best=parts.best)
    if transferred:
        journal.message(f"{config.init}: {transferred}")
    validated = train(parts, journal)
    sections = []
    if fabric.is_global_zero:
        save_weights(journal.directory.weights_file, segmenter.eval())
        step = parts.best.step or journal.last_step
        sections = report(journal.directory, config, source, transferred, step, validated)
    fabric.barrier()
    return Result(journal.directory.path, validated.metrics if validated else {}, sections)


def redraw(config: Config, directory: RunDirectory) -> list[Section]:
    """Draw the report of a finished run again, from its directory."""
    fabric = launch(DeviceConfig())
    segmenter = load(directory.path).to(fabric.device)
    assert isinstance(segmenter, SemanticSegmenter)
    source, held_out = open_data(config)
    batches, validated = validation_batches(config, held_out, fabric), None
    if batches is not None:
        reading = Reading(batches, fabric, config.data.max_unreadable, logger.warning)
        validated = validate(fabric, segmenter, config.validation_views, reading)
    step = kept_step(directory.metrics_file, "val_miou" if config.keep == "best" else None)
    return report(directory, config, source, "", step, validated)


def open_data(config: Config) -> tuple[LabelMaps, LabelMaps | None]:
    """Open the training and validation images; classes have the numbers of the training set."""
    data = config.data
    if not data.train:
        raise ValueError("no training images given; name them, as in --data.train FOLDER")
    train = open_label_maps(
        data.train,
        maps=data.maps,
        classes=data.classes,
        reduce_zero_label=data.reduce_zero_label,
        limit=data.limit,
    )
    if len(train.class_names) < 2:
        raise ValueError(f"data.train {data.train} has one class only; expected 2 or more")
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
    config: Config,
    source: LabelMaps,
    vit: ViTConfig,
    fabric: Fabric,
    start_step: int,
    last_step: int,
) -> TrainBatches:
    """Return this process's share of the training batches that are left."""
    images = stacked(source, config.data.cache_gigabytes)
    views = StackedViews(SegmentViews(config.view, vit.image_size, vit.mean))
    return train_batches(config, images, views, fabric, start_step, last_step, fields=FIELDS)


def validation_batches(
    config: Config, source: LabelMaps | None, fabric: Fabric
) -> EvalBatches | None:
    """Return this process's share of the validation set; None without one."""
    if source is None:
        return None
    images, size = stacked(source, config.data.cache_gigabytes), config.validation_batch
    return eval_batches(config, images, whole, fabric, size, fields=FIELDS)


def build_segmenter(config: Config, source: LabelMaps) -> tuple[SemanticSegmenter, str]:
    """Build the segmenter: its backbone from `init` or drawn afresh, what stands on it afresh.

    Of a segmenter that is the start everything comes along that fits: pyramid and decoder where
    they are alike, the classification layers where the names of the classes are the same.

    Returns: it, and in words what came along of a segmenter that is the start
    """
    start = None
    if config.init is None:
        assert config.backbone is not None
        vit = config.backbone
    else:
        told = {"num_heads": config.num_heads, "mean": config.mean, "std": config.std}
        start = load_sized(config.init, config.image_size, **told)
        backbone = backbone_for_finetuning(start, config.init, config.image_size)
        vit = backbone.config
    head = config.head
    wanted = SegmenterConfig(
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
    if head.kind == "upernet" and wanted.layers[-1] != vit.depth:
        raise ValueError(
            f"head.layers are {wanted.layers}, and the blocks after the last of them would learn "
            f"nothing; let it be {vit.depth}, the last block"
        )
    segmenter = SemanticSegmenter(wanted)
    if start is None or config.init is None:
        return segmenter, ""
    carry_backbone(backbone, segmenter.backbone, config.init)
    return segmenter, carry_decoder(start, segmenter)


def chosen_layers(config: Config, depth: int, start: nn.Module | None) -> tuple[int, ...]:
    """Choose the blocks that the pyramid reads, where the configuration does not."""
    if config.head.layers is not None:
        return tuple(config.head.layers)
    if isinstance(start, SemanticSegmenter) and start.config.layers:
        return start.config.layers
    return LAYERS.get(depth, tuple(-(-depth * quarter // 4) for quarter in (1, 2, 3, 4)))


def synchronised(
    segmenter: SemanticSegmenter, fabric: Fabric, micro_batch: int
) -> SemanticSegmenter:
    """Let batch normalisation see the images of all processes, as published.

    Raises:
        ValueError: there is but one image to normalise over, or the processes are not on GPUs.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in segmenter.modules()):
        return segmenter
    if micro_batch * fabric.world_size < 2:
        raise ValueError(
            "batch normalisation needs 2 images or more at a time; raise optim.batch_size or lower "
            "optim.accumulate, or take --head.kind linear"
        )
    if fabric.world_size == 1:
        return segmenter
    if fabric.device.type != "cuda":
        raise ValueError(
            f"batch normalisation over {fabric.world_size} processes needs GPUs; use one process "
            "on this machine, or --head.kind linear"
        )
    return cast(SemanticSegmenter, nn.SyncBatchNorm.convert_sync_batchnorm(segmenter))

"""Fine-tune a pretrained ViT as an image classifier (BEiT v2, section 3.2).

This module builds the parts, runs the loop in `beit.finetuning.loop` and saves the results.
"""

import logging
from dataclasses import replace
from functools import partial

import torch
from lightning_fabric import Fabric

from beit.command.ending import Ending, beside, last_values, words
from beit.data.cached import cached
from beit.data.channels import check_channels, pixel_options
from beit.data.classes import (
    Classes,
    Labelled,
    checked_classes,
    known_labels,
    read_classes,
    renumbered,
)
from beit.data.source import Source
from beit.data.splits import Split
from beit.data.views import CROP_RATIO, EvalView, TrainViews
from beit.draw.classes import chance_words
from beit.draw.names import percent
from beit.draw.report import Section
from beit.finetuning.config import Config
from beit.finetuning.loop import Finetuning, train
from beit.finetuning.mixing import build_mixer
from beit.finetuning.report import report
from beit.finetuning.validation import validate
from beit.finetuning.views import FinetuneViews, check_augment
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.vit import ViTConfig
from beit.run.averaging import BestWeights, WeightAverage
from beit.run.batches import View, eval_batches, open_set, train_batches
from beit.run.budget import Sets, within_budget
from beit.run.device import DeviceConfig
from beit.run.directory import RunDirectory
from beit.run.environment import environment
from beit.run.familiar import warn_of_shared
from beit.run.finished import kept_step
from beit.run.images import check_images, keep_images, kept_names, warn_of_changes
from beit.run.journal import Journal, Result
from beit.run.launch import launch, launch_run
from beit.run.optim import micro_batch_size
from beit.run.parameters import build_optimizer, can_fuse, parameter_groups
from beit.run.prepare import prepared
from beit.run.quarantine import NotedBatches
from beit.run.reading import Reading
from beit.weights.bands import check_bands
from beit.weights.crop import WHOLE_FROM
from beit.weights.file import save_weights
from beit.weights.open import load, load_backbone, load_start
from beit.weights.transfer import (
    backbone_for_finetuning,
    carry_backbone,
    carry_head,
    carry_norm,
)
from beit.wording import amount

logger = logging.getLogger(__name__)

VERB = "finetune"


def run(config: Config, directory: RunDirectory | None = None, changed_ok: bool = False) -> Result:
    """Fine-tune a new classifier, or resume the run in `directory` from its last checkpoint."""
    config = within_budget(run, config, partial(all_sets, config))
    fabric = launch_run(config, directory)
    optim = config.optim
    source, held_out, classes = open_data(config)
    sets = {"data.train": source, "data.validation": held_out}
    images = check_images(directory, sets, changed_ok, labelled=True)
    torch.manual_seed(config.run.seed)
    classifier, head = build_classifier(config, classes)
    vit, option = classifier.config.backbone, "" if config.init else "backbone.in_channels"
    check_channels(config.data, vit.image_channels, option, config.view.color_jitter)
    check_augment(config.augment, vit)
    if config.init:
        check_bands(config.init, config.data.train)
    journal = Journal(environment(VERB), config, fabric, optim.schedule(len(source)), directory)
    batches = training_batches(config, source, vit, journal)
    validation = validation_batches(config, held_out, vit, fabric)
    mixer = build_mixer(config.mix, classes.number, micro_batch_size(optim, fabric.world_size))

    average = None if config.average is None else WeightAverage(classifier, config.average)
    groups = parameter_groups(classifier, optim.weight_decay, config.layer_decay)
    optimizer = build_optimizer(groups, optim, fused=can_fuse(fabric))
    model, optimizer = fabric.setup(prepared(classifier, config.device), optimizer)
    if average is not None:
        average.place(fabric.device, classifier)
    parts = Finetuning(
        *(fabric, classifier, model, optimizer, average, BestWeights()),
        keeps_best=config.keep == "best",
        mixer=mixer,
        smoothing=config.mix.smoothing if mixer is None else 0.0,  # the mixer smooths its targets
        optim=optim,
        seed=config.run.seed,
        validation=validation,
        validate_every=config.validate_every * journal.steps_per_epoch,
    )
    stateful = {"model": classifier, "optimizer": optimizer, "best": parts.best}
    stateful |= {} if average is None else {"average": average}
    journal.begin(batches, **stateful)
    keep_images(journal, images)
    warn_of_shared(journal, sets)
    if head:
        journal.message(f"{config.init}: {head}")
    validated = train(parts, journal)
    metrics = validated.metrics if validated else {}
    save = partial(
        save_weights,
        model=parts.kept.eval(),
        crop_ratio=validation_view(config, vit.image_size).crop_ratio,
        pixel_options=pixel_options(config.data.train),
    )
    step = parts.best.step or journal.last_step
    draw = partial(report, journal.directory, config, classes, head, step, validated)
    return journal.finish(metrics, save, draw)


def redraw(config: Config, directory: RunDirectory) -> list[Section]:
    """Draw the report of a finished run again."""
    fabric = launch(DeviceConfig())
    classifier = load(directory.path).to(fabric.device)
    assert isinstance(classifier, ImageClassifier)
    source, held_out, classes = open_data(config)
    sets = {"data.train": source, "data.validation": held_out}
    warn_of_changes(directory, sets, labelled=True)
    batches = validation_batches(config, held_out, classifier.config.backbone, fabric)
    validated = None
    if batches is not None:
        reading = Reading(batches, fabric, config.data.max_unreadable, logger.warning)
        validated = validate(fabric, classifier, reading)
    step = kept_step(directory.metrics_file, "val_top1" if config.keep == "best" else None)
    return report(directory, config, classes, "", step, validated)


def all_sets(config: Config) -> Sets:
    """Open the images of a training without keeping them in memory."""
    data = replace(config.data, cache_gigabytes=0.0)
    train, validation, _ = open_data(replace(config, data=data))
    return Sets(train, validation or ())


def ending(config: Config, result: Result) -> Ending:
    """Say the accuracy; the evaluation of the classifier is next, or its predictions."""
    run, data = RunDirectory(result.directory), config.data
    top1 = result.metrics.get("val_top1")
    if top1 is not None:
        read = result.metrics.get("val_images")  # if some could not be read
        images = len(kept_names(run, "data.validation")) if read is None else int(read)
        of = amount(images, "validation image") if images else "the validation images"
        figure = f"top-1 accuracy {percent(top1)} on {of}"
        if (chance := result.metrics.get("val_chance")) is not None:  # not of an older run
            figure += f" ({chance_words(chance)})"
        if data.shrink:
            figure += ", read shrunk; evaluate reads them whole, and may differ slightly"
        output = beside(run.path, f"{run.path.name}-evaluation")
        then = words("evaluate", model=run.path, data=data.validation, output=output)
    else:
        loss = last_values(run.metrics_file, {}).get("loss", 0.0)
        figure = f"training loss {loss:.3g}; give --validation IMAGES to measure the accuracy"
        output = beside(run.path, f"{run.path.name}-classes.parquet")
        then = words("predict", str(run.path), data.train, output=output)
    return Ending(f"{run.path}, a classifier; report {run.report_file}", figure, then)


def open_data(config: Config) -> tuple[Source, Source | None, Classes]:
    """Open the training and validation images, and match their classes."""
    data = config.data
    if not data.train:
        raise ValueError("no training images given; give them, as in --data FOLDER")
    views = shrinking_views(config) if data.shrink else {}

    def labelled(option: str, spec: str, split: Split, limit: int | None = None) -> Labelled:
        listed = replace(data, cache_gigabytes=0.0)
        source = open_set(listed, spec, split, *views.get(split, ()), limit=limit)
        known_labels(Labelled(option, spec, source))  # before images are decoded into memory
        if data.cache_gigabytes > 0:
            source = cached(source, int(data.cache_gigabytes * 1e9), shrunk=data.shrink)
        return Labelled(option, spec, source)

    train = labelled("--data", data.train, "train", data.limit)
    where = train.where
    if config.classes is not None:
        names = read_classes(config.classes)
        where = f"the list of {len(names)}"
        train = renumbered(train, Classes(len(names), names), where)
    classes = checked_classes(train, config.num_classes)
    if not data.validation:
        return train.source, None, classes
    validation = labelled("--validation", data.validation, "test")
    return train.source, renumbered(validation, classes, where).source, classes


def shrinking_views(config: Config) -> dict[Split, tuple[View]]:
    """Return the views to whose need images shrink, by split."""
    size = config.image_size if config.backbone is None else config.backbone.image_size
    if size is None:
        assert config.init is not None
        size = load_backbone(config.init, num_heads=config.num_heads).config.image_size
    train, test = TrainViews(config.view, size, size), validation_view(config, size)
    return {"train": (train,), "test": (test,)}


def training_batches(
    config: Config, source: Source, vit: ViTConfig, journal: Journal
) -> NotedBatches:
    """Return this process's share of the remaining training batches."""
    views = FinetuneViews(config.view, config.augment, vit.image_size, vit.mean, vit.std)
    sampling = {"repeats": config.augment.repeats, "balance": config.balance}
    return train_batches(journal, source, views, **sampling)


def validation_batches(
    config: Config, source: Source | None, vit: ViTConfig, fabric: Fabric
) -> NotedBatches | None:
    """Return this process's share of the validation set; None without one."""
    if source is None:
        return None
    return eval_batches(config, source, validation_view(config, vit.image_size), fabric)


def validation_view(config: Config, size: tuple[int, int]) -> EvalView:
    """Return the view of validation images; as published, uncropped from 384 pixels on."""
    default = 1.0 if min(size) >= WHOLE_FROM else CROP_RATIO
    return EvalView(size, default if config.crop_ratio is None else config.crop_ratio)


def build_classifier(config: Config, classes: Classes) -> tuple[ImageClassifier, str]:
    """Build the classifier, with its backbone from `init` or random, and a random head.

    If `init` is a classifier, as after intermediate fine-tuning, its norm and head are carried over
    where they fit.

    Returns: the classifier, and a description of its head if `init` is a classifier
    """
    start = None
    if config.init is None:
        assert config.backbone is not None
        vit = config.backbone
    else:
        start = load_start(config.init, config.image_size, num_heads=config.num_heads)
        backbone = backbone_for_finetuning(start, config.init, config.image_size)
        vit = backbone.config
    vit = replace(vit, drop_path=config.drop_path)
    settings = ImageClassifierConfig(vit, classes.number, config.pooling, classes.names)
    classifier = ImageClassifier(settings, config.init_scale)
    if start is None or config.init is None:
        return classifier, ""
    carry_backbone(backbone, classifier.backbone, config.init)
    carry_norm(start, classifier)
    names = None if config.init_classes is None else read_classes(config.init_classes)
    return classifier, carry_head(start, classifier, config.init, names, config.carry_classes)

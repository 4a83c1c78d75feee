"""Pretrain a ViT by masked image modelling: build the parts, run the loop, save the results.

The loop is in `beit.pretraining.loop`. `TargetConfig` selects other targets than tokens: pixels or
a teacher's features.
"""

import logging
from functools import partial
from typing import cast

import torch
from lightning_fabric import Fabric
from torch import nn

from beit.command.ending import Ending, beside, last_values, whole, words
from beit.data.batches import EvalBatches
from beit.data.channels import check_channels, compare_pixels, pixel_options
from beit.data.classes import Labelled, known_classes, renumbered
from beit.data.splits import Split
from beit.data.views import EvalView, TrainViews
from beit.draw.names import percent
from beit.draw.report import Section
from beit.nn.code_ranks import CodeRanks
from beit.nn.code_statistics import code_vectors
from beit.nn.mim import MaskedImageModel
from beit.nn.target import Target
from beit.nn.targets import FeatureTarget, TokenTarget
from beit.pretraining.config import Config
from beit.pretraining.loop import Pretraining, train
from beit.pretraining.report import report
from beit.pretraining.start import start_from
from beit.pretraining.targets import MAIN_METRICS, load_target, match_target
from beit.rows.compute import fingerprint
from beit.run.batches import (
    image_sets,
    open_set,
    open_sets,
    open_train,
    open_validation,
    train_batches,
)
from beit.run.budget import Sets, within_budget
from beit.run.changes import check_teacher
from beit.run.device import DeviceConfig
from beit.run.directory import RunDirectory
from beit.run.environment import environment
from beit.run.familiar import ImageSet, note_of_shared, warn_of_shared
from beit.run.finished import last_validation
from beit.run.images import check_images, keep_images
from beit.run.journal import Journal, Result
from beit.run.launch import launch, launch_run
from beit.run.log import read_log
from beit.run.optim import micro_batch_size
from beit.run.parameters import build_optimizer, can_fuse, parameter_groups
from beit.run.prepare import prepared
from beit.weights.bands import check_bands
from beit.weights.file import save_weights
from beit.weights.open import load
from beit.weights.teachers import Teacher

logger = logging.getLogger(__name__)

VERB = "pretrain"


def run(config: Config, directory: RunDirectory | None = None, changed_ok: bool = False) -> Result:
    """Pretrain a new model, or resume the run in `directory` from its last checkpoint."""
    channels, jitter = config.model.backbone.image_channels, config.view.color_jitter
    check_channels(config.data, channels, "model.backbone.in_channels", jitter)
    checked = filter(None, (config.check.train, config.check.test))
    compare_pixels(pixel_options(config.data.train), "the training images have", *checked)
    config = within_budget(run, config, partial(all_sets, config))
    fabric = launch_run(config, directory)
    target, mim = build(config, fabric)
    about = environment(VERB)
    named = config.tokenizer or config.target.source
    if isinstance(target, TokenTarget):
        about["tokenizer"] = fingerprint(cast(nn.Module, target.tokenizer))
        check_teacher(directory, "tokenizer", named, about["tokenizer"])
        if not target.channels:
            check_bands(named, config.data.train)
    elif isinstance(target, FeatureTarget):
        teacher = cast(Teacher, target.teacher)
        about["teacher"] = fingerprint(teacher, teacher.settings)
        check_teacher(directory, "teacher", named, about["teacher"])
    vit, optim = config.model.backbone, config.optim
    views = TrainViews(config.view, vit.image_size, target.image_size, target.lanczos)
    source = open_train(config, views)
    validation = open_validation(config, vit.image_size, fabric, target.image_size, target.lanczos)
    check = check_batches(config, fabric)
    sets = image_sets(source, validation)
    if check is not None:
        sets |= {"check.train": check[0].source, "check.test": check[1].source}
    images = check_images(directory, sets, changed_ok)
    journal = Journal(about, config, fabric, optim.schedule(len(source)), directory)
    batches = train_batches(journal, source, views)

    begins = config.init is not None and not journal.resumed
    account = start_from(str(config.init), config, mim, target) if begins else ""
    groups = parameter_groups(mim, optim.weight_decay)
    optimizer = build_optimizer(groups, optim, fused=can_fuse(fabric))
    model, optimizer = fabric.setup(prepared(mim, config.device), optimizer)
    ranks = None
    if validation is not None and isinstance(target, TokenTarget):
        ranks = CodeRanks(code_vectors(target.tokenizer))
    journal.begin(batches, model=mim, optimizer=optimizer)
    keep_images(journal, images)
    warn_of_shared(journal, sets)
    if account:
        check_bands(str(config.init), config.data.train)
        journal.message(account)
    draw = partial(report, journal.directory, config, fabric, mim, target)
    parts = Pretraining(
        *(fabric, mim, model, optimizer, target, optim, config.mask),
        everywhere=config.predict == "all",
        seed=config.run.seed,
        ranks=ranks,
        validation=validation,
        validate_every=config.validate_every * journal.steps_per_epoch,
        check=check,
        check_every=config.check.every * journal.steps_per_epoch,
        report=draw,
    )
    metrics = train(parts, journal)
    return journal.finish(
        metrics,
        partial(
            save_weights,
            model=mim.eval(),
            crop_ratio=config.crop_ratio,
            pixel_options=pixel_options(config.data.train),
        ),
        partial(draw, metrics),
    )


def all_sets(config: Config) -> Sets:
    """Open the images of a training, and count those of a k-NN check."""
    size = config.model.backbone.image_size
    sets = open_sets(config, TrainViews(config.view, size, size))
    if not config.check.every:
        return sets
    limit = config.check.limit  # of each set; they may be others than these
    return sets._replace(checked=sum(min(limit, len(part) or limit) for part in sets[:2]))


def redraw(config: Config, directory: RunDirectory) -> list[Section]:
    """Draw the report of a finished run again."""
    fabric = launch(DeviceConfig())
    target, mim = build(config, fabric)
    mim.load_state_dict(load(directory.path).state_dict())
    metrics = last_validation(directory.metrics_file)
    return report(directory, config, fabric, mim.to(fabric.device), target, metrics)


def ending(config: Config, result: Result) -> Ending:
    """Say how well hidden patches are predicted; a probe is next, or features without labels."""
    run, data = RunDirectory(result.directory), config.data
    values = last_values(run.metrics_file, result.metrics)
    metric, _, meaning = MAIN_METRICS[config.target.kind]
    value = values.get(f"val_{metric}", values.get(metric, 0.0))
    figure = f"{percent(value)} {meaning}"
    if (chance := values.get("val_chance")) is not None:
        figure += f" (chance {percent(chance)})"
    checks = [record for record in read_log(run.metrics_file) if "knn_cls" in record]
    if checks:
        before, after = (percent(max(c["knn_cls"], c["knn_mean"])) for c in (checks[0], checks[-1]))
        figure += f"; k-NN accuracy {after}"
        figure += f", {before} at the start" if checks[0]["step"] == 0 else ""
    if config.check.every and data.validation:
        output = beside(run.path, f"{run.path.name}-probe")
        then = words("probe", model=run.path, data=data.train, test=data.validation, output=output)
    else:
        output = beside(run.path, f"{run.path.name}-features.parquet")
        images = whole(data.train, data.validation)
        then = words("embed", model=run.path, data=images, output=output)
    return Ending(f"{run.path}, a pretrained backbone; report {run.report_file}", figure, then)


def build(config: Config, fabric: Fabric) -> tuple[Target, MaskedImageModel]:
    """Open the target, and build the model with random weights."""
    torch.manual_seed(config.run.seed)
    target = load_target(config.target, config.tokenizer, config.model.backbone, fabric.device)
    torch.manual_seed(config.run.seed)
    return target, MaskedImageModel(match_target(config.model, target))


def check_batches(config: Config, fabric: Fabric) -> tuple[EvalBatches, EvalBatches] | None:
    """Open the labelled images of the k-NN check, all of them in each process; None without one.

    Raises:
        ValueError: a set is not given or has no labels, or their classes cannot be matched.
    """
    if config.check.every == 0:
        return None
    size = micro_batch_size(config.optim, fabric.world_size)
    image_size = config.model.backbone.image_size
    view = EvalView(image_size, config.crop_ratio)
    training = TrainViews(config.view, image_size, image_size)
    sets = list[Labelled]()
    splits: tuple[tuple[str, str, Split], ...] = (
        ("--check.train", config.check.train or config.data.train, "train"),
        ("--check.test", config.check.test or config.data.validation, "test"),
    )
    given = {config.data.train: "--data", config.data.validation: "--validation"}
    for option, spec, split in splits:
        if not spec:
            raise ValueError(
                f"the k-NN check needs labelled images; give {option}, or turn "
                "it off with --check.every 0"
            )
        views = (view, training) if spec == config.data.train else (view,)  # shrunk once for both
        source = open_set(config.data, spec, split, *views, limit=config.check.limit)
        sets.append(Labelled(given.get(spec, option), spec, source))
    train, test = sets
    others = config.check.train or config.check.test  # of data.train the training says it itself
    for note in note_of_shared(ImageSet(*test), ImageSet(*train)) if others else ():
        logger.warning("%s", note)
    try:
        test = renumbered(test, known_classes(train), train.where)
    except ValueError as error:
        raise ValueError(f"{error}; or turn the k-NN check off with --check.every 0") from error
    batches = partial(EvalBatches, num_workers=config.data.num_workers)
    return batches(train.source, view, size), batches(test.source, view, size)

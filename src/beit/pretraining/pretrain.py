"""Pretrain a ViT by masked image modelling with a tokenizer's codes (BEiT v2, section 2.3).

Some patches of an image are hidden, and the model predicts their tokens twice: from its last
patches, and from its last [CLS] joined with early patches, so that [CLS] gathers the whole image.
Instead of tokens it can predict pixels or a teacher's features: see `TargetConfig`.
"""

from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.data.batches import DataConfig, EvalBatches, TrainBatches
from beit.data.order import step_generator
from beit.data.prefetch import prefetch
from beit.data.sources import Source, open_source
from beit.data.unreadable import Unreadable
from beit.data.views import EvalView, TrainViews, ViewConfig
from beit.draw.curves import curves
from beit.draw.numbers import short_number
from beit.draw.report import Section, write_report
from beit.nn.losses import masked_losses
from beit.nn.masking import MaskConfig, draw_masks, patches_to_predict
from beit.nn.metrics import knn_accuracy
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig, take
from beit.nn.targets import TARGET_METRICS, Target, explained_from_error, target_metrics
from beit.nn.vit import VisionTransformer
from beit.pretraining.pictures import predictions
from beit.pretraining.targets import TargetConfig, fitting, load_target
from beit.run import checkpoint
from beit.run.device import (
    DeviceConfig,
    LossScaling,
    can_fuse,
    launch,
    prepared,
    summed,
)
from beit.run.directory import RunConfig, RunDirectory
from beit.run.log import MetricsLog, read_log
from beit.run.meters import Means
from beit.run.optim import OptimConfig, build_optimizer, parameter_groups, set_learning_rate
from beit.run.progress import Progress
from beit.run.settings import from_plain
from beit.weights.file import save_weights

VERB = "pretrain"
SHOWN = 12  # masked images drawn in the report


@dataclass(frozen=True)
class CheckConfig:
    """A look at what matters, while it trains: k-NN accuracy on labelled images.

    Args:
        every: epochs between two checks; 0 for none.
        train: labelled images to look neighbours up in; empty takes data.train.
        test: labelled images to classify; empty takes data.validation.
        limit: images used of each.
    """

    every: int = 0
    train: str = ""
    test: str = ""
    limit: int = 5000

    def __post_init__(self) -> None:
        if self.every < 0 or self.limit < 1:
            raise ValueError(
                "check.every must be 0 (no check) or more and check.limit 1 or more, got "
                f"{self.every} and {self.limit}"
            )


@dataclass(frozen=True)
class Config:
    """Settings of `beit pretrain`; the defaults are the published ViT-B/16 recipe, 300 epochs.

    Args:
        data: the images.
        tokenizer: a run directory or weights file of a trained tokenizer, published:NAME, or
            hf://OWNER/NAME.
        target: what is predicted, if not the codes of that tokenizer.
        view: how a training view is cut out of an image.
        model: the network that is pretrained.
        mask: which patches are hidden.
        predict: the masked patches, or all of them.
        optim: the optimiser and its schedule.
        check: k-NN accuracy while it trains.
        crop_ratio: share of a validation image's shorter side that is kept.
        validate_every: epochs between two validations; the end always has one.
        run: where and how often to write.
        device: what to compute on.
    """

    data: DataConfig = DataConfig()
    tokenizer: str = ""
    target: TargetConfig = TargetConfig()
    view: ViewConfig = ViewConfig()
    model: MaskedImageModelConfig = MaskedImageModelConfig()
    mask: MaskConfig = MaskConfig()
    predict: Literal["masked", "all"] = "masked"
    optim: OptimConfig = OptimConfig(
        batch_size=2048,
        epochs=300,
        learning_rate=1.5e-3,
        warmup_epochs=10,
        betas=(0.9, 0.98),
        weight_decay=0.05,
        clip=3.0,
    )
    check: CheckConfig = CheckConfig()
    crop_ratio: float = 0.875
    validate_every: int = 1
    run: RunConfig = RunConfig()
    device: DeviceConfig = DeviceConfig()

    def __post_init__(self) -> None:
        if self.validate_every < 1:
            raise ValueError(f"validate_every is {self.validate_every}; expected 1 epoch or more")
        num_patches = self.model.backbone.num_patches
        if not 1 <= self.mask.number(num_patches) <= num_patches:
            raise ValueError(
                f"mask.count is {self.mask.count}, but an image has "
                f"{num_patches} patches; expected 1 to that many"
            )
        if self.tokenizer and self.target.kind != "tokens":
            raise ValueError(
                f"a tokenizer is given, {self.tokenizer}, but target.kind is {self.target.kind}; "
                "leave one of the two out"
            )
        if self.tokenizer and self.target.source not in ("", self.tokenizer):
            raise ValueError(
                f"two tokenizers are given: {self.tokenizer}, and as target.source "
                f"{self.target.source}; leave one of them out"
            )


class Result(NamedTuple):
    """What a run left behind.

    Attributes:
        directory: the run directory
        figures: of the last validation; empty without a validation set
        sections: of the report; empty in all processes but the first
    """

    directory: Path
    figures: dict[str, float]
    sections: list[Section]


def resume(path: str | Path) -> Result:
    """Go on with the run in a directory, exactly where its last checkpoint stands."""
    directory = RunDirectory.open(path, VERB)
    return run(from_plain(Config, directory.config(), "config"), directory)


def run(config: Config, directory: RunDirectory | None = None) -> Result:
    """Pretrain a new model, or go on from the last checkpoint of the run directory given."""
    if directory is None:
        RunDirectory.check_new(config.run.output)
    fabric = launch(config.device)
    rank, world_size, first = fabric.global_rank, fabric.world_size, fabric.global_rank == 0
    seed, optim = config.run.seed, config.optim
    everywhere, exact = config.predict == "all", config.mask.exact

    torch.manual_seed(seed)
    vit = config.model.backbone
    target = load_target(config.target, config.tokenizer, vit, fabric.device)
    torch.manual_seed(seed)
    mim = MaskedImageModel(fitting(config.model, target))
    source = open_source(
        config.data.train, cache_gigabytes=config.data.cache_gigabytes, limit=config.data.limit
    )
    validation = validation_batches(config, fabric)
    check = check_sources(config)
    start_step, state = (directory and checkpoint.latest(directory)) or (0, {})
    steps_per_epoch = max(1, len(source) // optim.batch_size)
    total_steps = optim.epochs * steps_per_epoch
    last_step = min(total_steps, config.run.stop_after or total_steps)
    micro_batch = optim.micro_batch_size(world_size)
    views = TrainViews(config.view, vit.image_size, target.image_size, target.lanczos)
    batches = training_batches(config, source, views, fabric, start_step, last_step)

    groups = parameter_groups(mim, optim.weight_decay)
    optimizer = build_optimizer(groups, optim, fused=can_fuse(fabric))
    model, optimizer = fabric.setup(prepared(mim, config.device), optimizer)
    means, unreadable = Means(), Unreadable(len(source), config.data.max_unreadable)
    parts: dict[str, Any] = {"model": mim, "optimizer": optimizer, "scaling": LossScaling(fabric)}
    parts["unreadable"] = unreadable
    if state:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    outcome = None

    stream = prefetch(batches, fabric.device)
    stream.begin()
    fabric.barrier()
    resumed_at = None if directory is None else start_step
    if directory is None and first:
        directory = RunDirectory.create(config.run.output, asdict(config), VERB)
    directory = directory or RunDirectory(Path(config.run.output))
    log = MetricsLog(directory.metrics_file if first else None, resumed_at)
    speed = MetricsLog(directory.speed_file if first else None, resumed_at)

    shown = Progress(last_step, start_step, enabled=first)
    with closing(log), closing(speed), shown as progress:
        for step in range(start_step + 1, last_step + 1):
            rate = optim.rate(step, steps_per_epoch)
            set_learning_rate(optimizer, rate)
            torch.manual_seed(step_generator(seed, step, f"drop path {rank}").initial_seed())
            model.train()
            masks = draw_masks(
                config.mask, optim.batch_size, vit.grid, step_generator(seed, step, "masks")
            )  # (batch of all processes, M)
            masks = masks.view(optim.accumulate, world_size, micro_batch, -1)[:, rank]
            for micro, batch in enumerate(islice(stream, optim.accumulate)):
                for name in unreadable.note(batch.unreadable):
                    progress.warn(f"unreadable, the next image stands in: {name}")
                masked = masks[micro].to(fabric.device, non_blocking=True)  # (B, M)
                asked, weights = patches_to_predict(masked, vit.grid, everywhere, exact)  # (B, M')
                with torch.no_grad(), fabric.autocast():
                    wanted = target.of(batch.target_images)  # (B, N) codes, or (B, N, T)
                wanted = take(wanted, asked)  # (B, M') or (B, M', T)
                with fabric.no_backward_sync(model, enabled=micro + 1 < optim.accumulate):
                    prediction = model(batch.images, masked, asked)
                    patch_loss, cls_loss = masked_losses(prediction, wanted, target.loss, weights)
                    loss = patch_loss + cls_loss  # section 2.3: the sum of both
                    fabric.backward(loss / optim.accumulate)
                means.add({"loss": loss, "patch_loss": patch_loss, "cls_loss": cls_loss})
                means.add(target_metrics(target.kind, prediction.logits, wanted, weights))
            if optim.clip is not None:
                norm = fabric.clip_gradients(
                    model, optimizer, max_norm=optim.clip, error_if_nonfinite=False
                )
                means.add({"grad_norm": cast(Tensor, norm)})
            optimizer.step()
            optimizer.zero_grad()

            saves = step % config.run.checkpoint_every == 0 or step == last_step
            logs = step % config.run.log_every == 0 or saves  # no checkpoint amid a window
            if logs:
                checkpoint.refuse_non_finite(directory, step, float(loss.detach()), rate)
            figures: dict[str, float] = {}
            if logs:
                figures = explained_from_error(means.read(partial(summed, fabric)))
                if unreadable.names:
                    figures["unreadable"] = len(unreadable.names)
                log.write({"step": step, "epoch": step / steps_per_epoch, "rate": rate} | figures)
            pace = progress.update(step, figures, optim.batch_size, stream.wait_seconds)
            if logs:
                speed.write({"step": step} | pace._asdict())
            judges = ends(step, config.validate_every, steps_per_epoch, last_step)
            if judges and validation is not None:
                with progress.aside("validation"):
                    outcome = validate(fabric, mim, target, validation, config)
                log.write({"step": step, "epoch": step / steps_per_epoch} | outcome)
            if check and ends(step, config.check.every, steps_per_epoch, last_step):
                with progress.aside("k-NN check"):
                    found = check_neighbours(fabric, mim.backbone, check, config)
                progress.message("  ".join(f"{name} {value:.3f}" for name, value in found.items()))
                log.write({"step": step, "epoch": step / steps_per_epoch} | found)
            if judges and first and step < last_step:
                with progress.aside("report"):
                    report(config, directory, fabric, mim, target, outcome)
            if saves and first:
                state = {name: part.state_dict() for name, part in parts.items()}
                checkpoint.save(directory, step, state, config.run.keep_last, config.run.keep_every)
    if validation is not None and outcome is None:  # resumed after the last step
        outcome = validate(fabric, mim, target, validation, config)
    sections: list[Section] = []
    if first:
        sections = report(config, directory, fabric, mim, target, outcome)
        save_weights(directory.weights_file, mim.eval())  # last: a run that has it is complete
    fabric.barrier()
    return Result(directory.path, outcome or {}, sections)


def ends(step: int, every: int, steps_per_epoch: int, last_step: int) -> bool:
    """Say whether something done every so many epochs, and at the end, is due after a step."""
    return step % (every * steps_per_epoch) == 0 or step == last_step


def training_batches(
    config: Config,
    source: Source,
    views: TrainViews,
    fabric: Fabric,
    start_step: int,
    last_step: int,
) -> TrainBatches:
    """Return this process's part of the training batches."""
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
    )


def validation_batches(config: Config, fabric: Fabric) -> EvalBatches | None:
    """Return this process's part of the validation set, or None when the run has none."""
    if not config.data.validation:
        return None
    return EvalBatches(
        open_source(config.data.validation, cache_gigabytes=config.data.cache_gigabytes),
        EvalView(config.model.backbone.image_size, config.crop_ratio),
        config.optim.micro_batch_size(fabric.world_size),
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=config.data.num_workers,
    )


def check_sources(config: Config) -> tuple[Source, Source] | None:
    """Open the labelled sets of the k-NN check, or None when the run has none."""
    if config.check.every == 0:
        return None
    opened = []
    for option, spec in (
        ("check.train", config.check.train or config.data.train),
        ("check.test", config.check.test or config.data.validation),
    ):
        if not spec:
            raise ValueError(f"the k-NN check needs labelled images; give --{option}, or every 0")
        source = open_source(
            spec, limit=config.check.limit, cache_gigabytes=config.data.cache_gigabytes
        )
        if source.labels is None:
            raise ValueError(
                f"{option}: {spec} has no labels, which the k-NN check needs; "
                "name a labelled set, or turn it off with --check.every 0"
            )
        opened.append(source)
    return opened[0], opened[1]


@torch.no_grad()
def validate(
    fabric: Fabric,
    mim: MaskedImageModel,
    target: Target,
    batches: EvalBatches,
    config: Config,
) -> dict[str, float]:
    """Measure loss and merits on the validation set, under masks that are always the same."""
    mim.eval()
    means = Means()
    # A process without a batch still takes part in the sums over all of them.
    names = ["val_loss"] + [f"val_{name}" for name in TARGET_METRICS[target.kind]]
    names += [f"val_cls_{name}" for name in TARGET_METRICS[target.kind] if mim.aggregation]
    means.add(dict.fromkeys(names, 0.0), weight=0)
    whole, grid = config.optim.batch_size, mim.config.backbone.grid
    for number, batch in enumerate(prefetch(batches, fabric.device)):
        # An image's mask depends on its place in the set alone, whatever the processes.
        place = number * fabric.world_size + fabric.global_rank
        step, first = divmod(place * config.optim.micro_batch_size(fabric.world_size), whole)
        generator = step_generator(config.run.seed, step, "validation masks")
        size = len(batch.images)
        masked = draw_masks(config.mask, whole, grid, generator)[first : first + size]
        masked = masked.to(fabric.device)
        asked, weights = patches_to_predict(
            masked, grid, config.predict == "all", config.mask.exact
        )
        with fabric.autocast():
            wanted = take(target.of(batch.images), asked)
            prediction = mim(batch.images, masked, asked)
        losses = masked_losses(prediction, wanted, target.loss, weights)
        figures = {"val_loss": losses[0] + losses[1]}
        for name, said in (("val", prediction.logits), ("val_cls", prediction.cls_logits)):
            if said is not None:
                found = target_metrics(target.kind, said, wanted, weights)
                figures |= {f"{name}_{merit}": value for merit, value in found.items()}
        means.add(figures, weight=size if weights is None else float(weights.sum()))
    return explained_from_error(means.read(partial(summed, fabric)))


@torch.no_grad()
def check_neighbours(
    fabric: Fabric, backbone: VisionTransformer, check: tuple[Source, Source], config: Config
) -> dict[str, float]:
    """Classify images by their nearest neighbours, by [CLS] and by the mean patch."""
    backbone.eval()
    view = EvalView(backbone.config.image_size, config.crop_ratio)
    described = []
    for source in check:
        cls, mean, labels = [], [], []
        batches = EvalBatches(
            source,
            view,
            config.optim.micro_batch_size(fabric.world_size),
            num_workers=config.data.num_workers,
        )
        for batch in prefetch(batches, fabric.device):
            with fabric.autocast():
                features = backbone(batch.images)
            cls.append(features.cls.float())
            mean.append(features.patches.float().mean(dim=1))
            labels.append(batch.labels)
        described.append((torch.cat(cls), torch.cat(mean), torch.cat(labels)))
    (cls_train, mean_train, train_labels), (cls_test, mean_test, test_labels) = described
    return {
        "knn_cls": knn_accuracy(cls_train, train_labels, cls_test, test_labels),
        "knn_mean": knn_accuracy(mean_train, train_labels, mean_test, test_labels),
    }


@torch.no_grad()
def chapters(
    config: Config,
    directory: RunDirectory,
    fabric: Fabric,
    mim: MaskedImageModel,
    target: Target,
) -> list[Section]:
    """Draw what the report shows: curves, and masked images with what is predicted."""
    mim.eval()
    merit = {"tokens": "accuracy", "pixels": "explained", "features": "cosine"}[target.kind]
    words = {"explained": "Explained share", "cosine": "Cosine"}.get(merit, "Accuracy")
    panels = {
        "Loss": ["patch_loss", "cls_loss"],
        f"{words} at {config.predict} patches": [merit, f"val_{merit}", f"val_cls_{merit}"],
        "Learning rate": ["rate"],
    }
    if config.check.every:
        panels["k-NN accuracy"] = ["knn_cls", "knn_mean"]
    records = read_log(directory.metrics_file)
    curve = curves(records, panels, "One point a logging interval, a validation or a check.")

    source = open_source(config.data.validation or config.data.train)
    backbone = mim.config.backbone
    view = EvalView(backbone.image_size, config.crop_ratio)
    shown = next(iter(EvalBatches(source, view, min(SHOWN, len(source))))).images
    generator = step_generator(config.run.seed, 0, "validation masks")
    masked = draw_masks(config.mask, len(shown), backbone.grid, generator)
    with fabric.autocast():
        wanted = target.of(shown.to(fabric.device)).cpu()
        said = mim(shown.to(fabric.device), masked.to(fabric.device)).logits.cpu()
    picture = predictions(target, shown, masked, said, wanted, backbone.grid)
    return [Section("Pretraining", items=[curve]), Section("What it predicts", items=[picture])]


def report(
    config: Config,
    directory: RunDirectory,
    fabric: Fabric,
    mim: MaskedImageModel,
    target: Target,
    outcome: dict[str, float] | None,
) -> list[Section]:
    """Write report.html anew, and return its sections."""
    sections = chapters(config, directory, fabric, mim, target)
    tokens = config.target.kind == "tokens"
    facts = {
        "command": f"beit {VERB} --config config.yaml",
        "images": config.data.train,
        "tokenizer" if tokens else config.target.kind: config.tokenizer or config.target.source,
        "seed": str(config.run.seed),
    }
    figures = {
        name.removeprefix("val_"): short_number(value) for name, value in (outcome or {}).items()
    }
    title = "Masked image modelling"
    write_report(directory.report_file, title, sections, facts, figures=figures)
    return sections

"""Fine-tune a pretrained ViT as an image classifier (BEiT v2, section 3.2; FACTS 3).

The whole network is trained, its first layers more slowly than its last. Views are augmented and
mixed in pairs, labels with them. After each epoch the classifier is judged on the validation set.
"""

import logging
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from beit.data.batches import DataConfig, EvalBatches, TrainBatches
from beit.data.classes import Classes, Labelled, checked_classes, read_classes, renumbered
from beit.data.order import step_generator
from beit.data.prefetch import prefetch
from beit.data.seeding import seed_torch, seeded
from beit.data.sources import Source, open_source
from beit.data.unreadable import Unreadable
from beit.data.views import EvalView, ViewConfig
from beit.draw.classes import class_items
from beit.draw.curves import curves
from beit.draw.numbers import short_number
from beit.draw.report import Section, write_report
from beit.finetuning.mixing import MixConfig, build_mixer
from beit.finetuning.views import AugmentConfig, FinetuneViews
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.metrics import confusion_matrix
from beit.nn.patches import as_float
from beit.nn.vit import ViTConfig
from beit.run import checkpoint
from beit.run.averaging import BestWeights, WeightAverage
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
from beit.weights.open import load_sized
from beit.weights.transfer import (
    backbone_for_finetuning,
    carry_backbone,
    carry_head,
    carry_norm,
)

logger = logging.getLogger(__name__)

VERB = "finetune"
WHOLE_FROM = 384  # pixels: of images of this size nothing is cropped in validation (FACTS 3.4)
MATRIX = 1024  # most classes whose confusion matrix is counted: 8 MB


@dataclass(frozen=True)
class Config:
    """Settings of `beit finetune`; the defaults are the published ViT-B/16 recipe (1600 epochs).

    Args:
        data: the labelled images.
        init: what to start from: a run directory or weights file of a pretrained model, a
            tokenizer (its encoder) or a classifier, published:NAME, hf://OWNER/NAME; null to start
            from fresh weights.
        backbone: the network to start afresh; null with init.
        image_size: (height, width), to which the positions of init are carried; null for its own.
        num_heads: of init, where its file does not say it and a head is not 64 wide.
        init_classes: names of the classes of init, a classifier whose file does not say them:
            a list as for classes.
        carry_classes: of a classifier for other classes, keep the rows of its head for classes of
            the same name; published: no, such a head starts afresh.
        classes: a file with the name of one class folder a line, whose order numbers the classes,
            or timm:NAME, such as timm:imagenet-22k; null for the folders there are, sorted.
        num_classes: null for as many as the training set has.
        pooling: the head reads the mean of the patches, or the [CLS] token.
        init_scale: the head's first weights are drawn and multiplied by this.
        drop_path: rate of stochastic depth in the last block, growing linearly from 0.
        balance: 0 shows every image once an epoch, 1 every class equally often; between them a
            class of c images comes in proportion to c ** (1 - balance).
        view: how a training view is cut out of an image.
        augment: what is done to the view.
        mix: how the images of a batch are mixed.
        optim: the optimiser and its schedule.
        layer_decay: learning rate of a layer over that of the layer after it; null for all alike.
        average: decay of a moving average of the weights, which is then judged and kept in their
            place (published: off, or 0.9999); null for none.
        keep: the weights of the best top-1 on the validation set, as published, or the last;
            without a validation set the last.
        crop_ratio: share of a validation image's shorter side that is kept; null for 0.875, and 1
            from 384 pixels on, as published.
        validate_every: epochs between two validations; the end always has one.
        run: where and how often to write.
        device: what to compute on.
    """

    data: DataConfig = DataConfig()
    init: str | None = None
    backbone: ViTConfig | None = None
    image_size: tuple[int, int] | None = None
    num_heads: int | None = None
    init_classes: str | None = None
    carry_classes: bool = False
    classes: str | None = None
    num_classes: int | None = None
    pooling: Literal["mean", "cls"] = "mean"
    init_scale: float = 0.001
    drop_path: float = 0.2
    balance: float = 0.0
    view: ViewConfig = ViewConfig(min_scale=0.08, color_jitter=0.0)
    augment: AugmentConfig = AugmentConfig()
    mix: MixConfig = MixConfig()
    optim: OptimConfig = OptimConfig(
        batch_size=1024,
        epochs=100,
        learning_rate=5e-4,
        final_rate=1e-6,
        warmup_epochs=20,
        betas=(0.9, 0.999),
        weight_decay=0.05,
    )
    layer_decay: float | None = 0.6
    average: float | None = None
    keep: Literal["best", "last"] = "best"
    crop_ratio: float | None = None
    validate_every: int = 1
    run: RunConfig = RunConfig()
    device: DeviceConfig = DeviceConfig()

    def __post_init__(self) -> None:
        if (self.init is None) == (self.backbone is None):
            raise ValueError(
                "give what to start from (--init SOURCE) or the numbers of a network that starts "
                "afresh (--backbone), not " + ("neither" if self.init is None else "both")
            )
        if self.backbone is not None:
            for name in ("image_size", "num_heads"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for --init; say backbone.{name} instead")
            if self.carry_classes or self.init_classes is not None:
                raise ValueError("init_classes and carry_classes are for --init")
            if self.backbone.drop_path:
                raise ValueError("backbone.drop_path is not used; say drop_path instead")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; expected 0 or more and below 1")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance is {self.balance}; expected 0 (as the data are) to 1")
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(f"num_classes is {self.num_classes}; expected 2 or more")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; expected above 0 and at most 1")
        if self.average is not None and not 0 <= self.average < 1:
            raise ValueError(f"average is {self.average}; expected 0 or more and below 1")
        if self.validate_every < 1:
            raise ValueError(f"validate_every is {self.validate_every}; expected 1 epoch or more")


class Result(NamedTuple):
    """What a run left behind.

    Attributes:
        directory: the run directory
        figures: of the weights kept, on the validation set; empty without one
        sections: of the report; empty in all processes but the first
    """

    directory: Path
    figures: dict[str, float]
    sections: list[Section]


class Judgement(NamedTuple):
    """How a classifier does on the validation set.

    Attributes:
        figures: val_loss, which is the cross-entropy of the true labels however it trains;
            val_top1; val_balanced, the mean of the accuracies of the classes; from six classes on
            val_top5
        right: (Y,) int64, images of each class that were classified rightly
        total: (Y,) int64, images of each class
        confusion: (Y, Y) int64, truth by row; None for more than MATRIX classes
    """

    figures: dict[str, float]
    right: Tensor
    total: Tensor
    confusion: Tensor | None


def resume(path: str | Path) -> Result:
    """Go on with the run in a directory, exactly where its last checkpoint stands."""
    directory = RunDirectory.open(path, VERB)
    return run(from_plain(Config, directory.config(), "config"), directory)


def run(config: Config, directory: RunDirectory | None = None) -> Result:
    """Fine-tune a new classifier, or go on from the last checkpoint of the run directory given."""
    if directory is None:
        RunDirectory.check_new(config.run.output)
    fabric = launch(config.device)
    rank, world_size, first = fabric.global_rank, fabric.world_size, fabric.global_rank == 0
    seed, optim = config.run.seed, config.optim

    source, held_out, classes = open_data(config)
    torch.manual_seed(seed)
    classifier, head = build_classifier(config, classes)
    start_step, state = (directory and checkpoint.latest(directory)) or (0, {})
    steps_per_epoch = max(1, len(source) // optim.batch_size)
    total_steps = optim.epochs * steps_per_epoch
    last_step = min(total_steps, config.run.stop_after or total_steps)
    batches = training_batches(config, source, classifier, fabric, start_step, last_step)
    validation = validation_batches(config, held_out, classifier, fabric)
    mixer = build_mixer(config.mix, classes.number, optim.micro_batch_size(world_size))
    smoothing = config.mix.smoothing if mixer is None else 0.0  # mixed targets are smooth already

    average = None if config.average is None else WeightAverage(classifier, config.average)
    groups = parameter_groups(classifier, optim.weight_decay, config.layer_decay)
    optimizer = build_optimizer(groups, optim, fused=can_fuse(fabric))
    model, optimizer = fabric.setup(prepared(classifier, config.device), optimizer)
    judged = classifier if average is None else average.model.to(fabric.device)
    means, unreadable = Means(), Unreadable(len(source), config.data.max_unreadable)
    best = BestWeights()
    parts: dict[str, Any] = {"model": classifier, "optimizer": optimizer, "best": best}
    parts |= {"scaling": LossScaling(fabric), "unreadable": unreadable}
    if average is not None:
        parts["average"] = average
    if state:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    judgement = None

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
        if head:
            progress.message(f"{config.init}: {head}")
        for step in range(start_step + 1, last_step + 1):
            rate = optim.rate(step, steps_per_epoch)
            set_learning_rate(optimizer, rate)
            seed_torch(step_generator(seed, step, f"drop path {rank}"))
            model.train()
            for micro, batch in enumerate(islice(stream, optim.accumulate)):
                for name in unreadable.note(batch.unreadable):
                    progress.warn(f"unreadable, the next image stands in: {name}")
                images, targets = batch.images, batch.labels
                if mixer is not None:
                    with seeded(step_generator(seed, step, f"mix {rank} {micro}")):
                        images, targets = mixer(as_float(images), targets)  # targets: (B, Y)
                with fabric.no_backward_sync(model, enabled=micro + 1 < optim.accumulate):
                    logits = model(images)  # (B, Y)
                    loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
                    fabric.backward(loss / optim.accumulate)
                means.add({"loss": loss})
                if mixer is None:
                    hits = logits.argmax(dim=1) == targets
                    means.add({"accuracy": hits.float().mean()})
            if optim.clip is not None:
                norm = fabric.clip_gradients(
                    model, optimizer, max_norm=optim.clip, error_if_nonfinite=False
                )
                means.add({"grad_norm": cast(Tensor, norm)})
            optimizer.step()
            optimizer.zero_grad()
            if average is not None:
                average.update(classifier)

            saves = step % config.run.checkpoint_every == 0 or step == last_step
            logs = step % config.run.log_every == 0 or saves  # no checkpoint amid a window
            if logs:
                checkpoint.refuse_non_finite(directory, step, float(loss.detach()), rate)
            figures: dict[str, float] = {}
            if logs:
                figures = means.read(partial(summed, fabric))
                if unreadable.names:
                    figures["unreadable"] = len(unreadable.names)
                log.write({"step": step, "epoch": step / steps_per_epoch, "rate": rate} | figures)
            pace = progress.update(step, figures, optim.batch_size, stream.wait_seconds)
            if logs:
                speed.write({"step": step} | pace._asdict())
            if validation is not None and (
                step % (config.validate_every * steps_per_epoch) == 0 or step == last_step
            ):
                with progress.aside("validation"):
                    judgement = judge(fabric, judged, validation, config)
                told = judgement.figures
                progress.message("  ".join(f"{name} {value:.4f}" for name, value in told.items()))
                log.write({"step": step, "epoch": step / steps_per_epoch} | told)
                if config.keep == "best":
                    best.offer(told["val_top1"], step, judged)
            if saves and first:
                state = {name: part.state_dict() for name, part in parts.items()}
                checkpoint.save(directory, step, state, config.run.keep_last, config.run.keep_every)
    if best.step not in (0, last_step):  # not the last weights
        judged.load_state_dict(best.weights)
        judgement = None
    if validation is not None and judgement is None:  # earlier weights, or resumed after the end
        judgement = judge(fabric, judged, validation, config)
    sections: list[Section] = []
    if first:
        sections = chapters(directory, judgement, classes)
        report(config, directory, sections, judgement, head, best.step or last_step)
        save_weights(directory.weights_file, judged.eval())  # last: a run that has it is complete
    fabric.barrier()
    return Result(directory.path, {} if judgement is None else judgement.figures, sections)


# ── the data ────────────────────────────────────────────────────────────────────────────────────


def open_data(config: Config) -> tuple[Source, Source | None, Classes]:
    """Open the training and validation images and settle their classes."""
    data = config.data
    if not data.train:
        raise ValueError("no training images given; name them, as in --data.train FOLDER")
    names = None if config.classes is None else read_classes(config.classes)

    def labelled(option: str, spec: str, limit: int | None = None) -> Labelled:
        source = open_source(spec, cache_gigabytes=data.cache_gigabytes, limit=limit)
        part = Labelled(option, spec, source)
        return part if names is None else renumbered(part, names)

    train, validation = labelled("data.train", data.train, data.limit), None
    if data.validation:
        validation = labelled("data.validation", data.validation)
    classes = checked_classes(train, validation, config.num_classes)
    return train.source, None if validation is None else validation.source, classes


def training_batches(
    config: Config,
    source: Source,
    classifier: ImageClassifier,
    fabric: Fabric,
    start_step: int,
    last_step: int,
) -> TrainBatches:
    """Return this process's part of the training batches."""
    vit = classifier.config.backbone
    return TrainBatches(
        source,
        FinetuneViews(config.view, config.augment, vit.image_size, vit.mean, vit.std),
        batch_size=config.optim.micro_batch_size(fabric.world_size),
        seed=config.run.seed,
        start_step=start_step,
        num_steps=last_step,
        accumulate=config.optim.accumulate,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=config.data.num_workers,
        repeats=config.augment.repeats,
        balance=config.balance,
    )


def validation_batches(
    config: Config, source: Source | None, classifier: ImageClassifier, fabric: Fabric
) -> EvalBatches | None:
    """Return this process's part of the validation set, or None when the run has none."""
    if source is None:
        return None
    return EvalBatches(
        source,
        validation_view(config, classifier.config.backbone.image_size),
        config.optim.micro_batch_size(fabric.world_size),
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=config.data.num_workers,
    )


def validation_view(config: Config, size: tuple[int, int]) -> EvalView:
    """Return what cuts out validation images: as published, the whole centre from 384 pixels on."""
    published = 1.0 if min(size) >= WHOLE_FROM else 0.875
    return EvalView(size, published if config.crop_ratio is None else config.crop_ratio)


# ── the model ───────────────────────────────────────────────────────────────────────────────────


def build_classifier(config: Config, classes: Classes) -> tuple[ImageClassifier, str]:
    """Build the classifier: its backbone from `init` or drawn afresh, its head drawn afresh.

    Of a classifier that is the start, as after an intermediate fine-tuning, norm and head come
    along where they can.

    Returns: it, and in words what became of the head of a classifier that is the start
    """
    start = None
    if config.init is None:
        assert config.backbone is not None
        vit = config.backbone
    else:
        start = load_sized(config.init, config.image_size, num_heads=config.num_heads)
        backbone = backbone_for_finetuning(start, config.init, config.image_size)
        vit = backbone.config
    vit = replace(vit, drop_path=config.drop_path)
    wanted = ImageClassifierConfig(vit, classes.number, config.pooling, classes.names)
    classifier = ImageClassifier(wanted, config.init_scale)
    if start is None or config.init is None:
        return classifier, ""
    carry_backbone(backbone, classifier.backbone, config.init)
    carry_norm(start, classifier)
    named = None if config.init_classes is None else read_classes(config.init_classes)
    return classifier, carry_head(start, classifier, config.init, named, config.carry_classes)


# ── how good it is ──────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def judge(fabric: Fabric, classifier: nn.Module, batches: EvalBatches, config: Config) -> Judgement:
    """Classify the validation images; those that cannot be read are left out."""
    classifier.eval()
    model = cast(ImageClassifier, classifier)
    Y, device = model.config.num_classes, fabric.device
    means = Means()
    # A process without a batch still takes part in the sums over all of them.
    names = ["val_loss", "val_top1"] + ["val_top5"] * (Y > 5)
    means.add(dict.fromkeys(names, 0.0), weight=0)
    pairs = torch.zeros(Y, Y if Y <= MATRIX else 2, dtype=torch.int64, device=device)
    for batch in prefetch(batches, device):
        with fabric.autocast():
            logits = model(batch.images).float()  # (B, Y)
        labels = batch.labels
        guess = logits.argmax(dim=1)
        figures = {"val_loss": F.cross_entropy(logits, labels)}  # true labels, not smoothed
        figures["val_top1"] = (guess == labels).float().mean()
        if Y > 5:
            near = logits.topk(5, dim=1).indices == labels[:, None]  # (B, 5)
            figures["val_top5"] = near.any(dim=1).float().mean()
        means.add(figures, weight=len(labels))
        if Y <= MATRIX:
            pairs += confusion_matrix(labels, guess, Y)
        else:
            pairs[:, 0] += torch.bincount(labels[guess == labels], minlength=Y)
            pairs[:, 1] += torch.bincount(labels, minlength=Y)
    pairs = summed(fabric, pairs).cpu()
    told = means.read(partial(summed, fabric))
    whole = Y <= MATRIX
    right, total = (pairs.diagonal(), pairs.sum(dim=1)) if whole else (pairs[:, 0], pairs[:, 1])
    shares = right[total > 0].double() / total[total > 0]
    told["val_balanced"] = float(shares.mean())
    return Judgement(told, right, total, pairs if whole else None)


def chapters(
    directory: RunDirectory, judgement: Judgement | None, classes: Classes
) -> list[Section]:
    """Draw what the report shows: curves, and how each class fares."""
    panels = {
        "Loss": ["loss", "val_loss"],
        "Validation accuracy": ["val_top1", "val_balanced", "val_top5"],
        "Learning rate": ["rate"],
    }
    records = read_log(directory.metrics_file)
    caption = "One point a logging interval or a validation."
    sections = [Section("Fine-tuning", items=[curves(records, panels, caption)])]
    if judgement is not None:
        names = classes.names or tuple(map(str, range(classes.number)))
        items = class_items(judgement.right, judgement.total, judgement.confusion, names)
        sections.append(Section("Class by class", items=items))
    return sections


def report(
    config: Config,
    directory: RunDirectory,
    sections: list[Section],
    judgement: Judgement | None,
    head: str,
    step: int,
) -> None:
    """Write report.html."""
    facts = {
        "command": f"beit {VERB} --config config.yaml",
        "images": config.data.train,
        "start": (config.init or "fresh weights") + (head and f"; {head}"),
        "weights kept": f"those of step {step}"
        + (", chosen on the validation set" if judgement and config.keep == "best" else ""),
        "seed": str(config.run.seed),
    }
    told = {} if judgement is None else judgement.figures
    figures = {name.removeprefix("val_"): short_number(value) for name, value in told.items()}
    write_report(directory.report_file, "Fine-tuning", sections, facts, figures=figures)

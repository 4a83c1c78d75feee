"""Train a segmenter on top of a pretrained ViT (BEiT v2, section 3.3; FACTS 4).

The whole network is trained, its first layers more slowly than its last. Crops with their label
maps are drawn at random; an auxiliary head on the third level helps. Now and then the segmenter
labels the validation images, seen as in evaluation, and the weights of the best mIoU are kept.
"""

from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from beit.data.batches import EvalBatches, TrainBatches
from beit.data.order import step_generator
from beit.data.prefetch import prefetch
from beit.data.seeding import seed_torch
from beit.data.unreadable import Unreadable
from beit.draw.curves import curves
from beit.draw.numbers import short_number
from beit.draw.report import Section, write_report
from beit.nn.confusion import map_figures, pixel_confusion
from beit.nn.segmenter import LAYERS, SegmenterConfig, SemanticSegmenter, pixel_loss
from beit.nn.sliding import MapPredictor, MapViewConfig
from beit.nn.vit import ViTConfig
from beit.run import checkpoint
from beit.run.averaging import BestWeights
from beit.run.device import DeviceConfig, LossScaling, can_fuse, launch, prepared, summed
from beit.run.directory import RunConfig, RunDirectory
from beit.run.log import MetricsLog, read_log
from beit.run.meters import Means
from beit.run.optim import (
    StepOptimConfig,
    build_optimizer,
    parameter_groups,
    set_learning_rate,
)
from beit.run.progress import Progress
from beit.run.settings import from_plain
from beit.segmentation.batches import eval_batches, train_batches
from beit.segmentation.label_maps import LabelMaps, open_label_maps
from beit.segmentation.pictures import Example, example_picture, iou_table
from beit.segmentation.views import SegmentViewConfig, SegmentViews
from beit.weights.file import save_weights
from beit.weights.open import load_sized
from beit.weights.transfer import backbone_for_finetuning, carry_backbone, carry_decoder

VERB = "segment"
EXAMPLES = 6  # validation images in the report


@dataclass(frozen=True)
class SegmentDataConfig:
    """What to read and how (docs/segmentation.md).

    Args:
        train: images with label maps: ADE20K (folder or zip), a Pascal VOC folder, a folder of
            images and masks, shapes://COUNT, or a part of one: folder[:90%]
        validation: likewise, the validation split of a set that has several; empty for none
        maps: the folder of the training label maps, where `train` does not lead to it
        validation_maps: of those of validation
        classes: the list of classes: a file, ade20k, voc, or how many; empty for what the data say
        reduce_zero_label: in the maps 0 does not count and 1, 2, ... are the classes
        limit: use so many training images, a fixed random subset; null for all
        num_workers: processes that decode and cut out images; 0 does it in the training process
        cache_gigabytes: a set that fits is decoded into memory once
        max_unreadable: largest share of unreadable images that does not stop the run
    """

    train: str = ""
    validation: str = ""
    maps: str = ""
    validation_maps: str = ""
    classes: str = ""
    reduce_zero_label: bool = False
    limit: int | None = None
    num_workers: int = 2
    cache_gigabytes: float = 2.0
    max_unreadable: float = 0.01

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {self.num_workers}")
        if self.cache_gigabytes < 0:
            raise ValueError(f"cache_gigabytes must not be negative, got {self.cache_gigabytes}")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable is a share in [0, 1], got {self.max_unreadable}")


@dataclass(frozen=True)
class HeadConfig:
    """What stands on the backbone; the defaults are the published base model's.

    Args:
        kind: the published UPerNet with its pyramid, or one linear layer on each patch.
        layers: numbers of four blocks, from 1, that feed the pyramid; null for those of the start,
            the published ones at depth 12 and 24, evenly spaced ones at others.
        channels: of the decoder's maps; 0 for the backbone's width, as published.
        auxiliary: whether there is an auxiliary head.
        auxiliary_channels: of its map.
        auxiliary_weight: of its loss.
        dropout: rate at which whole maps are dropped before a classification layer.
    """

    kind: Literal["upernet", "linear"] = "upernet"
    layers: tuple[int, ...] | None = None
    channels: int = 0
    auxiliary: bool = True
    auxiliary_channels: int = 256
    auxiliary_weight: float = 0.4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not self.auxiliary_weight >= 0:
            raise ValueError(
                f"head.auxiliary_weight is {self.auxiliary_weight}; expected 0 or more"
            )


@dataclass(frozen=True)
class Config:
    """Settings of `beit segment`; the defaults are the published ADE20K recipe of v2 ViT-B/16.

    Args:
        data: images with label maps.
        init: what to start from: a run directory or weights file of any model with a ViT,
            published:NAME, hf://OWNER/NAME; of a segmenter its decoder comes along, too. Null to
            start from fresh weights.
        backbone: the network to start afresh; null with init.
        image_size: (height, width) of a crop, to which the positions of init are carried; null for
            its own.
        num_heads: of init, where its file does not say it and a head is not 64 wide.
        mean: per-channel mean that the segmenter takes off images in [0, 1]; null for that of
            init. Published: ImageNet's, whatever the start had.
        std: likewise the deviation that it divides by.
        head: what stands on the backbone.
        drop_path: rate of stochastic depth in the last block, growing linearly from 0.
        view: how a training crop is drawn.
        optim: the optimiser and its schedule, in steps.
        layer_decay: learning rate of a layer over that of the layer after it; null for all alike.
        validate_every: steps between two validations; the end always has one.
        validation_views: how validation images are seen.
        validation_batch: validation images at a time; more than one need images of one size.
        keep: the weights of the best mIoU on the validation set, or the last; without a validation
            set the last.
        run: where and how often to write.
        device: what to compute on.
    """

    data: SegmentDataConfig = SegmentDataConfig()
    init: str | None = None
    backbone: ViTConfig | None = None
    image_size: tuple[int, int] | None = None
    num_heads: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    head: HeadConfig = HeadConfig()
    drop_path: float = 0.15
    view: SegmentViewConfig = SegmentViewConfig()
    optim: StepOptimConfig = StepOptimConfig()
    layer_decay: float | None = 0.75
    validate_every: int = 16_000
    validation_views: MapViewConfig = MapViewConfig()
    validation_batch: int = 1
    keep: Literal["best", "last"] = "best"
    run: RunConfig = RunConfig()
    device: DeviceConfig = DeviceConfig()

    def __post_init__(self) -> None:
        if (self.init is None) == (self.backbone is None):
            raise ValueError(
                "give what to start from (--init SOURCE) or the numbers of a network that starts "
                "afresh (--backbone), not " + ("neither" if self.init is None else "both")
            )
        if self.backbone is not None:
            for name in ("image_size", "num_heads", "mean", "std"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for --init; say backbone.{name} instead")
            if self.backbone.drop_path:
                raise ValueError("backbone.drop_path is not used; say drop_path instead")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; expected 0 or more and below 1")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; expected above 0 and at most 1")
        if self.validate_every < 1:
            raise ValueError(f"validate_every is {self.validate_every}; expected 1 step or more")
        if self.validation_batch < 1:
            raise ValueError(f"validation_batch is {self.validation_batch}; expected 1 or more")


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
    """How a segmenter does on the validation set.

    Attributes:
        figures: val_miou, val_mean_accuracy, val_pixel_accuracy
        confusion: (Y, Y) int64, pixels of all images, truth by row
        examples: a few images
    """

    figures: dict[str, float]
    confusion: Tensor
    examples: list[Example]


def resume(path: str | Path) -> Result:
    """Go on with the run in a directory, exactly where its last checkpoint stands."""
    directory = RunDirectory.open(path, VERB)
    return run(from_plain(Config, directory.config(), "config"), directory)


def run(config: Config, directory: RunDirectory | None = None) -> Result:
    """Train a new segmenter, or go on from the last checkpoint of the run directory given."""
    if directory is None:
        RunDirectory.check_new(config.run.output)
    fabric = launch(config.device)
    rank, world_size, first = fabric.global_rank, fabric.world_size, fabric.global_rank == 0
    seed, optim = config.run.seed, config.optim

    source, held_out = open_data(config)
    torch.manual_seed(seed)
    segmenter, carried = build_segmenter(config, source)
    segmenter = synchronised(segmenter, fabric, optim.micro_batch_size(world_size))
    start_step, state = (directory and checkpoint.latest(directory)) or (0, {})
    last_step = min(optim.steps, config.run.stop_after or optim.steps)
    batches = training_batches(config, source, segmenter, fabric, start_step, last_step)
    validation = validation_batches(config, held_out, fabric)

    groups = parameter_groups(segmenter, optim.weight_decay, config.layer_decay)
    optimizer = build_optimizer(groups, optim, fused=can_fuse(fabric))
    model, optimizer = fabric.setup(prepared(segmenter, config.device), optimizer)
    means, unreadable = Means(), Unreadable(len(source), config.data.max_unreadable)
    best = BestWeights()
    parts: dict[str, Any] = {"model": segmenter, "optimizer": optimizer, "best": best}
    parts |= {"scaling": LossScaling(fabric), "unreadable": unreadable}
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
        if carried:
            progress.message(f"{config.init}: {carried}")
        for step in range(start_step + 1, last_step + 1):
            rate = optim.rate(step)
            set_learning_rate(optimizer, rate)
            seed_torch(step_generator(seed, step, f"drop path {rank}"))
            model.train()
            for micro, batch in enumerate(islice(stream, optim.accumulate)):
                for name in unreadable.note(batch.unreadable):
                    progress.warn(f"unreadable, the next image stands in: {name}")
                with fabric.no_backward_sync(model, enabled=micro + 1 < optim.accumulate):
                    logits, auxiliary = model(batch.images)  # (B, Y, h, w), (B, Y, Gh, Gw)
                    loss = pixel_loss(logits, batch.label_maps)
                    means.add({"loss": loss})
                    if auxiliary is not None:
                        hint = pixel_loss(auxiliary, batch.label_maps)
                        means.add({"auxiliary_loss": hint})
                        loss = loss + config.head.auxiliary_weight * hint
                    fabric.backward(loss / optim.accumulate)
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
            epoch = step / batches.steps_per_epoch
            if logs:
                figures = means.read(partial(summed, fabric))
                if unreadable.names:
                    figures["unreadable"] = len(unreadable.names)
                log.write({"step": step, "epoch": epoch, "rate": rate} | figures)
            pace = progress.update(step, figures, optim.batch_size, stream.wait_seconds)
            if logs:
                speed.write({"step": step} | pace._asdict())
            if validation is not None and (step % config.validate_every == 0 or step == last_step):
                with progress.aside("validation"):
                    judgement = judge(fabric, segmenter, validation, config)
                told = judgement.figures
                progress.message("  ".join(f"{name} {value:.4f}" for name, value in told.items()))
                log.write({"step": step, "epoch": epoch} | told)
                if config.keep == "best":
                    best.offer(told["val_miou"], step, segmenter)
            if saves and first:
                state = {name: part.state_dict() for name, part in parts.items()}
                checkpoint.save(directory, step, state, config.run.keep_last, config.run.keep_every)
    if best.step not in (0, last_step):  # not the last weights
        segmenter.load_state_dict(best.weights)
        judgement = None
    if validation is not None and judgement is None:  # earlier weights, or resumed after the end
        judgement = judge(fabric, segmenter, validation, config)
    sections: list[Section] = []
    if first:
        sections = chapters(directory, judgement, source)
        report(config, directory, sections, judgement, carried, best.step or last_step)
        save_weights(directory.weights_file, segmenter.eval())  # last: then the run is complete
    fabric.barrier()
    return Result(directory.path, {} if judgement is None else judgement.figures, sections)


# ── the data ────────────────────────────────────────────────────────────────────────────────────


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
    segmenter: SemanticSegmenter,
    fabric: Fabric,
    start_step: int,
    last_step: int,
) -> TrainBatches:
    """Return this process's part of the training batches."""
    vit = segmenter.config.backbone
    return train_batches(
        source,
        SegmentViews(config.view, vit.image_size, vit.mean),
        batch_size=config.optim.micro_batch_size(fabric.world_size),
        seed=config.run.seed,
        start_step=start_step,
        num_steps=last_step,
        accumulate=config.optim.accumulate,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=config.data.num_workers,
        cache_gigabytes=config.data.cache_gigabytes,
    )


def validation_batches(
    config: Config, source: LabelMaps | None, fabric: Fabric
) -> EvalBatches | None:
    """Return this process's part of the validation set, or None when the run has none."""
    if source is None:
        return None
    return eval_batches(
        source,
        config.validation_batch,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=config.data.num_workers,
        cache_gigabytes=config.data.cache_gigabytes,
    )


# ── the model ───────────────────────────────────────────────────────────────────────────────────


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


# ── how good it is ──────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def judge(
    fabric: Fabric, segmenter: SemanticSegmenter, batches: EvalBatches, config: Config
) -> Judgement:
    """Label the validation images; those that cannot be read are left out."""
    segmenter.eval()
    vit, Y, device = segmenter.backbone, segmenter.config.num_classes, fabric.device
    predictor = MapPredictor(vit.config.image_size, config.validation_views, vit.mean)
    confusion = torch.zeros(Y, Y, dtype=torch.int64, device=device)
    examples: list[Example] = []

    def classify(windows: Tensor) -> Tensor:
        with fabric.autocast():
            logits: Tensor = segmenter(windows).logits  # (n, Y, h', w')
        return logits

    for batch in prefetch(batches, device):
        images, truth = batch.images, batch.label_maps
        guess = predictor(classify, images)  # (B, H, W)
        confusion += pixel_confusion(truth, guess, Y)
        for image, true, guessed in zip(images, truth, guess, strict=True):
            if len(examples) < EXAMPLES:
                maps = (true.cpu(), guessed.to("cpu", torch.uint8))
                examples.append(Example(image.cpu(), *maps))
    confusion = summed(fabric, confusion).cpu()
    found = map_figures(confusion)
    names = ("miou", "mean_accuracy", "pixel_accuracy")
    return Judgement({f"val_{name}": getattr(found, name) for name in names}, confusion, examples)


def chapters(
    directory: RunDirectory, judgement: Judgement | None, source: LabelMaps
) -> list[Section]:
    """Draw what the report shows: curves, how each class fares, and some images."""
    panels = {
        "Loss": ["loss", "auxiliary_loss"],
        "Validation": ["val_miou", "val_mean_accuracy", "val_pixel_accuracy"],
        "Learning rate": ["rate"],
    }
    records = read_log(directory.metrics_file)
    caption = "One point a logging interval or a validation."
    sections = [Section("Segmentation", items=[curves(records, panels, caption)])]
    if judgement is not None:
        confusion = judgement.confusion
        table = iou_table(map_figures(confusion), confusion.sum(dim=1), source.class_names)
        sections.append(Section("Class by class", items=[table]))
        if judgement.examples:
            picture = example_picture(judgement.examples, source.class_names, source.palette)
            sections.append(Section("Examples", items=[picture]))
    return sections


def report(
    config: Config,
    directory: RunDirectory,
    sections: list[Section],
    judgement: Judgement | None,
    carried: str,
    step: int,
) -> None:
    """Write report.html."""
    facts = {
        "command": f"beit {VERB} --config config.yaml",
        "images": config.data.train,
        "start": (config.init or "fresh weights") + (carried and f"; {carried}"),
        "weights kept": f"those of step {step}"
        + (", chosen on the validation set" if judgement and config.keep == "best" else ""),
        "seed": str(config.run.seed),
    }
    told = {} if judgement is None else judgement.figures
    figures = {name.removeprefix("val_"): short_number(value) for name, value in told.items()}
    write_report(directory.report_file, "Segmentation", sections, facts, figures=figures)

"""Train VQ-KD, the visual tokenizer of BEiT v2: build the parts, run the loop, save the results.

The loop is in `beit.tokenizer.vqkd_loop`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from beit.data.batch import Batch
from beit.data.batches import DataConfig
from beit.data.channels import check_channels, pixel_options
from beit.data.views import TrainViews, ViewConfig
from beit.draw.report import Section
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.rows.compute import fingerprint
from beit.run.batches import image_sets, open_sets, open_train, open_validation, train_batches
from beit.run.budget import Sets, within_budget
from beit.run.changes import check_teacher
from beit.run.device import DeviceConfig
from beit.run.directory import RunConfig, RunDirectory
from beit.run.environment import environment
from beit.run.familiar import warn_of_shared
from beit.run.images import check_images, keep_images
from beit.run.journal import Journal, Result
from beit.run.launch import launch, launch_run
from beit.run.optim import OptimConfig
from beit.run.parameters import build_optimizer, can_fuse, parameter_groups
from beit.run.prepare import prepared
from beit.tokenizer.centre import Centre
from beit.tokenizer.codebook_log import CodeCounts
from beit.tokenizer.ending import ending as ending
from beit.tokenizer.report import last_validated, report_vqkd
from beit.tokenizer.start import start_from
from beit.tokenizer.teacher_cache import CachedFeatures, compute_maps
from beit.tokenizer.vqkd_loop import CodeUse, VQKDTraining, train
from beit.weights.bands import check_bands
from beit.weights.file import save_weights
from beit.weights.open import load
from beit.weights.teachers import Teacher, TeacherConfig, check_chosen, load_teacher

VERB = "train-tokenizer"
TIMED = 32  # images by which a teacher is timed


@dataclass(frozen=True)
class CodebookConfig:
    """Initialisation and update rule of the codebook, and revival of unused codes.

    Args:
        start_after: number of steps, before the codebook starts, in which the decoder gets the
            encoder's vectors directly; 0, as published, to start the codebook at once.
        kmeans: initialise by k-means on the first batch that the codebook sees, else at random.
        learn: update by moving averages, as published, or by the gradient of Eq. 2's codebook term.
        commitment: mean over a code's channels, as published, or sum over channels, as in the
            paper, which is C times larger; also used for the codebook term.
        revive_every: steps between two revivals of dead codes; 0, as published, to revive none.
        revive_below: a code is dead if it was chosen less often than this share of the mean since
            the last revival.
    """

    start_after: int = 0
    kmeans: bool = True
    learn: Literal["ema", "gradient"] = "ema"
    commitment: Literal["mean", "sum"] = "mean"
    revive_every: int = 0
    revive_below: float = 0.1

    def __post_init__(self) -> None:
        if self.start_after < 0:
            raise ValueError(
                f"codebook.start_after is {self.start_after}; expected 0 or more steps"
            )
        if self.revive_every < 0 or not 0 <= self.revive_below < 1:
            raise ValueError(
                "codebook.revive_every must be 0 or more and codebook.revive_below in [0, 1), got "
                f"{self.revive_every} and {self.revive_below}"
            )


@dataclass(frozen=True)
class Config:
    """Settings of `beit train-tokenizer`; the defaults are the published ViT-B/16 recipe.

    Args:
        data: the images.
        view: how training views are cropped and augmented.
        model: the tokenizer.
        init: initial weights: a tokenizer, or any run or weights file of a ViT for the encoder,
            published:NAME, hf://OWNER/NAME; weights that fit are copied, and its network sets
            model.encoder. null for random weights.
        freeze: codebook: the codebook of the initial weights does not change; codes: its encoder
            does not change either, so that images keep their codes and only the decoder learns.
            null to train everything.
        teacher: the network whose features the tokenizer learns to reconstruct.
        codebook: initialisation, update rule and revival of codes.
        optim: the optimiser and its schedule.
        crop_ratio: side of the centre crop of validation images, as a share of the shorter side.
        validate_every: epochs between two validations; the last step always has one.
        run: where and how often to write.
        device: devices and precision.
    """

    data: DataConfig = DataConfig()
    view: ViewConfig = ViewConfig(min_scale=0.08, color_jitter=0.0)
    model: VQKDConfig = VQKDConfig()
    init: str | None = None
    freeze: Literal["codebook", "codes"] | None = None
    teacher: TeacherConfig = TeacherConfig()
    codebook: CodebookConfig = CodebookConfig()
    optim: OptimConfig = OptimConfig(
        batch_size=512,
        epochs=100,
        learning_rate=2e-4,
        warmup_epochs=10,
        betas=(0.9, 0.99),
        weight_decay=1e-4,
    )
    crop_ratio: float = 0.875
    validate_every: int = 1
    run: RunConfig = RunConfig()
    device: DeviceConfig = DeviceConfig()

    def __post_init__(self) -> None:
        if self.validate_every < 1:
            raise ValueError(f"validate_every is {self.validate_every}; expected 1 epoch or more")
        if self.model.levels and (self.codebook.revive_every or self.codebook.learn != "ema"):
            raise ValueError(
                f"model.levels {self.model.levels} fix the codes, but codebook.learn is "
                f"{self.codebook.learn} and codebook.revive_every {self.codebook.revive_every}; "
                "use ema and 0, or no levels"
            )
        if self.freeze and self.init is None:
            raise ValueError(
                f"freeze is {self.freeze}, but there is no codebook to keep; give the tokenizer "
                "that has it, as in --init runs/tokenizer"
            )
        if self.freeze and (self.codebook.revive_every or self.codebook.learn != "ema"):
            raise ValueError(
                f"freeze {self.freeze} keeps the codes, but codebook.learn is "
                f"{self.codebook.learn} and codebook.revive_every {self.codebook.revive_every}; "
                "use ema and 0"
            )
        if self.freeze == "codes" and self.model.encoder.drop_path:
            raise ValueError(
                f"freeze codes keeps the codes of images, but model.encoder.drop_path is "
                f"{self.model.encoder.drop_path}, which changes them at random; give 0"
            )
        if self.device.shard and self.codebook.learn != "ema":
            raise ValueError(
                "device.shard would divide a codebook that is learned by gradients, which revival "
                "needs whole; use codebook.learn ema, or leave device.shard out"
            )
        if self.teacher.cache and self.view.color_jitter:
            raise ValueError(
                "teacher.cache keeps features of images without jitter, but view.color_jitter is "
                f"{self.view.color_jitter}; give 0, or no cache"
            )

    @property
    def commitment_weight(self) -> int:
        """The weight of the mean commitment in the loss; 0 for a fixed grid of codes (FSQ)."""
        if self.model.levels:
            return 0
        return self.model.code_width if self.codebook.commitment == "sum" else 1


def run(config: Config, directory: RunDirectory | None = None, changed_ok: bool = False) -> Result:
    """Train a new tokenizer, or resume the run in `directory` from its last checkpoint."""
    size, channels = config.model.encoder.image_size, config.model.encoder.image_channels
    check_channels(config.data, channels, "model.encoder.in_channels", config.view.color_jitter)
    views = TrainViews(config.view, size, size)
    sets = partial(all_sets, config, views)
    config = within_budget(run, config, sets, trial=quantized_at_once, fit=codebook_started)
    fabric = launch_run(config, directory)
    optim, codebook = config.optim, config.codebook
    torch.manual_seed(config.run.seed)
    named = config.teacher
    teacher = open_teacher(config)
    about = environment(VERB) | {"teacher": fingerprint(teacher, teacher.settings)}
    check_teacher(directory, "teacher", named.source, about["teacher"])
    torch.manual_seed(config.run.seed)
    vqkd = VQKD(match_teacher(config.model, teacher))
    teacher = teacher.to(fabric.device)
    source = open_train(config, views)
    validation = open_validation(config, size, fabric)
    opened = image_sets(source, validation)
    images = check_images(directory, opened, changed_ok)
    schedule = optim.schedule(len(source))
    if codebook.start_after >= schedule.total_steps:
        raise ValueError(
            f"codebook.start_after is {codebook.start_after}, but the run has "
            f"{schedule.total_steps} steps; give fewer, or more epochs"
        )
    journal = Journal(about, config, fabric, schedule, directory)
    batches = train_batches(journal, source, views)

    def features(batch: Batch) -> Tensor:
        return teacher.features(batch.images, vqkd.grid)

    targets: Callable[[Batch], Tensor] = features
    if named.cache:
        maps = compute_maps(named, teacher, source, views, config.data, fabric)
        targets = CachedFeatures(maps, vqkd.grid, features, journal.message)

    begins = config.init is not None and not journal.resumed
    account = start_from(str(config.init), vqkd) if begins else ""
    if config.freeze:
        freeze(vqkd, config.freeze, begins)
    groups = parameter_groups(vqkd, optim.weight_decay)
    by_gradient = codebook.learn == "gradient"
    if by_gradient:  # the codebook is a parameter, without decay
        learned = {"params": [vqkd.quantizer.use_gradients()], "names": ["quantizer.codebook"]}
        groups.append(learned | {"weight_decay": 0.0, "lr_scale": 1.0})
    optimizer = build_optimizer(groups, optim, fused=can_fuse(fabric))
    model, optimizer = fabric.setup(prepared(vqkd, config.device), optimizer)
    use = CodeUse(vqkd.vocab_size, fabric.device)
    counts = CodeCounts(vqkd, fabric)
    centre = Centre(fabric, teacher.width) if named.centred else None
    centred = {} if centre is None else {"centre": centre}
    journal.begin(batches, model=vqkd, optimizer=optimizer, use=use, counts=counts, **centred)
    keep_images(journal, images)
    warn_of_shared(journal, opened)
    if account:
        check_bands(str(config.init), config.data.train)
        journal.message(account)
    draw = partial(report_vqkd, journal.directory, config, fabric, vqkd)
    parts = VQKDTraining(
        *(fabric, vqkd, model, optimizer, features, targets, centre, use, counts, optim),
        seed=config.run.seed,
        start_after=codebook.start_after,
        kmeans=codebook.kmeans,
        commitment_weight=config.commitment_weight,
        attraction_weight=config.commitment_weight if by_gradient else 0,
        revive_every=codebook.revive_every,
        revive_below=codebook.revive_below,
        collapse_warning=collapse_warning(config),
        validation=validation,
        validate_every=config.validate_every * journal.steps_per_epoch,
        report=draw,
    )
    validated = train(parts, journal)
    return journal.finish(
        validated.metrics if validated else {},
        partial(
            save_weights,
            model=vqkd.eval(),
            crop_ratio=config.crop_ratio,
            pixel_options=pixel_options(config.data.train),
        ),
        partial(draw, validated),
    )


def all_sets(config: Config, views: TrainViews) -> Sets:
    """Open the images of a training, and time the teacher for those features that are kept."""
    sets, named = open_sets(config, views), config.teacher
    if not named.cache:
        return sets
    teacher, channels = open_teacher(config), config.model.encoder.image_channels
    images = torch.zeros(TIMED, channels, *views.size, dtype=torch.uint8)
    teacher.features(images, teacher.grid)  # the first call also allocates memory
    started = time.monotonic()
    teacher.features(images, teacher.grid)
    seconds = (time.monotonic() - started) / TIMED * len(sets.train)
    return sets._replace(prepared=seconds * (1 + (views.config.flip > 0)))


def open_teacher(config: Config) -> Teacher:
    """Open the teacher, which sees the channels that are named.

    Raises:
        ValueError: images have other channels than three, and none is named.
    """
    named, channels = config.teacher, config.model.encoder.image_channels
    if channels != 3 and not named.channels:
        raise ValueError(
            f"images have {channels} channels, and a teacher sees three; name them, as in "
            "--teacher.channels [3,2,1], or one as grey"
        )
    check_chosen("teacher.channels", named.channels, channels)
    teacher = load_teacher(named.source, named.image_size, named.pretrained, named.num_heads)
    teacher.channels = named.channels
    return teacher


def quantized_at_once(config: Config, folder: Path) -> Config:
    """Return the settings for timing a step: with the codebook, and other kept features."""
    codebook, teacher = replace(config.codebook, start_after=0), config.teacher
    if teacher.cache:
        teacher = replace(teacher, cache=str(folder / "teacher"))
    return replace(config, codebook=codebook, teacher=teacher)


def codebook_started(config: Config, steps: int) -> Config:
    """Start the codebook in the first tenth of a shortened run."""
    start_after = min(config.codebook.start_after, steps // 10)
    return replace(config, codebook=replace(config.codebook, start_after=start_after))


def freeze(vqkd: VQKD, what: Literal["codebook", "codes"], begins: bool) -> None:
    """Exclude the codebook from training, and for codes also the encoder.

    Raises:
        ValueError: the run begins without the codebook of its source.
    """
    if begins and not vqkd.quantizer.initialised:
        sizes = f"model.num_codes {vqkd.vocab_size}, model.code_width {vqkd.config.code_width}"
        raise ValueError(
            f"freeze is {what}, but init has no codebook for {sizes} and l2_normalised "
            f"{vqkd.config.l2_normalised}; leave these settings out, or name a trained tokenizer"
        )
    vqkd.quantizer.fixed = True
    for part in (vqkd.encoder, vqkd.encode_task) if what == "codes" else ():
        part.requires_grad_(False)


def redraw(config: Config, directory: RunDirectory) -> list[Section]:
    """Draw the report of a finished run again."""
    fabric = launch(DeviceConfig())
    vqkd = load(directory.path).to(fabric.device)
    assert isinstance(vqkd, VQKD)
    validated = last_validated(config, directory, fabric, vqkd)
    return report_vqkd(directory, config, fabric, vqkd, validated)


def match_teacher(model: VQKDConfig, teacher: Teacher) -> VQKDConfig:
    """Return the tokenizer's configuration with `teacher_width` set, or checked."""
    if model.teacher_width not in (0, teacher.width):
        raise ValueError(
            f"model.teacher_width is {model.teacher_width}, but the teacher's features have "
            f"{teacher.width} channels; give {teacher.width}, or 0 to take them from the teacher"
        )
    return replace(model, teacher_width=teacher.width)


def collapse_warning(config: Config) -> str:
    """Return the text of the warning that the codebook collapses, with {perplexity} to fill in."""
    fewer = "use fewer codes (--model.num_codes)"
    if config.model.levels:
        first = "use fewer (--model.levels)"
    elif config.codebook.revive_every == 0:
        first = f"restart dead codes with --codebook.revive_every 10, or {fewer}"
    else:
        every = config.codebook.revive_every
        first = f"revive more often than every {every} steps, or {fewer}"
    return (
        f"the codebook is collapsing: perplexity {{perplexity}} of {config.model.num_codes} codes; "
        f"{first}, a larger batch or a lower learning rate"
    )

"""Train VQ-KD, the visual tokenizer of BEiT v2: build what the loop needs, run it, keep the result.

The loop is in `beit.tokenizer.vqkd_loop`.
"""

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from lightning_fabric import Fabric

from beit.data.batches import DataConfig, EvalBatches
from beit.data.prefetch import prefetch
from beit.data.sources import open_source
from beit.data.views import EvalView, TrainViews, ViewConfig
from beit.draw.report import Section
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.run.batches import eval_batches, train_batches
from beit.run.device import DeviceConfig, can_fuse, launch, prepared
from beit.run.directory import RunConfig, RunDirectory
from beit.run.journal import Journal, Result, launched
from beit.run.log import last_validation
from beit.run.optim import OptimConfig, build_optimizer, parameter_groups
from beit.run.reading import Reading
from beit.tokenizer.codebook_log import Validated, count_codes
from beit.tokenizer.report import report_vqkd
from beit.tokenizer.vqkd_loop import CodeUse, VQKDTraining, train
from beit.weights.file import save_weights
from beit.weights.open import load
from beit.weights.teachers import Teacher, TeacherConfig, load_teacher

logger = logging.getLogger(__name__)

VERB = "train-tokenizer"


@dataclass(frozen=True)
class CodebookConfig:
    """How the codebook starts and learns, and what becomes of codes that nothing chooses.

    Args:
        kmeans: start at the k-means of the first batch, else at random.
        learn: by moving averages, as published, or by the gradient of Eq. 2's codebook term.
        commitment: mean over a code's channels, as published, or their sum, as in the paper, which
            weighs C times as much; of the codebook term as well.
        revive_every: steps between two revivals of dead codes; 0, as published, for never.
        revive_below: a code is dead when since the last revival it was chosen less often than this
            share of the mean.
    """

    kmeans: bool = True
    learn: Literal["ema", "gradient"] = "ema"
    commitment: Literal["mean", "sum"] = "mean"
    revive_every: int = 0
    revive_below: float = 0.1

    def __post_init__(self) -> None:
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
        view: how a training view is cut out of an image.
        model: the tokenizer.
        teacher: whose features it learns to rebuild.
        codebook: start and revival of codes.
        optim: the optimiser and its schedule.
        crop_ratio: share of a validation image's shorter side that is kept.
        validate_every: epochs between two validations; the end always has one.
        run: where and how often to write.
        device: what to compute on.
    """

    data: DataConfig = DataConfig()
    view: ViewConfig = ViewConfig(min_scale=0.08, color_jitter=0.0)
    model: VQKDConfig = VQKDConfig()
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
                "use ema (nothing moves) and 0, or no levels"
            )

    @property
    def commitment_weight(self) -> int:
        """What the mean commitment counts in the loss; a fixed grid needs none (FSQ)."""
        if self.model.levels:
            return 0
        return self.model.code_width if self.codebook.commitment == "sum" else 1


def run(config: Config, directory: RunDirectory | None = None) -> Result:
    """Train a new tokenizer, or resume the run in a directory from its last checkpoint."""
    fabric = launched(config, directory)
    optim, codebook = config.optim, config.codebook
    torch.manual_seed(config.run.seed)
    teacher = load_teacher(**vars(config.teacher))
    torch.manual_seed(config.run.seed)
    vqkd = VQKD(fitting(config.model, teacher))
    teacher, size = teacher.to(fabric.device), vqkd.config.encoder.image_size
    data, cache = config.data, config.data.cache_gigabytes
    source = open_source(data.train, cache_gigabytes=cache, limit=data.limit)
    validation = validation_batches(config, size, fabric)
    journal = Journal(VERB, config, fabric, optim.schedule(len(source)), directory)
    batches = train_batches(
        config, source, TrainViews(config.view, size, size), fabric, *journal.span
    )

    groups = parameter_groups(vqkd, optim.weight_decay)
    by_gradient = codebook.learn == "gradient"
    if by_gradient:  # the codebook joins, without decay
        learned = {"params": [vqkd.quantizer.use_gradients()], "names": ["quantizer.codebook"]}
        groups.append(learned | {"weight_decay": 0.0, "lr_scale": 1.0})
    optimizer = build_optimizer(groups, optim, fused=can_fuse(fabric))
    model, optimizer = fabric.setup(prepared(vqkd, config.device), optimizer)
    use = CodeUse(vqkd.vocab_size, fabric.device)
    parts = VQKDTraining(
        *(fabric, vqkd, model, optimizer, teacher, use, optim, config.run.seed),
        kmeans=codebook.kmeans,
        commitment_weight=config.commitment_weight,
        attraction_weight=config.commitment_weight if by_gradient else 0,
        revive_every=codebook.revive_every,
        revive_below=codebook.revive_below,
        collapse_warning=collapse_warning(config),
        validation=validation,
        validate_every=config.validate_every * journal.steps_per_epoch,
    )
    stream = prefetch(batches, fabric.device)
    journal.begin(stream, model=vqkd, optimizer=optimizer, use=use)
    draw = partial(report_vqkd, journal.directory, config, fabric, vqkd)
    validated = train(parts, journal, draw)
    sections = []
    if fabric.is_global_zero:
        save_weights(journal.directory.weights_file, vqkd.eval())
        sections = draw(validated)
    fabric.barrier()
    return Result(journal.directory.path, validated.metrics if validated else {}, sections)


def redraw(config: Config, directory: RunDirectory) -> list[Section]:
    """Draw the report of a finished run again, from its directory."""
    fabric = launch(DeviceConfig())
    vqkd = load(directory.path).to(fabric.device)
    assert isinstance(vqkd, VQKD)
    batches, validated = validation_batches(config, vqkd.image_size, fabric), None
    if batches is not None:
        reading = Reading(batches, fabric, config.data.max_unreadable, logger.warning)
        counts = count_codes(vqkd, reading, fabric)
        validated = Validated(last_validation(directory.metrics_file), counts)
    return report_vqkd(directory, config, fabric, vqkd, validated)


def validation_batches(config: Config, size: tuple[int, int], fabric: Fabric) -> EvalBatches | None:
    """Open this process's share of the validation set; None when the run has none."""
    if not config.data.validation:
        return None
    cache = config.data.cache_gigabytes
    source = open_source(config.data.validation, cache_gigabytes=cache)
    return eval_batches(config, source, EvalView(size, config.crop_ratio), fabric)


def fitting(model: VQKDConfig, teacher: Teacher) -> VQKDConfig:
    """Return the tokenizer's numbers with the teacher's width filled in or checked."""
    if model.teacher_width not in (0, teacher.width):
        raise ValueError(
            f"model.teacher_width is {model.teacher_width}, but the teacher's features have "
            f"{teacher.width} channels; give {teacher.width}, or 0 to take them from the teacher"
        )
    return replace(model, teacher_width=teacher.width)


def collapse_warning(config: Config) -> str:
    """Say that the codebook collapses, with room for the perplexity, and what to change."""
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

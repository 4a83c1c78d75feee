"""Train a visual tokenizer: VQ-KD (BEiT v2, section 2.2).

A ViT encodes the image, each patch is replaced by the nearest code of a codebook on the sphere, and
a small decoder rebuilds from the codes what a frozen teacher sees in each patch.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from beit.data.batch import Batch
from beit.data.batches import DataConfig, EvalBatches, TrainBatches
from beit.data.order import step_generator
from beit.data.prefetch import prefetch
from beit.data.sources import Source, open_source
from beit.data.unreadable import Unreadable
from beit.data.views import EvalView, TrainViews, ViewConfig
from beit.draw.curves import curves
from beit.draw.numbers import short_number
from beit.draw.report import Section, Table, write_report
from beit.draw.tokens import code_examples, token_maps, usage_plot
from beit.nn.losses import cosine_distance
from beit.nn.metrics import codebook_health, position_counts
from beit.nn.quantizer import Quantizer
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.run import checkpoint
from beit.run.device import (
    DeviceConfig,
    LossScaling,
    can_fuse,
    gathered,
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
from beit.weights.teachers import Teacher, TeacherConfig, load_teacher

VERB = "train-tokenizer"
COLLAPSED = 0.1  # a perplexity under this share of K, or of fewer choices, is a collapse
ON_LINE = ("loss", "reconstruction", "grad_norm", "usage", "perplexity", "unreadable")
SHOWN = 12  # images and codes drawn in the report
GALLERY = 256  # images among which examples of a code are looked for


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


class Validation(NamedTuple):
    """Figures over the validation set, and how often each position chose each code (N, K)."""

    figures: dict[str, float]
    counts: Tensor


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
    """Train a new tokenizer, or go on from the last checkpoint of the run directory given."""
    if directory is None:
        RunDirectory.check_new(config.run.output)
    fabric = launch(config.device)
    rank, seed, optim, codebook = fabric.global_rank, config.run.seed, config.optim, config.codebook
    first = rank == 0

    torch.manual_seed(seed)
    teacher = load_teacher(**vars(config.teacher))
    torch.manual_seed(seed)
    vqkd = VQKD(fitting(config.model, teacher))
    quantizer, size = vqkd.quantizer, vqkd.config.encoder.image_size
    source = open_source(
        config.data.train, cache_gigabytes=config.data.cache_gigabytes, limit=config.data.limit
    )
    validation = validation_batches(config, size, fabric)
    start_step, state = (directory and checkpoint.latest(directory)) or (0, {})
    steps_per_epoch = max(1, len(source) // optim.batch_size)
    total_steps = optim.epochs * steps_per_epoch
    last_step = min(total_steps, config.run.stop_after or total_steps)
    batches = training_batches(config, source, size, fabric, start_step, last_step)

    groups = parameter_groups(vqkd, optim.weight_decay)
    if codebook.learn == "gradient":  # the codebook joins, without decay
        learned = {"params": [quantizer.use_gradients()], "names": ["quantizer.codebook"]}
        groups.append(learned | {"weight_decay": 0.0, "lr_scale": 1.0})
    optimizer = build_optimizer(groups, optim, fused=can_fuse(fabric))
    model, optimizer = fabric.setup(prepared(vqkd, config.device), optimizer)
    teacher = teacher.to(fabric.device)
    means, unreadable = Means(), Unreadable(len(source), config.data.max_unreadable)
    use = CodeUse(vqkd.config.encoder.num_patches, vqkd.vocab_size, fabric.device)
    parts: dict[str, Any] = {"model": vqkd, "optimizer": optimizer, "scaling": LossScaling(fabric)}
    parts |= {"unreadable": unreadable, "use": use}
    if state:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    started, outcome = bool(quantizer.initialised), None

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
            statistics = torch.zeros((), device=fabric.device)
            vectors: list[Tensor] = []  # of every micro-step, (B, N, C) each
            micro_batches: Iterator[Batch] = islice(stream, optim.accumulate)
            if not started:
                whole = list(micro_batches)
                start_codebook(fabric, vqkd, [batch.images for batch in whole], config)
                micro_batches, started = iter(whole), True
            for micro, batch in enumerate(micro_batches, 1):
                for name in unreadable.note(batch.unreadable):
                    progress.warn(f"unreadable, the next image stands in: {name}")
                with fabric.autocast():
                    target = teacher.features(batch.images, vqkd.grid)  # (B, N, T)
                with fabric.no_backward_sync(model, enabled=micro < optim.accumulate):
                    output = model(batch.images)
                    reconstruction = cosine_distance(output.features, target)
                    loss = reconstruction + config.commitment_weight * output.commitment  # Eq. 2
                    if codebook.learn == "gradient":
                        loss = loss + config.commitment_weight * output.attraction
                    fabric.backward(loss / optim.accumulate)
                statistics = statistics + quantizer.statistics(output.vectors, output.codes)
                use.since_log += position_counts(output.codes, vqkd.vocab_size)
                vectors.append(output.vectors.detach())
                means.add({"loss": loss, "reconstruction": reconstruction})
            if optim.clip is not None:
                norm = fabric.clip_gradients(
                    model, optimizer, max_norm=optim.clip, error_if_nonfinite=False
                )
                means.add({"grad_norm": cast(Tensor, norm)})
            optimizer.step()
            optimizer.zero_grad()

            statistics = summed(fabric, statistics)
            quantizer.update(statistics)
            use.since_revival += statistics[:, -1]
            if codebook.revive_every and step % codebook.revive_every == 0:
                dead = use.dead_since_revival(codebook.revive_below)
                generator = step_generator(seed, step, "revival")
                revive(fabric, quantizer, optimizer, vectors, dead, generator)

            saves = step % config.run.checkpoint_every == 0 or step == last_step
            logs = step % config.run.log_every == 0 or saves  # no checkpoint amid a window
            if logs:
                checkpoint.refuse_non_finite(directory, step, float(loss.detach()), rate)
            figures: dict[str, float] = {}
            if logs:
                figures = means.read(partial(summed, fabric)) | use.health_since_log(fabric)
                if unreadable.names:
                    figures["unreadable"] = len(unreadable.names)
                log.write({"step": step, "epoch": step / steps_per_epoch, "rate": rate} | figures)
                if figures["perplexity"] < COLLAPSED * min(vqkd.vocab_size, figures["choices"]):
                    advice = collapse_advice(figures["perplexity"], config)
                    log.write({"step": step, "warning": advice})
                    progress.message(advice)
            pace = progress.update(step, on_line(figures), optim.batch_size, stream.wait_seconds)
            if logs:
                speed.write({"step": step} | pace._asdict())
            ends = step % (config.validate_every * steps_per_epoch) == 0 or step == last_step
            if ends and validation is not None:
                with progress.aside("validation"):
                    outcome = validate(fabric, vqkd, teacher, validation)
                log.write({"step": step, "epoch": step / steps_per_epoch} | outcome.figures)
            if ends and first and step < last_step:
                with progress.aside("report"):
                    report(config, directory, fabric, vqkd, outcome)
            if saves and first:
                state = {name: part.state_dict() for name, part in parts.items()}
                checkpoint.save(directory, step, state, config.run.keep_last, config.run.keep_every)
    if validation is not None and outcome is None:  # resumed after the last step
        outcome = validate(fabric, vqkd, teacher, validation)
    sections: list[Section] = []
    if first:
        sections = report(config, directory, fabric, vqkd, outcome)
        save_weights(directory.weights_file, vqkd.eval())  # last: a run that has it is complete
    fabric.barrier()
    return Result(directory.path, outcome.figures if outcome else {}, sections)


class CodeUse:
    """How often each code was chosen: since the last log line, and since the last revival."""

    def __init__(self, num_positions: int, num_codes: int, device: torch.device) -> None:
        # of this process alone, (N, K), and of all processes, (K,)
        self.since_log = torch.zeros(num_positions, num_codes, dtype=torch.int64, device=device)
        self.since_revival = torch.zeros(num_codes, device=device)

    def health_since_log(self, fabric: Fabric) -> dict[str, float]:
        """Measure the codebook over all processes, and start a new window."""
        figures = health(summed(fabric, self.since_log))
        self.since_log.zero_()
        return figures

    def dead_since_revival(self, share: float) -> Tensor:
        """Tell which codes (K,) bool were chosen less than a share of the mean; count anew."""
        dead = self.since_revival < share * self.since_revival.mean()
        self.since_revival.zero_()
        return dead

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps; the log's window is empty whenever one is written."""
        return {"since_revival": self.since_revival}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict()`."""
        self.since_revival.copy_(state["since_revival"])


def health(counts: Tensor) -> dict[str, float]:
    """Measure how a codebook is used, from counts (N, K) of each code at each position."""
    overall = codebook_health(counts.sum(dim=0))
    by_position = [codebook_health(row) for row in counts.cpu()]
    return {name: float(value) for name, value in overall._asdict().items()} | {
        "choices": float(counts.sum()),
        "position_usage": sum(h.usage for h in by_position) / len(by_position),
        "position_perplexity_min": min(h.perplexity for h in by_position),
        "position_perplexity_max": max(h.perplexity for h in by_position),
    }


def fitting(model: VQKDConfig, teacher: Teacher) -> VQKDConfig:
    """Return the tokenizer's numbers with the teacher's width filled in or checked."""
    if model.teacher_width not in (0, teacher.width):
        raise ValueError(
            f"model.teacher_width is {model.teacher_width}, but the teacher's features have "
            f"{teacher.width} channels; give {teacher.width}, or 0 to take them from the teacher"
        )
    return replace(model, teacher_width=teacher.width)


def training_batches(
    config: Config,
    source: Source,
    size: tuple[int, int],
    fabric: Fabric,
    start_step: int,
    last_step: int,
) -> TrainBatches:
    """Return this process's part of the training batches."""
    return TrainBatches(
        source,
        TrainViews(config.view, size, size),
        batch_size=config.optim.micro_batch_size(fabric.world_size),
        seed=config.run.seed,
        start_step=start_step,
        num_steps=last_step,
        accumulate=config.optim.accumulate,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=config.data.num_workers,
    )


def validation_batches(config: Config, size: tuple[int, int], fabric: Fabric) -> EvalBatches | None:
    """Return this process's part of the validation set, or None when the run has none."""
    if not config.data.validation:
        return None
    return EvalBatches(
        open_source(config.data.validation, cache_gigabytes=config.data.cache_gigabytes),
        EvalView(size, config.crop_ratio),
        config.optim.micro_batch_size(fabric.world_size),
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=config.data.num_workers,
    )


@torch.no_grad()
def start_codebook(fabric: Fabric, vqkd: VQKD, images: list[Tensor], config: Config) -> None:
    """Start the codebook on the first step's micro-batches (B, 3, H, W), alike in all processes."""
    if not config.codebook.kmeans:
        vqkd.quantizer.initialised.fill_(True)
        return
    with fabric.autocast():
        vectors = [vqkd.embed(part) for part in images]
    vqkd.quantizer.start(rows_of(fabric, vectors), step_generator(config.run.seed, 0, "k-means"))
    vqkd.quantizer.codebook.copy_(fabric.broadcast(vqkd.quantizer.codebook))


@torch.no_grad()
def revive(
    fabric: Fabric,
    quantizer: Quantizer,
    optimizer: Optimizer,
    vectors: list[Tensor],
    dead: Tensor,
    generator: torch.Generator,
) -> None:
    """Restart dead codes (K,) at vectors (B, N, C) of the step, alike in all processes.

    Where the optimiser moves the codebook, it forgets what moved these codes at their old places.
    """
    places = quantizer.revive(rows_of(fabric, vectors), dead, generator)
    state = optimizer.state.get(quantizer.codebook, {})
    for moment in ("exp_avg", "exp_avg_sq"):
        if moment in state:
            state[moment][places] = 0


def rows_of(fabric: Fabric, vectors: list[Tensor]) -> Tensor:
    """Join a step's vectors (B, N, C) of all micro-steps and processes as (rows, C).

    Their order is that of the images, so that processes and micro-steps may trade places.
    """
    return torch.cat([gathered(fabric, part.flatten(0, 1)) for part in vectors])


@torch.no_grad()
def validate(fabric: Fabric, vqkd: VQKD, teacher: Teacher, batches: EvalBatches) -> Validation:
    """Measure the loss and the use of the codebook over the whole validation set."""
    vqkd.eval()
    means = Means()
    # A process without a batch still takes part in the sums over all of them.
    means.add({"val_reconstruction": 0.0, "val_commitment": 0.0}, weight=0)
    counts = torch.zeros(
        vqkd.config.encoder.num_patches, vqkd.vocab_size, dtype=torch.int64, device=fabric.device
    )
    for batch in prefetch(batches, fabric.device):
        with fabric.autocast():
            target = teacher.features(batch.images, vqkd.grid)
            output = vqkd(batch.images)
        reconstruction = cosine_distance(output.features, target)
        means.add(
            {"val_reconstruction": reconstruction, "val_commitment": output.commitment},
            weight=len(batch.images),
        )
        counts += position_counts(output.codes, vqkd.vocab_size)
    counts = summed(fabric, counts)
    figures = means.read(partial(summed, fabric))
    figures |= {f"val_{name}": value for name, value in health(counts).items()}
    return Validation(figures, counts.cpu())


def on_line(figures: dict[str, float]) -> dict[str, float]:
    """Pick the figures that the live line shows."""
    return {name: figures[name] for name in ON_LINE if name in figures}


def collapse_advice(perplexity: float, config: Config) -> str:
    """Say that the codebook has collapsed, and what to change."""
    num_codes = config.model.num_codes
    advice = (
        "restart dead codes with --codebook.revive_every 10"
        if config.codebook.revive_every == 0
        else f"revive more often than every {config.codebook.revive_every} steps"
    )
    fewer = "use fewer codes (--model.num_codes)"
    first = f"{advice}, or {fewer}" if not config.model.levels else "use fewer (--model.levels)"
    return (
        f"the codebook is collapsing: perplexity {perplexity:.1f} of {num_codes} codes; {first}, "
        "a larger batch or a lower learning rate"
    )


@torch.no_grad()
def chapters(
    config: Config, directory: RunDirectory, fabric: Fabric, vqkd: VQKD, outcome: Validation | None
) -> list[Section]:
    """Draw what the report shows: curves, the state of the codebook, codes over images."""
    vqkd.eval()
    panels = {
        "Loss": ["loss", "reconstruction", "val_reconstruction"],
        f"Perplexity, of {vqkd.vocab_size} codes": ["perplexity", "val_perplexity"],
        "Share of codes in use": ["usage", "val_usage"],
        "Learning rate": ["rate"],
    }
    records = read_log(directory.metrics_file)
    curve = curves(records, panels, "One point a logging interval, or a validation.")
    sections = [Section("Training the tokenizer", items=[curve])]
    if outcome:
        items = ((name.removeprefix("val_"), value) for name, value in outcome.figures.items())
        table = Table(
            "Over the whole set.", ["figure", "value"], [(n, short_number(v)) for n, v in items]
        )
        plot = usage_plot(outcome.counts.sum(dim=0), "How often each code is chosen.")
        sections.append(Section("The codebook on the validation set", items=[table, plot]))

    source = open_source(config.data.validation or config.data.train)
    view = EvalView(vqkd.config.encoder.image_size, config.crop_ratio)
    shown = next(iter(EvalBatches(source, view, min(GALLERY, len(source))))).images
    with fabric.autocast():
        codes = vqkd.encode(shown.to(fabric.device)).cpu()
    grid, K = vqkd.grid, vqkd.vocab_size
    maps = token_maps(shown[:SHOWN], codes[:SHOWN], grid, K, "Images and their codes.")
    examples = code_examples(shown, codes, grid, SHOWN, "Patches that share a code.")
    sections.append(Section("What the codes mean", items=[maps, examples]))
    return sections


def report(
    config: Config, directory: RunDirectory, fabric: Fabric, vqkd: VQKD, outcome: Validation | None
) -> list[Section]:
    """Write report.html anew, and return its sections."""
    sections = chapters(config, directory, fabric, vqkd, outcome)
    facts = {
        "command": f"beit {VERB} --config config.yaml",
        "images": config.data.train,
        "teacher": config.teacher.source,
        "seed": str(config.run.seed),
    }
    shown = ("reconstruction", "usage", "perplexity") if outcome else ()
    figures = {name: short_number(outcome.figures[f"val_{name}"]) for name in shown if outcome}
    write_report(directory.report_file, "Visual tokenizer", sections, facts, figures=figures)
    return sections

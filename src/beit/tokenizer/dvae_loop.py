"""The training loop of the discrete VAE of BEiT v1 (BEiT, section 2.1; Ramesh et al. 2021).

A convolutional encoder predicts logits over the codes at each position of a grid, a Gumbel-softmax
samples from them, and a decoder reconstructs the image from the vectors of the codes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor
from torch.optim import Optimizer

from beit.data.order import step_generator
from beit.nn.dvae import DiscreteVAE, DiscreteVAEOutput, gumbel_noise, reconstruction_loss
from beit.run.device import summed
from beit.run.journal import Journal
from beit.run.means import Means
from beit.run.optim import OptimConfig, clip_gradients, micro_batch_size, set_learning_rate
from beit.run.reading import ImageBatches, Reading
from beit.tokenizer.codebook_log import CodeCounts, Validated, code_metrics, warn_of_collapse
from beit.tokenizer.image_metrics import FrechetSums, frechet_distance, psnr, ssim

SHOWN = ("loss", "usage", "perplexity")
COLLAPSE = (
    "the codes are collapsing: perplexity {{perplexity}} of {num_codes}; raise the weight of the "
    "divergence (--kl_weight.start, --kl_weight.end), keep the temperature "
    "high for longer (--temperature.share), use fewer codes (--model.num_codes) or a lower "
    "learning rate"
)


class VAETraining(NamedTuple):
    """The built parts of a run of the discrete VAE.

    Attributes:
        vae: the unwrapped tokenizer
        model: the same, wrapped by Fabric for training
        counts: of the codes since the last log line, part of checkpoints
        temperature: of the Gumbel-softmax, by step
        kl_weight: of the divergence from uniform, by step
        hard: sample single codes, with straight-through gradients
        smooth: use smooth L1 for the reconstruction, not the squared error
        kl_places: positions that a step's divergence is summed over; 1 for their mean
        validation: this process's share of the validation set; None without one
        validate_every: steps between two validations
        frechet_sums: returns an accumulator for the Fréchet distance, or None to skip it
        frechet_images: number of images for that distance
        report: draws the report from the last validation
    """

    fabric: Fabric
    vae: DiscreteVAE
    model: _FabricModule
    optimizer: Optimizer
    counts: CodeCounts
    optim: OptimConfig
    seed: int
    temperature: Callable[[int], float]
    kl_weight: Callable[[int], float]
    hard: bool
    smooth: bool
    kl_places: int
    validation: ImageBatches | None
    validate_every: int
    frechet_sums: Callable[[], FrechetSums | None]
    frechet_images: int
    report: Callable[[Validated | None], object]


def train(parts: VAETraining, journal: Journal) -> Validated | None:
    """Train from the journal's first step to its last.

    Returns: the last validation; None without a validation set
    """
    fabric, vae, model, optimizer = parts.fabric, parts.vae, parts.model, parts.optimizer
    optim, counts = parts.optim, parts.counts
    validated: Validated | None = None
    with journal.recording():
        if journal.resumed:  # repeat the validation that follows the checkpoint
            validated = evaluate(parts, journal, validated)
        for step in journal.steps():
            rate = optim.rate(step, journal.steps_per_epoch)
            temperature, kl_weight = parts.temperature(step), parts.kl_weight(step)
            set_learning_rate(optimizer, rate)
            model.train()
            codes: list[Tensor] = []  # of every micro-step, (B, N) each
            for micro, batch in enumerate(journal.micro_batches()):
                noise = step_noise(parts, step, micro)  # (B, K, Gh, Gw)
                with fabric.no_backward_sync(model, enabled=micro + 1 < optim.accumulate):
                    output = model(
                        batch.images, temperature=temperature, hard=parts.hard, noise=noise
                    )
                    loss, metrics = total_loss(output, kl_weight, parts.kl_places, parts.smooth)
                    fabric.backward(loss / optim.accumulate)
                journal.measure(metrics)
                codes.append(output.logits.argmax(1).flatten(1))
            norm = clip_gradients(fabric, model, optimizer, optim.clip)
            kept = journal.keep_if_finite(norm, optimizer)
            optimizer.step()
            optimizer.zero_grad()
            counts.add(torch.cat(codes), kept)

            if journal.logs:
                annealed = {"rate": rate, "temperature": temperature, "kl_weight": kl_weight}
                means = journal.means.read() | code_metrics(counts.restart())
                journal.log(annealed, means, SHOWN)
                warning = COLLAPSE.format(num_codes=vae.vocab_size)
                warn_of_collapse(journal, means, vae.vocab_size, warning)
            journal.end_step()
            validated = evaluate(parts, journal, validated)
    return validated


def evaluate(parts: VAETraining, journal: Journal, validated: Validated | None) -> Validated | None:
    """Validate and report after a step, at their interval. Returns: the last validation."""
    if not journal.at_interval(parts.validate_every):
        return validated
    if parts.validation is not None:
        last = journal.step == journal.last_step
        with journal.aside("validation"):
            reading = journal.read(parts.validation)
            sums = parts.frechet_sums() if last and parts.validation.num_images > 1 else None
            validated = validate(parts.fabric, parts.vae, reading, sums, parts.frechet_images)
        journal.log_result(validated.metrics)
    if journal.reports:
        with journal.aside("report"):
            parts.report(validated)
    return validated


def total_loss(
    output: DiscreteVAEOutput, kl_weight: float, kl_places: int, smooth: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a micro-batch, (), and the metrics to log, with `kl` in nats per position.

    Args:
        kl_places: positions that the divergence is summed over; 1 for their mean
        smooth: use smooth L1, not the squared error
    """
    B, _, Gh, Gw = output.logits.shape
    kl = output.kl / (B * Gh * Gw)
    reconstruction = reconstruction_loss(output, smooth=smooth)
    loss = reconstruction + kl_weight * kl_places * kl
    return loss, {"loss": loss, "reconstruction": reconstruction, "kl": kl}


def step_noise(parts: VAETraining, step: int, micro: int) -> Tensor:
    """Draw the Gumbel noise (B, K, Gh, Gw) of this process's images in a micro-step.

    Each image has its own generator, seeded by step and position in the step, so the noise does not
    depend on interruptions or on the number of processes and micro-steps.
    """
    fabric, vae = parts.fabric, parts.vae
    B = micro_batch_size(parts.optim, fabric.world_size)
    first = (micro * fabric.world_size + fabric.global_rank) * B
    shape, device = (vae.vocab_size, *vae.grid), fabric.device
    noise = []
    for place in range(first, first + B):
        generator = step_generator(parts.seed, step, f"Gumbel noise {place}")
        if device.type != "cpu":
            generator = torch.Generator(device).manual_seed(generator.initial_seed())
        noise.append(gumbel_noise(shape, generator, device))
    return torch.stack(noise)


@torch.no_grad()
def validate(
    fabric: Fabric,
    vae: DiscreteVAE,
    reading: Reading,
    frechet: FrechetSums | None,
    frechet_images: int,
) -> Validated:
    """Measure how well the validation images are reconstructed from their codes.

    The codes are the argmax of the logits, not sampled; everything is computed in float32.
    """
    vae.eval()
    means = Means(fabric)
    # All processes need the same names, even one without a batch.
    names = ["val_mse", "val_kl", "val_psnr"] + ["val_ssim"] * (min(vae.image_size) >= 11)
    means.add(dict.fromkeys(names, 0.0), weight=0)
    counts = CodeCounts(vae, fabric)
    for batch in reading:
        images, B = batch.images.float() / 255, len(batch.images)
        with torch.autocast(fabric.device.type, enabled=False):
            logits = vae.logits(images)  # (B, K, Gh, Gw)
            codes = logits.argmax(1).flatten(1)  # (B, N)
            reconstructed = vae.decode_images(codes)
        log_probs = logits.log_softmax(1)
        kl = (log_probs.exp() * log_probs).sum(1).mean() + math.log(vae.vocab_size)
        metrics = {"val_mse": (reconstructed - images).square().mean(), "val_kl": kl}
        metrics["val_psnr"] = psnr(reconstructed, images).mean()
        if "val_ssim" in names:
            metrics["val_ssim"] = ssim(reconstructed, images).mean()
        means.add(metrics, weight=B)
        counts.add(codes)
        if frechet is not None:
            among_first = batch.indices < frechet_images
            frechet.add(images[among_first], reconstructed[among_first])
    total, image_counts = counts.total(), reading.counts()
    result = means.read()
    result |= {f"val_{name}": value for name, value in code_metrics(total).items()}
    if frechet is not None:
        moments: Any = frechet.moments(partial(summed, fabric))
        result["val_frechet_lite0"] = frechet_distance(*moments)
    return Validated(result | image_counts, total.cpu())

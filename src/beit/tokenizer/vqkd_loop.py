"""The training loop of VQ-KD (BEiT v2, section 2.2 and figure 2).

A ViT encodes the image, each patch is quantised to the nearest code of a codebook on the unit
sphere, and a small decoder reconstructs a frozen teacher's features from the codes.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.optim import Optimizer

from beit.data.batch import Batch
from beit.data.order import seed_torch, step_generator
from beit.nn.losses import cosine_distance
from beit.nn.tokenizer import VQKD
from beit.run.device import gathered, summed
from beit.run.journal import Journal
from beit.run.means import Means
from beit.run.optim import OptimConfig, clip_gradients, set_learning_rate
from beit.run.reading import ImageBatches, Reading
from beit.tokenizer.centre import Centre
from beit.tokenizer.codebook_log import (
    CodeCounts,
    Validated,
    code_metrics,
    position_metrics,
    warn_of_collapse,
)

SHOWN = ("loss", "usage", "perplexity")


class CodeUse(nn.Module):
    """How often each code was chosen since the last revival, over all processes."""

    since_revival: Tensor  # (K,)

    def __init__(self, num_codes: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("since_revival", torch.zeros(num_codes, device=device))

    def dead(self, share: float) -> Tensor:
        """Return which codes (K,) bool were chosen less than a share of the mean; reset."""
        dead = self.since_revival < share * self.since_revival.mean()
        self.since_revival.zero_()
        return dead


class VQKDTraining(NamedTuple):
    """The built parts of a VQ-KD run.

    Attributes:
        vqkd: the unwrapped tokenizer
        model: the same, wrapped by Fabric for training
        features: computes the frozen teacher's features (B, N, T) of a batch's images
        targets: the same of a training batch, or reads what was kept of them
        centre: takes the mean from them, part of checkpoints; None to leave it in
        use: of the codes since the last revival, part of checkpoints
        counts: of the codes since the last log line, part of checkpoints
        start_after: steps without quantization, before the codebook starts
        kmeans: initialise the codebook by k-means on its first step, else at random
        commitment_weight: of the commitment loss
        attraction_weight: of the codebook term of Eq. 2; 0 if moving averages update the codes
        revive_every: steps between two revivals of dead codes; 0 for never
        revive_below: a code is dead if it was chosen less often than this share of the mean
        collapse_warning: text for `warn_of_collapse`
        validation: this process's share of the validation set; None without one
        validate_every: steps between two validations
        report: draws the report from the last validation
    """

    fabric: Fabric
    vqkd: VQKD
    model: _FabricModule
    optimizer: Optimizer
    features: Callable[[Batch], Tensor]
    targets: Callable[[Batch], Tensor]
    centre: Centre | None
    use: CodeUse
    counts: CodeCounts
    optim: OptimConfig
    seed: int
    start_after: int
    kmeans: bool
    commitment_weight: float
    attraction_weight: float
    revive_every: int
    revive_below: float
    collapse_warning: str
    validation: ImageBatches | None
    validate_every: int
    report: Callable[[Validated | None], object]


def train(parts: VQKDTraining, journal: Journal) -> Validated | None:
    """Train from the journal's first step to its last.

    Returns: the last validation; None without a validation set
    """
    fabric, vqkd, model, optimizer = parts.fabric, parts.vqkd, parts.model, parts.optimizer
    optim, seed, quantizer = parts.optim, parts.seed, parts.vqkd.quantizer
    use, counts, centre = parts.use, parts.counts, parts.centre
    started = bool(quantizer.initialised)
    validated: Validated | None = None
    with journal.recording():
        if journal.resumed:  # repeat the validation that follows the checkpoint
            validated = evaluate(parts, journal, validated)
        for step in journal.steps():
            rate = optim.rate(step, journal.steps_per_epoch)
            set_learning_rate(optimizer, rate)
            seed_torch(step_generator(seed, step, f"drop path {fabric.global_rank}"))
            model.train()
            statistics = torch.zeros((), device=fabric.device)
            vectors: list[Tensor] = []  # of every micro-step, (B, N, C) each
            codes: list[Tensor] = []  # likewise, (B, N)
            micro_batches = journal.micro_batches()
            quantize = step > parts.start_after
            if quantize and not started:
                micro_batches = start_codebook(parts, micro_batches)
                started = bool(quantizer.initialised)
            for micro, batch in enumerate(micro_batches, 1):
                with fabric.autocast():
                    target = parts.targets(batch)  # (B, N, T)
                if centre is not None:
                    target = centre.train()(target)
                with fabric.no_backward_sync(model, enabled=micro < optim.accumulate):
                    output = model(batch.images, quantize)
                    reconstruction = cosine_distance(output.features, target)
                    loss = reconstruction + parts.commitment_weight * output.commitment  # Eq. 2
                    if parts.attraction_weight:
                        loss = loss + parts.attraction_weight * output.attraction
                    fabric.backward(loss / optim.accumulate)
                if quantize:
                    statistics = statistics + quantizer.statistics(output.vectors, output.codes)
                    codes.append(output.codes)
                    vectors.append(output.vectors.detach())
                journal.measure({"loss": loss, "reconstruction": reconstruction})
            norm = clip_gradients(fabric, model, optimizer, optim.clip)
            kept = journal.keep_if_finite(norm, optimizer)
            optimizer.step()
            optimizer.zero_grad()

            if centre is not None:
                centre.update(kept)
            if quantize:
                counts.add(torch.cat(codes), kept)
                statistics = summed(fabric, statistics)
                quantizer.update(statistics, kept)
                use.since_revival += statistics[:, -1] * kept
                if parts.revive_every and step % parts.revive_every == 0 and kept:
                    revive(parts, vectors, step)

            if journal.logs:
                metrics = journal.means.read()
                if quantize:
                    total = counts.restart()
                    metrics |= code_metrics(total) | position_metrics(total)
                    warn_of_collapse(journal, metrics, vqkd.vocab_size, parts.collapse_warning)
                journal.log({"rate": rate}, metrics, SHOWN)
            journal.end_step()
            validated = evaluate(parts, journal, validated)
    return validated


def evaluate(
    parts: VQKDTraining, journal: Journal, validated: Validated | None
) -> Validated | None:
    """Validate and report after a step, at their interval. Returns: the last validation."""
    if not journal.at_interval(parts.validate_every):
        return validated
    if journal.step <= parts.start_after:
        journal.message(f"no validation: the codebook starts after step {parts.start_after}")
        return validated
    if parts.validation is not None:
        with journal.aside("validation"):
            reading = journal.read(parts.validation)
            validated = validate(parts, reading)
        journal.log_result(validated.metrics)
    parts.vqkd.eval()  # in all processes: the first may need the whole model for its report
    if journal.reports:
        with journal.aside("report"):
            parts.report(validated)
    return validated


@torch.no_grad()
def validate(parts: VQKDTraining, reading: Reading) -> Validated:
    """Measure the losses and the use of the codebook on the validation set.

    val_constant is the reconstruction loss of the best constant for each position.
    """
    fabric, vqkd = parts.fabric, parts.vqkd.eval()
    means = Means(fabric)
    # All processes need the same names, even one without a batch.
    means.add({"val_reconstruction": 0.0, "val_commitment": 0.0}, weight=0)
    N, T = vqkd.config.encoder.num_patches, vqkd.config.teacher_width
    counts = CodeCounts(vqkd, fabric)
    directions = torch.zeros(N, T, device=fabric.device)
    for batch in reading:
        with fabric.autocast():
            target = parts.features(batch)
            output = vqkd(batch.images)
        target = target if parts.centre is None else parts.centre.eval()(target)
        directions += nn.functional.normalize(target.float(), dim=-1).sum(0)
        reconstruction = cosine_distance(output.features, target)
        means.add(
            {"val_reconstruction": reconstruction, "val_commitment": output.commitment},
            weight=len(batch.images),
        )
        counts.add(output.codes)
    total = counts.total()
    constant = 1 - (summed(fabric, directions) / total.sum(1, keepdim=True)).norm(dim=1).mean()
    metrics = means.read() | {"val_constant": float(constant)}
    use = code_metrics(total) | position_metrics(total)
    metrics |= {f"val_{name}": value for name, value in use.items()}
    return Validated(metrics | reading.counts(), total.cpu())


@torch.no_grad()
def start_codebook(parts: VQKDTraining, micro_batches: Iterator[Batch]) -> Iterator[Batch]:
    """Initialise the codebook from its first step's micro-batches, the same in all processes.

    Returns: the micro-batches
    """
    fabric, vqkd, batches = parts.fabric, parts.vqkd, list(micro_batches)
    if parts.kmeans:
        with fabric.autocast():
            vectors = [vqkd.embed(batch.images) for batch in batches]
        rows, generator = rows_of(fabric, vectors), step_generator(parts.seed, 0, "k-means")
        if rows.isfinite().all():  # otherwise the step is skipped, and the next one starts it
            vqkd.quantizer.start(rows, generator)
            vqkd.quantizer.codebook.copy_(fabric.broadcast(vqkd.quantizer.codebook))
    else:
        vqkd.quantizer.initialised.fill_(True)
    return iter(batches)


@torch.no_grad()
def revive(parts: VQKDTraining, vectors: list[Tensor], step: int) -> None:
    """Replace dead codes by vectors (B, N, C) of the step, the same in all processes.

    If the codebook is learned by gradient, the optimiser's moments of these codes are reset.
    """
    quantizer, dead = parts.vqkd.quantizer, parts.use.dead(parts.revive_below)
    generator = step_generator(parts.seed, step, "revival")
    indices = quantizer.revive(rows_of(parts.fabric, vectors), dead, generator)
    state = parts.optimizer.state.get(quantizer.codebook, {})
    for moment in ("exp_avg", "exp_avg_sq"):
        if moment in state:
            state[moment][indices] = 0


def rows_of(fabric: Fabric, vectors: list[Tensor]) -> Tensor:
    """Concatenate a step's vectors (B, N, C) of all micro-steps and processes to (rows, C).

    They are in the order of the images, independent of the number of processes and micro-steps.
    """
    return torch.cat([gathered(fabric, part.flatten(0, 1)) for part in vectors])

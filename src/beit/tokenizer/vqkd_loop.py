"""The training loop of VQ-KD (BEiT v2, section 2.2 and figure 2).

A ViT encodes the image, each patch is replaced by the nearest code of a codebook on the sphere, and
a small decoder rebuilds from the codes what a frozen teacher sees in each patch.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, Protocol

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor
from torch.optim import Optimizer

from beit.data.batch import Batch
from beit.data.order import seed_torch, step_generator
from beit.nn.losses import cosine_distance
from beit.nn.quantizer import Quantizer
from beit.nn.tokenizer import VQKD
from beit.run.device import gathered, summed
from beit.run.journal import Journal
from beit.run.meters import Means
from beit.run.optim import OptimConfig, clip_gradients, set_learning_rate
from beit.run.reading import ImageBatches, Reading
from beit.tokenizer.codebook_log import (
    CodeCounts,
    Validated,
    code_metrics,
    position_metrics,
    warn_of_collapse,
)

SHOWN = ("loss", "reconstruction", "grad_norm", "usage", "perplexity", "unreadable")


class Teacher(Protocol):
    """A frozen network that sees images (B, 3, H, W) as features (B, N, T) on a grid."""

    def features(self, images: Tensor, grid: tuple[int, int]) -> Tensor: ...


class CodeUse:
    """How often each code was chosen since the last revival, over all processes."""

    def __init__(self, num_codes: int, device: torch.device) -> None:
        self.since_revival = torch.zeros(num_codes, device=device)  # (K,)

    def dead(self, share: float) -> Tensor:
        """Tell which codes (K,) bool were chosen less than a share of the mean; count anew."""
        dead = self.since_revival < share * self.since_revival.mean()
        self.since_revival.zero_()
        return dead

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return {"since_revival": self.since_revival}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.since_revival.copy_(state["since_revival"])


class VQKDTraining(NamedTuple):
    """The built parts of a VQ-KD run.

    Attributes:
        vqkd: the tokenizer itself
        model: the same, as Fabric wraps it for training
        use: of the codes since the last revival, a part of checkpoints
        kmeans: start the codebook at the k-means of the first step, else at random
        commitment_weight: of the commitment loss
        attraction_weight: of the codebook term of Eq. 2; 0 where moving averages learn the codes
        revive_every: steps between two revivals of dead codes; 0 for never
        revive_below: a code is dead when it was chosen less often than this share of the mean
        collapse_warning: what to say when the codebook collapses, see `warn_of_collapse`
        validation: this process's share of the validation set; None without one
        validate_every: steps between two validations
    """

    fabric: Fabric
    vqkd: VQKD
    model: _FabricModule
    optimizer: Optimizer
    teacher: Teacher
    use: CodeUse
    optim: OptimConfig
    seed: int
    kmeans: bool
    commitment_weight: float
    attraction_weight: float
    revive_every: int
    revive_below: float
    collapse_warning: str
    validation: ImageBatches | None
    validate_every: int


def train(
    parts: VQKDTraining, journal: Journal, report: Callable[[Validated | None], object]
) -> Validated | None:
    """Train from the journal's first step to its last.

    Args:
        report: draws the report, given the last validation

    Returns: the last validation; None without a validation set
    """
    fabric, vqkd, model, optimizer = parts.fabric, parts.vqkd, parts.model, parts.optimizer
    optim, seed, use, quantizer = parts.optim, parts.seed, parts.use, parts.vqkd.quantizer
    counts = CodeCounts(vqkd.config.encoder.num_patches, vqkd.vocab_size, fabric)
    started = bool(quantizer.initialised)
    validated: Validated | None = None
    with journal:
        if journal.resumed:  # what followed the checkpoint is repeated
            validated = evaluate(parts, journal, validated, report)
        for step in journal.steps():
            rate = optim.rate(step, journal.steps_per_epoch)
            set_learning_rate(optimizer, rate)
            seed_torch(step_generator(seed, step, f"drop path {fabric.global_rank}"))
            model.train()
            statistics = torch.zeros((), device=fabric.device)
            vectors: list[Tensor] = []  # of every micro-step, (B, N, C) each
            micro_batches = journal.micro_batches()
            if not started:
                micro_batches, started = start_codebook(parts, micro_batches), True
            for micro, batch in enumerate(micro_batches, 1):
                with fabric.autocast():
                    target = parts.teacher.features(batch.images, vqkd.grid)  # (B, N, T)
                with fabric.no_backward_sync(model, enabled=micro < optim.accumulate):
                    output = model(batch.images)
                    reconstruction = cosine_distance(output.features, target)
                    loss = reconstruction + parts.commitment_weight * output.commitment  # Eq. 2
                    if parts.attraction_weight:
                        loss = loss + parts.attraction_weight * output.attraction
                    fabric.backward(loss / optim.accumulate)
                statistics = statistics + quantizer.statistics(output.vectors, output.codes)
                counts.add(output.codes)
                vectors.append(output.vectors.detach())
                journal.means.add({"loss": loss, "reconstruction": reconstruction})
            journal.means.add(clip_gradients(fabric, model, optimizer, optim.clip))
            optimizer.step()
            optimizer.zero_grad()

            statistics = summed(fabric, statistics)
            quantizer.update(statistics)
            use.since_revival += statistics[:, -1]
            if parts.revive_every and step % parts.revive_every == 0:
                dead = use.dead(parts.revive_below)
                generator = step_generator(seed, step, "revival")
                revive(fabric, quantizer, optimizer, vectors, dead, generator)

            if journal.logs:
                means, chosen = journal.read_means(loss, rate), counts.restart()
                metrics = means | code_metrics(chosen) | position_metrics(chosen)
                journal.log({"rate": rate}, metrics, SHOWN)
                warn_of_collapse(journal, metrics, vqkd.vocab_size, parts.collapse_warning)
            journal.end_step()
            validated = evaluate(parts, journal, validated, report)
    return validated


def evaluate(
    parts: VQKDTraining,
    journal: Journal,
    validated: Validated | None,
    report: Callable[[Validated | None], object],
) -> Validated | None:
    """Validate and report where they are due after a step. Returns: the last validation."""
    if not journal.due(parts.validate_every):
        return validated
    if parts.validation is not None:
        with journal.aside("validation"):
            reading = journal.read(parts.validation)
            validated = validate(parts.fabric, parts.vqkd, parts.teacher, reading)
        journal.log_result(validated.metrics)
    if journal.reports:
        with journal.aside("report"):
            report(validated)
    return validated


@torch.no_grad()
def validate(fabric: Fabric, vqkd: VQKD, teacher: Teacher, reading: Reading) -> Validated:
    """Measure the loss and the use of the codebook over the whole validation set."""
    vqkd.eval()
    means = Means()
    # A process without a batch still takes part in the sums over all of them.
    means.add({"val_reconstruction": 0.0, "val_commitment": 0.0}, weight=0)
    counts = CodeCounts(vqkd.config.encoder.num_patches, vqkd.vocab_size, fabric)
    for batch in reading:
        with fabric.autocast():
            target = teacher.features(batch.images, vqkd.grid)
            output = vqkd(batch.images)
        reconstruction = cosine_distance(output.features, target)
        means.add(
            {"val_reconstruction": reconstruction, "val_commitment": output.commitment},
            weight=len(batch.images),
        )
        counts.add(output.codes)
    chosen = counts.total()
    metrics = means.read(partial(summed, fabric))
    use = code_metrics(chosen) | position_metrics(chosen)
    metrics |= {f"val_{name}": value for name, value in use.items()}
    return Validated(metrics | reading.counts(), chosen.cpu())


@torch.no_grad()
def start_codebook(parts: VQKDTraining, micro_batches: Iterator[Batch]) -> Iterator[Batch]:
    """Start the codebook on the first step's micro-batches, alike in all processes.

    Returns: the micro-batches
    """
    fabric, vqkd, batches = parts.fabric, parts.vqkd, list(micro_batches)
    if parts.kmeans:
        with fabric.autocast():
            vectors = [vqkd.embed(batch.images) for batch in batches]
        generator = step_generator(parts.seed, 0, "k-means")
        vqkd.quantizer.start(rows_of(fabric, vectors), generator)
        vqkd.quantizer.codebook.copy_(fabric.broadcast(vqkd.quantizer.codebook))
    else:
        vqkd.quantizer.initialised.fill_(True)
    return iter(batches)


@torch.no_grad()
def revive(
    fabric: Fabric,
    quantizer: Quantizer,
    optimizer: Optimizer,
    vectors: list[Tensor],
    dead: Tensor,
    generator: torch.Generator,
) -> None:
    """Restart dead codes (K,) bool at vectors (B, N, C) of the step, alike in all processes.

    Where the optimiser moves the codebook, its moments of these codes are reset.
    """
    places = quantizer.revive(rows_of(fabric, vectors), dead, generator)
    state = optimizer.state.get(quantizer.codebook, {})
    for moment in ("exp_avg", "exp_avg_sq"):
        if moment in state:
            state[moment][places] = 0


def rows_of(fabric: Fabric, vectors: list[Tensor]) -> Tensor:
    """Join a step's vectors (B, N, C) of all micro-steps and processes as (rows, C).

    Their order is that of the images, whatever the number of processes and micro-steps.
    """
    return torch.cat([gathered(fabric, part.flatten(0, 1)) for part in vectors])

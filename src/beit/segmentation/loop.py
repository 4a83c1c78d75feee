"""The training loop of semantic segmentation (BEiT v2, section 3.3)."""

from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.optim import Optimizer

from beit.data.order import seed_torch, step_generator
from beit.nn.segmenter import SemanticSegmenter, pixel_loss
from beit.nn.sliding import MapViewConfig
from beit.run.averaging import BestWeights
from beit.run.journal import Journal
from beit.run.optim import clip_gradients, set_learning_rate
from beit.run.reading import ImageBatches
from beit.segmentation.optim import StepOptimConfig
from beit.segmentation.validation import Validated, validate


class Segmentation(NamedTuple):
    """The built parts of a segmentation run.

    Attributes:
        segmenter: the unwrapped model
        model: the same, wrapped by Fabric for training
        best: the best weights so far, part of checkpoints
        keeps_best: keep the weights that are best on the validation set, not the last
        auxiliary_weight: of the loss of the auxiliary head
        validation_views: how to predict the label maps of validation images of any size
        validation: this process's share of the validation set; None without one
        validate_every: steps between two validations
    """

    fabric: Fabric
    segmenter: SemanticSegmenter
    model: _FabricModule
    optimizer: Optimizer
    best: BestWeights
    keeps_best: bool
    auxiliary_weight: float
    optim: StepOptimConfig
    seed: int
    validation_views: MapViewConfig
    validation: ImageBatches | None
    validate_every: int


def train(parts: Segmentation, journal: Journal) -> Validated | None:
    """Train from the journal's first step to its last, then load the weights to keep.

    Returns: their validation; None without a validation set
    """
    fabric, model, optimizer, optim = parts.fabric, parts.model, parts.optimizer, parts.optim
    statistics = running_statistics(parts.segmenter)
    validated: Validated | None = None
    with journal.recording():
        if journal.resumed:  # repeat the validation that follows the checkpoint
            validated = evaluate(parts, journal, validated)
        for step in journal.steps():
            rate = optim.rate(step)
            set_learning_rate(optimizer, rate)
            seed_torch(step_generator(parts.seed, step, f"drop path {fabric.global_rank}"))
            model.train()
            before = [running.clone() for running in statistics]
            for micro, batch in enumerate(journal.micro_batches()):
                with fabric.no_backward_sync(model, enabled=micro + 1 < optim.accumulate):
                    logits, auxiliary = model(batch.images)  # (B, Y, h, w), (B, Y, Gh, Gw)
                    loss = pixel_loss(logits, batch.label_maps)
                    journal.measure({"loss": loss})
                    if auxiliary is not None:
                        auxiliary_loss = pixel_loss(auxiliary, batch.label_maps)
                        journal.measure({"auxiliary_loss": auxiliary_loss})
                        loss = loss + parts.auxiliary_weight * auxiliary_loss
                    fabric.backward(loss / optim.accumulate)
            norm = clip_gradients(fabric, model, optimizer, optim.clip)
            kept = journal.keep_if_finite(norm, optimizer)
            optimizer.step()
            optimizer.zero_grad()
            for now, then in zip(statistics, before, strict=True):
                now.copy_(torch.where(kept, now, then))

            if journal.logs:
                journal.log({"rate": rate}, journal.means.read())
            journal.end_step()
            validated = evaluate(parts, journal, validated)
        if parts.best.step not in (0, journal.last_step):
            parts.segmenter.load_state_dict(parts.best.weights)
            assert parts.validation is not None
            with journal.aside("validation of the best weights"):
                reading = journal.read(parts.validation)
                validated = validate(fabric, parts.segmenter, parts.validation_views, reading)
    return validated


def running_statistics(segmenter: SemanticSegmenter) -> list[Tensor]:
    """Return what batch normalisation updates in each forward pass."""
    norms = [m for m in segmenter.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers()]


def evaluate(
    parts: Segmentation, journal: Journal, validated: Validated | None
) -> Validated | None:
    """Validate after a step, at its interval. Returns: the last validation."""
    if parts.validation is None or not journal.at_interval(parts.validate_every):
        return validated
    with journal.aside("validation"):
        reading = journal.read(parts.validation)
        validated = validate(parts.fabric, parts.segmenter, parts.validation_views, reading)
    journal.log_result(validated.metrics)
    if parts.keeps_best:
        parts.best.offer(validated.metrics["val_miou"], journal.step, parts.segmenter)
    return validated

"""The training loop of masked image modelling (BEiT v2, section 2.3 and figure 3).

Some patches of an image are masked, and the model predicts their tokens twice: from its last
patches, and from its last [CLS] with patches of an earlier block, so that [CLS] aggregates the
whole image.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor
from torch.optim import Optimizer

from beit.data.batch import Batch
from beit.data.order import seed_torch, step_generator
from beit.nn.losses import masked_losses, weighted_mean
from beit.nn.masking import MaskConfig, draw_masks, patches_to_predict
from beit.nn.mim import MaskedImageModel, MaskedLosses
from beit.nn.target import Target, explained_from_error
from beit.pretraining.validation import Validation, knn_check, validate
from beit.run.journal import Journal
from beit.run.optim import OptimConfig, clip_gradients, set_learning_rate
from beit.run.reading import ImageBatches

SHOWN = ("loss", "accuracy", "explained", "cosine", "cls_loss")  # of these the first three


class Pretraining(NamedTuple):
    """The built parts of a pretraining run.

    Attributes:
        mim: the unwrapped model
        model: the same, wrapped by Fabric for training
        target: of the predictions
        mask: which patches are masked
        everywhere: predict all patches, not only the masked ones
        validation: inputs of the validation; None without a validation set
        validate_every: steps between two validations
        check: labelled images of the k-NN check, to search and to classify; None for no check
        check_every: steps between two checks
    """

    fabric: Fabric
    mim: MaskedImageModel
    model: _FabricModule
    optimizer: Optimizer
    target: Target
    optim: OptimConfig
    mask: MaskConfig
    everywhere: bool
    seed: int
    validation: Validation | None
    validate_every: int
    check: tuple[ImageBatches, ImageBatches] | None
    check_every: int


def train(
    parts: Pretraining, journal: Journal, report: Callable[[dict[str, float]], object]
) -> dict[str, float]:
    """Train from the journal's first step to its last.

    Args:
        report: draws the report from the metrics of the last validation

    Returns: the metrics of the last validation; empty without one
    """
    fabric, optim, seed, optimizer = parts.fabric, parts.optim, parts.seed, parts.optimizer
    model, grid = parts.model, parts.mim.config.backbone.grid
    rank, world_size = fabric.global_rank, fabric.world_size
    shape = (optim.accumulate, world_size, optim.micro_batch_size(world_size), -1)
    validated: dict[str, float] = {}
    with journal.recording():
        if journal.resumed:  # repeat the validation that follows the checkpoint
            validated = evaluate(parts, journal, validated, report)
        elif parts.check is not None:
            check(parts.check, parts, journal)  # the untrained backbone, to compare with
        for step in journal.steps():
            rate = optim.rate(step, journal.steps_per_epoch)
            set_learning_rate(optimizer, rate)
            seed_torch(step_generator(seed, step, f"drop path {rank}"))
            model.train()
            generator = step_generator(seed, step, "masks")
            masks = draw_masks(parts.mask, optim.batch_size, grid, generator)
            masks = masks.view(shape)[:, rank]  # (micro-steps, B, M)
            for micro, batch in enumerate(journal.micro_batches()):
                masked = masks[micro].to(fabric.device, non_blocking=True)  # (B, M)
                with fabric.no_backward_sync(model, enabled=micro + 1 < optim.accumulate):
                    measured = predict(parts, batch, masked)
                    loss = measured["patch_loss"] + measured["cls_loss"]  # section 2.3
                    fabric.backward(loss / optim.accumulate)
                journal.measure({"loss": loss, **measured})
            norm = clip_gradients(fabric, model, optimizer, optim.clip)
            journal.keep_if_finite(norm, optimizer)
            optimizer.step()
            optimizer.zero_grad()

            if journal.logs:
                journal.log({"rate": rate}, explained_from_error(journal.means.read()), SHOWN)
            journal.end_step()
            validated = evaluate(parts, journal, validated, report)
    return validated


def predict(parts: Pretraining, batch: Batch, masked: Tensor) -> dict[str, Tensor]:
    """Predict the targets of the masked patches (B, M), or of all patches.

    Returns: () each, the losses of the predictions from patches and from [CLS], and metrics
    """
    grid, target = parts.mim.config.backbone.grid, parts.target
    predicted, weights = patches_to_predict(masked, grid, parts.everywhere, parts.mask.exact)
    with torch.no_grad(), parts.fabric.autocast():
        targets = target.of(batch.target_images, predicted)  # (B, M') codes, or (B, M', T)
    if target.kind == "tokens":
        losses: MaskedLosses = parts.model(batch.images, masked, predicted, targets, weights)
        return losses._asdict()
    prediction = parts.model(batch.images, masked, predicted)
    patch_loss, cls_loss = masked_losses(prediction, targets, target.loss, weights)
    measured = target.measure(prediction.logits.detach(), targets)  # (B, M') each
    metrics = {name: weighted_mean(values, weights) for name, values in measured.items()}
    return {"patch_loss": patch_loss, "cls_loss": cls_loss, **metrics}


def evaluate(
    parts: Pretraining,
    journal: Journal,
    metrics: dict[str, float],
    report: Callable[[dict[str, float]], object],
) -> dict[str, float]:
    """Validate, check neighbours and report after a step, each at its interval.

    Returns: the metrics of the last validation
    """
    validates = journal.at_interval(parts.validate_every)
    if validates and parts.validation is not None:
        with journal.aside("validation"):
            reading = journal.read(parts.validation.batches)
            metrics = validate(parts.fabric, parts.mim, parts.target, parts.validation, reading)
        journal.log_result(metrics)
    if parts.check is not None and journal.at_interval(parts.check_every):
        check(parts.check, parts, journal)
    if validates:
        parts.mim.eval()  # in all processes: the first may need the whole model for its report
        if journal.reports:
            with journal.aside("report"):
                report(metrics)
    return metrics


def check(images: tuple[ImageBatches, ImageBatches], parts: Pretraining, journal: Journal) -> None:
    """Log the accuracy of nearest neighbours by the backbone's features."""
    with journal.aside("k-NN check"):
        train, test = (journal.read(batches) for batches in images)
        accuracies = knn_check(parts.fabric, parts.mim.backbone, train, test)
    journal.log_result(accuracies)

"""The training loop of masked image modelling (BEiT v2, section 2.3 and figure 3).

Some patches of an image are masked, and the model predicts their tokens twice: from its last
patches, and from its last [CLS] with patches of an earlier block, so that [CLS] aggregates the
whole image.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

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
from beit.nn.patches import unchecked
from beit.nn.target import Target, explained_from_error
from beit.pretraining.neighbours import knn_check
from beit.run.device import summed
from beit.run.journal import Journal
from beit.run.means import Means
from beit.run.optim import OptimConfig, clip_gradients, micro_batch_size, set_learning_rate
from beit.run.reading import ImageBatches, Reading

SHOWN = ("loss", "accuracy", "explained", "cosine", "cls_loss")  # of these the first three


class Ranks(Protocol):
    """Interface of `beit.nn.code_ranks.CodeRanks`."""

    def count(self, logits: Tensor, codes: Tensor, weights: Tensor | None = None) -> Tensor: ...
    def figures(self, counts: Tensor) -> dict[str, float]: ...


class Pretraining(NamedTuple):
    """The built parts of a pretraining run.

    Attributes:
        mim: the unwrapped model
        model: the same, wrapped by Fabric for training
        target: of the predictions
        mask: which patches are masked
        everywhere: predict all patches, not only the masked ones
        ranks: measures how near predicted codes are; None for other targets
        validation: this process's share of the validation set; None without one
        validate_every: steps between two validations
        check: labelled images of the k-NN check, to search and to classify; None for no check
        check_every: steps between two checks
        report: draws the report from the metrics of the last validation
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
    ranks: Ranks | None
    validation: ImageBatches | None
    validate_every: int
    check: tuple[ImageBatches, ImageBatches] | None
    check_every: int
    report: Callable[[dict[str, float]], object]


def train(parts: Pretraining, journal: Journal) -> dict[str, float]:
    """Train from the journal's first step to its last.

    Returns: the metrics of the last validation; empty without one
    """
    fabric, optim, seed, optimizer = parts.fabric, parts.optim, parts.seed, parts.optimizer
    model, grid = parts.model, parts.mim.config.backbone.grid
    rank, world_size = fabric.global_rank, fabric.world_size
    shape = (optim.accumulate, world_size, micro_batch_size(optim, world_size), -1)
    validated: dict[str, float] = {}
    with journal.recording():
        if journal.resumed:  # repeat the validation that follows the checkpoint
            validated = evaluate(parts, journal, validated)
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
            validated = evaluate(parts, journal, validated)
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
        with unchecked():  # masks and codes are our own
            losses: MaskedLosses = parts.model(batch.images, masked, predicted, targets, weights)
        return losses._asdict()
    prediction = parts.model(batch.images, masked, predicted)
    patch_loss, cls_loss = masked_losses(prediction, targets, target.loss, weights)
    measured = target.measure(prediction.logits.detach(), targets)  # (B, M') each
    metrics = {name: weighted_mean(values, weights) for name, values in measured.items()}
    return {"patch_loss": patch_loss, "cls_loss": cls_loss, **metrics}


def evaluate(parts: Pretraining, journal: Journal, metrics: dict[str, float]) -> dict[str, float]:
    """Validate, check neighbours and report after a step, each at its interval.

    Returns: the metrics of the last validation
    """
    validates = journal.at_interval(parts.validate_every)
    if validates and parts.validation is not None:
        with journal.aside("validation"):
            metrics = validate(parts, journal.read(parts.validation))
        journal.log_result(metrics)
    if parts.check is not None and journal.at_interval(parts.check_every):
        check(parts.check, parts, journal)
    if validates:
        parts.mim.eval()  # in all processes: the first may need the whole model for its report
        if journal.reports:
            with journal.aside("report"):
                parts.report(metrics)
    return metrics


@torch.no_grad()
def validate(parts: Pretraining, reading: Reading) -> dict[str, float]:
    """Measure the loss and the metrics of the target on the validation set."""
    fabric, mim, target, ranks = parts.fabric, parts.mim.eval(), parts.target, parts.ranks
    means, grid = Means(fabric), mim.config.backbone.grid
    counts = torch.zeros(4, target.width, device=fabric.device)  # of `ranks`
    # All processes need the same names, even one without a batch.
    names = ["val_loss"] + [f"val_{name}" for name in target.metrics]
    names += [f"val_cls_{name}" for name in target.metrics if mim.aggregation]
    means.add(dict.fromkeys(names, 0.0), weight=0)
    for batch in reading:
        step_size = parts.optim.batch_size
        masked = validation_masks(parts.mask, step_size, grid, parts.seed, batch.indices)
        masked = masked.to(fabric.device)
        predicted, weights = patches_to_predict(masked, grid, parts.everywhere, parts.mask.exact)
        with fabric.autocast():
            targets = target.of(batch.target_images, predicted)
            prediction = mim(batch.images, masked, predicted)
        patch_loss, cls_loss = masked_losses(prediction, targets, target.loss, weights)
        measured = {"val_loss": patch_loss + cls_loss}
        for prefix, logits in (("val", prediction.logits), ("val_cls", prediction.cls_logits)):
            if logits is not None:
                for name, values in target.measure(logits, targets).items():
                    measured[f"{prefix}_{name}"] = weighted_mean(values, weights)
        if ranks is not None:
            counts += ranks.count(prediction.logits, targets, weights)
        means.add(measured, weight=len(masked) if weights is None else float(weights.sum()))
    metrics = explained_from_error(means.read())
    if ranks is not None:
        figures = ranks.figures(summed(fabric, counts))
        metrics |= {f"val_{name}": value for name, value in figures.items()}
    return metrics | reading.counts()


def validation_masks(
    mask: MaskConfig, step_size: int, grid: tuple[int, int], seed: int, indices: Tensor
) -> Tensor:
    """Draw the masks (B, M) of images by their indices (B,) int64 in the validation set.

    An image's mask depends only on its index, not on the number of processes or on unreadable
    images. All indices lie within one piece of `step_size` images, the batch size of training.
    """
    piece = int(indices[0]) // step_size
    generator = step_generator(seed, piece, "validation masks")
    return draw_masks(mask, step_size, grid, generator)[indices.cpu() - piece * step_size]


def check(images: tuple[ImageBatches, ImageBatches], parts: Pretraining, journal: Journal) -> None:
    """Log the accuracy of nearest neighbours by the backbone's features."""
    with journal.aside("k-NN check"):
        train, test = (journal.read(batches) for batches in images)
        accuracies = knn_check(parts.fabric, parts.mim.backbone, train, test)
    journal.log_result(accuracies)

"""Classify crops of the images of a task, clean and corrupted: one row of outcomes per image."""

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from beit.data.batches import EvalBatches
from beit.data.views import CROP_RATIO, EvalView
from beit.evaluation.corruptions.corrupt import corrupt
from beit.evaluation.target_columns import Task
from beit.nn.heads import ImageClassifier
from beit.run.one_pass import one_pass
from beit.run.prepare import prepared
from beit.run.progress import Progress

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from beit.evaluation.evaluate import Config

# Columns of the outcomes. One column per corruption follows: 1 if the image was top-1 correct.
EVALUATED, TOP1, TOP5, NLL, CONFIDENCE, PREDICTED, CORRUPTED = range(7)


class CropViews:
    """Crops of one size from an image resized as by `EvalView`; the first is its centre crop.

    Five crops are the centre and the corners (Krizhevsky et al. 2012). With crop_ratio 1 they
    differ along the longer side only. `border` pixels are cut off each side of an image first.
    """

    def __init__(
        self,
        size: tuple[int, int],
        crop_ratio: float = 0.875,
        crops: Literal[1, 5] = 1,
        border: int = 0,
    ) -> None:
        if crops not in (1, 5):
            raise ValueError(f"crops must be 1 (the centre) or 5 (corners too), got {crops}")
        self.centre, self.crops, self.border = EvalView(size, crop_ratio), crops, border

    def __call__(self, image: Tensor) -> Tensor:
        """Crop `image`, (3, H, W) uint8. Returns: (V, 3, H', W') uint8."""
        border = self.border
        if border and min(image.shape[-2:]) > 2 * border:
            image = image[:, border:-border, border:-border]
        if self.crops == 1:
            return self.centre(image)[None]
        scaled = self.centre.scaled(image)
        H, W = self.centre.size
        corners = [scaled[:, :H, :W], scaled[:, :H, -W:], scaled[:, -H:, :W], scaled[:, -H:, -W:]]
        return torch.stack([self.centre(image), *corners])


@torch.no_grad()
def classify(fabric: "Fabric", classifier: ImageClassifier, task: Task, config: "Config") -> Tensor:
    """Classify this process's share of the images, clean and corrupted.

    Returns: (n, 6 + corruptions) float32 on the CPU, one row per image, columns EVALUATED to
    PREDICTED, then the corruptions. Rows of unreadable images and of other processes are zero.
    """
    image_size = classifier.backbone.config.image_size
    crop = CROP_RATIO if config.crop_ratio is None else config.crop_ratio
    view = CropViews(image_size, crop, config.crops, task.border)
    batches = EvalBatches(
        task.source,
        view,
        config.batch_size,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=config.num_workers,
    )
    model = prepared(classifier.to(fabric.device).eval(), config.device)
    columns = task.columns.to(fabric.device)
    outcomes = torch.zeros(len(task.source), CORRUPTED + len(config.pairs))

    def classified(images: Tensor, targets: Tensor) -> Tensor:
        images = images.to(fabric.device)
        log_probs = log_probabilities(fabric, model, images, columns, config.flip)
        return outcomes_of(log_probs.cpu(), targets)

    progress_line = Progress(len(batches), enabled=fabric.is_global_zero)
    with progress_line as progress, ThreadPoolExecutor(max(1, config.num_workers)) as pool:
        for note in task.notes:
            progress.message(note)
        for batch in one_pass(fabric, batches, config.max_unreadable, progress):
            indices = batch.indices.cpu()
            targets = task.targets[indices]
            outcomes[indices, :CORRUPTED] = classified(batch.images, targets)
            corrupted = corrupted_batches(batch.images.cpu(), indices, config, pool)
            for column, images in enumerate(corrupted, start=CORRUPTED):
                outcomes[indices, column] = classified(images, targets)[:, TOP1]
    return outcomes


def log_probabilities(
    fabric: "Fabric", model: nn.Module, images: Tensor, columns: Tensor, flip: bool
) -> Tensor:
    """Return the log (B, C) of the softmax over the logits `columns`, (C,) int64.

    The softmax is averaged over the V views of images (B, V, 3, H, W), and with `flip` over their
    mirror images too.
    """
    log_probs = []
    for view in images.unbind(1):  # (B, 3, H, W)
        for pixels in (view, view.flip(-1)) if flip else (view,):
            with fabric.autocast():
                logits = model(pixels)  # (B, Y)
            log_probs.append(logits.float()[:, columns].log_softmax(dim=1))  # (B, C)
    return torch.stack(log_probs).logsumexp(dim=0) - math.log(len(log_probs))


def outcomes_of(log_probs: Tensor, targets: Tensor) -> Tensor:
    """Compare log-probabilities (B, C) with targets, (B, T) int64 in [0, C), padded with -1.

    Returns: (B, 6) float32, columns EVALUATED to PREDICTED.
    """
    B, C = log_probs.shape
    if not bool(log_probs.isfinite().all()):
        raise ValueError(
            "the classifier's logits are not finite; its weights may be broken, or the precision "
            "too low: try --device.precision 32-true"
        )
    is_target = torch.zeros(B, C + 1, dtype=torch.bool)
    is_target = is_target.scatter(1, targets.where(targets >= 0, C), True)[:, :C]  # (B, C)
    top = log_probs.topk(min(5, C), dim=1)
    hits = is_target.gather(1, top.indices)  # (B, 5)
    nll = -log_probs.masked_fill(~is_target, -torch.inf).logsumexp(dim=1)
    columns = [torch.ones(B), hits[:, 0], hits.any(dim=1), nll, top.values[:, 0].exp()]
    return torch.stack([column.float() for column in [*columns, top.indices[:, 0]]], dim=1)


def corrupted_batches(
    images: Tensor, indices: Tensor, config: "Config", pool: ThreadPoolExecutor
) -> Iterator[Tensor]:
    """Yield images (B, V, 3, H, W) uint8 in each corruption; `num_workers` are made ahead."""
    B, V = images.shape[:2]
    indices = indices.repeat_interleave(V)
    corrupted = partial(corrupt, images.flatten(0, 1), seed=config.seed, indices=indices)
    pending: deque[Future[Tensor]] = deque()
    for kind, severity in config.pairs:
        pending.append(pool.submit(corrupted, kind, severity))
        if len(pending) > config.num_workers:
            yield pending.popleft().result().unflatten(0, (B, V))
    for future in pending:
        yield future.result().unflatten(0, (B, V))

"""Validation during pretraining, and the k-NN check of the backbone's features."""

from functools import partial
from typing import NamedTuple, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.data.order import step_generator
from beit.nn.losses import masked_losses, weighted_mean
from beit.nn.masking import MaskConfig, draw_masks, patches_to_predict
from beit.nn.metrics import knn_accuracy
from beit.nn.mim import MaskedImageModel
from beit.nn.target import Target, explained_from_error
from beit.nn.vit import VisionTransformer
from beit.run.device import summed
from beit.run.means import Means
from beit.run.reading import ImageBatches, Reading


class Ranks(Protocol):
    """Interface of `beit.nn.code_ranks.CodeRanks`."""

    def count(self, logits: Tensor, codes: Tensor, weights: Tensor | None = None) -> Tensor: ...
    def figures(self, counts: Tensor) -> dict[str, float]: ...


class Validation(NamedTuple):
    """Inputs of the validation besides the model.

    Attributes:
        batches: this process's share of the validation set
        mask: which patches are masked
        everywhere: predict all patches, not only the masked ones
        step_size: number of masks drawn from one generator, the batch size of training
        seed: of the masks
        ranks: measures how near predicted codes are; None for other targets
    """

    batches: ImageBatches
    mask: MaskConfig
    everywhere: bool
    step_size: int
    seed: int
    ranks: Ranks | None = None


def validation_masks(validation: Validation, grid: tuple[int, int], indices: Tensor) -> Tensor:
    """Draw the masks (B, M) of images by their indices (B,) int64 in the validation set.

    An image's mask depends only on its index, not on the number of processes or on unreadable
    images. All indices lie within one piece of `step_size` images.
    """
    piece = int(indices[0]) // validation.step_size
    generator = step_generator(validation.seed, piece, "validation masks")
    masks = draw_masks(validation.mask, validation.step_size, grid, generator)
    return masks[indices.cpu() - piece * validation.step_size]


@torch.no_grad()
def validate(
    fabric: Fabric, mim: MaskedImageModel, target: Target, validation: Validation, reading: Reading
) -> dict[str, float]:
    """Measure the loss and the metrics of the target on the validation set."""
    mim.eval()
    means, grid = Means(partial(summed, fabric)), mim.config.backbone.grid
    ranks, counts = validation.ranks, torch.zeros(4, target.width, device=fabric.device)
    # All processes need the same names, even one without a batch.
    names = ["val_loss"] + [f"val_{name}" for name in target.metrics]
    names += [f"val_cls_{name}" for name in target.metrics if mim.aggregation]
    means.add(dict.fromkeys(names, 0.0), weight=0)
    for batch in reading:
        masked = validation_masks(validation, grid, batch.indices).to(fabric.device)
        predicted, weights = patches_to_predict(
            masked, grid, validation.everywhere, validation.mask.exact
        )
        with fabric.autocast():
            targets = target.of(batch.images, predicted)
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


@torch.no_grad()
def knn_check(
    fabric: Fabric, backbone: VisionTransformer, train: Reading, test: Reading
) -> dict[str, float]:
    """Classify test images by their nearest training images, by [CLS] and by the mean patch.

    Returns: `knn_cls`, `knn_mean`, and `knn_images`, the number read, if some cannot be read
    """
    backbone.eval()
    features = []
    for reading in (train, test):
        cls, mean, labels = [], [], []
        for batch in reading:
            with fabric.autocast():
                output = backbone(batch.images)
            cls.append(output.cls.float())
            mean.append(output.patches.float().mean(dim=1))
            labels.append(batch.labels)
        if not labels:
            raise ValueError("no image of the k-NN check can be read; repair or replace them")
        features.append((torch.cat(cls), torch.cat(mean), torch.cat(labels)))
    (cls_train, mean_train, train_labels), (cls_test, mean_test, test_labels) = features
    accuracies = {
        "knn_cls": knn_accuracy(cls_train, train_labels, cls_test, test_labels),
        "knn_mean": knn_accuracy(mean_train, train_labels, mean_test, test_labels),
    }
    return accuracies | ({"knn_images": len(test_labels)} if test.unreadable else {})

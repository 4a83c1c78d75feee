"""Validation of a classifier during training."""

from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from beit.nn.heads import ImageClassifier
from beit.nn.metrics import confusion_matrix
from beit.run.device import summed
from beit.run.means import Means
from beit.run.reading import Reading

MATRIX = 1024  # the largest number of classes with a confusion matrix: 8 MB


class Validated(NamedTuple):
    """The results of a classifier on the validation set.

    Attributes:
        metrics: val_loss, cross-entropy with the labels, neither mixed nor smoothed; val_top1;
            val_balanced, the mean of the class accuracies; val_chance, the share of the most
            frequent class; val_top5 for six classes or more
        right: (Y,) int64, correctly classified images of each class
        total: (Y,) int64, images of each class
        confusion: (Y, Y) int64, true classes by row; None for more than MATRIX classes
    """

    metrics: dict[str, float]
    right: Tensor
    total: Tensor
    confusion: Tensor | None


@torch.no_grad()
def validate(fabric: Fabric, classifier: ImageClassifier, reading: Reading) -> Validated:
    """Classify the validation images."""
    classifier.eval()
    Y, means = classifier.config.num_classes, Means(fabric)
    # All processes need the same names, even one without a batch.
    names = ["val_loss", "val_top1"] + ["val_top5"] * (Y > 5)
    means.add(dict.fromkeys(names, 0.0), weight=0)
    has_matrix = Y <= MATRIX
    counts = torch.zeros(Y, Y if has_matrix else 2, dtype=torch.int64, device=fabric.device)
    for batch in reading:
        with fabric.autocast():
            logits = classifier(batch.images)  # (B, Y)
        logits, labels = logits.float(), batch.labels
        predicted = logits.argmax(dim=1)
        metrics = {"val_loss": F.cross_entropy(logits, labels)}
        metrics["val_top1"] = (predicted == labels).float().mean()
        if Y > 5:
            top5 = logits.topk(5, dim=1).indices == labels[:, None]  # (B, 5)
            metrics["val_top5"] = top5.any(dim=1).float().mean()
        means.add(metrics, weight=len(labels))
        if has_matrix:
            counts += confusion_matrix(labels, predicted, Y)
        else:
            counts[:, 0] += torch.bincount(labels[predicted == labels], minlength=Y)
            counts[:, 1] += torch.bincount(labels, minlength=Y)
    counts = summed(fabric, counts).cpu()
    right, total = counts.unbind(dim=1) if not has_matrix else (counts.diagonal(), counts.sum(1))
    accuracies = right[total > 0].double() / total[total > 0]
    result = means.read() | {"val_balanced": float(accuracies.mean())}
    result["val_chance"] = float(total.max() / total.sum())
    return Validated(result | reading.counts(), right, total, counts if has_matrix else None)

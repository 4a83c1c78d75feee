"""Metrics of predicted label maps, from one confusion matrix over a whole data set.

IoU as in mmsegmentation and the published results: intersections and unions are summed over all
images before the division (Everingham et al. 2010).
"""

from typing import NamedTuple

from torch import Tensor

from beit.nn.metrics import confusion_matrix
from beit.nn.segmenter import IGNORED


class MapFigures(NamedTuple):
    """Shares in [0, 1], by class and overall.

    Attributes:
        iou: (Y,) float64, intersection over union; nan for a class in neither labels nor
            predictions
        accuracy: (Y,) float64, share of its pixels that are correct; nan for a class not in the
            labels
        miou: mean of `iou` over the classes where it is defined; nan if there are none
        mean_accuracy: mean of `accuracy` over the classes in the labels
        pixel_accuracy: share of the labelled pixels that are correct
    """

    iou: Tensor
    accuracy: Tensor
    miou: float
    mean_accuracy: float
    pixel_accuracy: float


def pixel_confusion(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Count pairs of classes: (Y, Y) int64, labels by row, predictions by column.

    The matrix of a whole data set is the sum of those of its batches and processes.

    Args:
        labels: (..., H, W) of any integer type, classes in [0, Y) or IGNORED
        predicted: of the same shape, classes in [0, Y)
        num_classes: Y

    Raises:
        ValueError: the shapes differ, or a label is neither a class nor IGNORED.
    """
    if labels.shape != predicted.shape:
        raise ValueError(
            f"labels are {tuple(labels.shape)} and predictions {tuple(predicted.shape)}; expected "
            "one shape"
        )
    counted = labels != IGNORED
    labels, predicted = labels[counted].long(), predicted[counted].long()  # (n,) each
    for name, classes in (("labels", labels), ("predicted", predicted)):
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
            raise ValueError(
                f"{name} has classes from {int(classes.min())} to {int(classes.max())}; expected 0 "
                f"to {num_classes - 1}, or {IGNORED} in the labels for ignored pixels"
            )
    return confusion_matrix(labels, predicted, num_classes)


def map_figures(confusion: Tensor) -> MapFigures:
    """Compute metrics from a confusion matrix (Y, Y) int64, labels by row."""
    counts = confusion.double().cpu()
    correct, labelled = counts.diagonal(), counts.sum(dim=1)
    iou = correct / (labelled + counts.sum(dim=0) - correct)  # 0 / 0 is nan: class without pixels
    accuracy = correct / labelled
    return MapFigures(
        iou,
        accuracy,
        float(iou.nanmean()),
        float(accuracy.nanmean()),
        float(correct.sum() / labelled.sum()),
    )

"""Metrics of predicted label maps, from one confusion matrix over a whole data set.

IoU as in mmsegmentation and the published results: intersections and unions are summed over all
images before the division (Everingham et al. 2010).
"""

from typing import NamedTuple

from torch import Tensor

from beit.nn.metrics import confusion_matrix
from beit.nn.segmenter import IGNORED


class MapFigures(NamedTuple):
    """Shares in [0, 1], by class and overall."""

    iou: Tensor  # (Y,) float64, intersection over union; nan for classes in no label or prediction
    accuracy: Tensor  # (Y,) float64, share of a class's pixels that are correct; nan if it has none
    miou: float  # mean of `iou` over the classes where it is defined; nan if there are none
    mean_accuracy: float  # mean of `accuracy` over the classes in the labels
    pixel_accuracy: float  # share of the labelled pixels that are correct


def pixel_confusion(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Count pairs of classes: (Y, Y) int64, labels by row, predictions by column.

    The matrix of a whole data set is the sum of those of its batches and processes.

    labels: (..., H, W) of any integer type, classes in [0, Y) or IGNORED
    predicted: of the same shape, classes in [0, Y)
    """
    if labels.shape != predicted.shape:
        shapes = f"labels are {tuple(labels.shape)} and predictions {tuple(predicted.shape)}"
        raise ValueError(f"{shapes}; expected one shape")
    counted = labels != IGNORED
    labels, predicted = labels[counted].long(), predicted[counted].long()  # (n,) each
    for name, classes in (("labels", labels), ("predicted", predicted)):
        low, high = (int(end) for end in classes.aminmax()) if len(classes) else (0, 0)
        if not 0 <= low <= high < num_classes:
            raise ValueError(
                f"{name} has classes from {low} to {high}; expected 0 to {num_classes - 1}, or "
                f"{IGNORED} in the labels for ignored pixels"
            )
    return confusion_matrix(labels, predicted, num_classes)


def map_figures(confusion: Tensor) -> MapFigures:
    """Compute metrics from a confusion matrix (Y, Y) int64, labels by row."""
    counts = confusion.double().cpu()
    correct, labelled = counts.diagonal(), counts.sum(dim=1)
    iou = correct / (labelled + counts.sum(dim=0) - correct)  # 0 / 0 is nan: class without pixels
    accuracy = correct / labelled
    means = iou.nanmean(), accuracy.nanmean(), correct.sum() / labelled.sum()
    return MapFigures(iou, accuracy, *(float(mean) for mean in means))

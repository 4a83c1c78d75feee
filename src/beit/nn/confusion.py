"""How well label maps agree with the truth, from one confusion matrix over a whole data set.

IoU as mmsegmentation, and with it the published figures, counts it: intersections and unions are
summed over all images before they are divided (Everingham et al. 2010).
"""

from typing import NamedTuple

from torch import Tensor

from beit.nn.metrics import confusion_matrix
from beit.nn.segmenter import IGNORED


class MapFigures(NamedTuple):
    """Shares in [0, 1], by class and of all.

    Attributes:
        iou: (Y,) float64, intersection over union; nan for a class in neither truth nor guess
        accuracy: (Y,) float64, share of its pixels that are right; nan for a class not in truth
        miou: mean of `iou` over the classes that are anywhere; nan without any
        mean_accuracy: mean of `accuracy` over the classes that the truth has
        pixel_accuracy: share of the labelled pixels that are right
    """

    iou: Tensor
    accuracy: Tensor
    miou: float
    mean_accuracy: float
    pixel_accuracy: float


def pixel_confusion(truth: Tensor, guess: Tensor, num_classes: int) -> Tensor:
    """Count pairs of classes: (Y, Y) int64, truth by row, guess by column.

    Counts of batches, or of processes, are summed: the matrix of all is the sum of theirs.

    Args:
        truth: (..., H, W) of any integer type, classes in [0, Y) or IGNORED
        guess: of the same shape, classes in [0, Y)
        num_classes: Y

    Raises:
        ValueError: the shapes differ, or a label is neither a class nor IGNORED.
    """
    if truth.shape != guess.shape:
        raise ValueError(
            f"truth is {tuple(truth.shape)} and guess {tuple(guess.shape)}; expected one shape"
        )
    counted = truth != IGNORED
    truth, guess = truth[counted].long(), guess[counted].long()  # (n,) each
    for name, labels in (("truth", truth), ("guess", guess)):
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"{name} has labels from {int(labels.min())} to {int(labels.max())}; expected 0 to "
                f"{num_classes - 1}, or {IGNORED} in the truth for pixels that do not count"
            )
    return confusion_matrix(truth, guess, num_classes)


def map_figures(confusion: Tensor) -> MapFigures:
    """Turn a confusion matrix (Y, Y) int64, truth by row, into figures."""
    counts = confusion.double().cpu()
    right, truth = counts.diagonal(), counts.sum(dim=1)
    iou = right / (truth + counts.sum(dim=0) - right)  # 0 / 0 is nan: the class is nowhere
    accuracy = right / truth
    return MapFigures(
        iou,
        accuracy,
        float(iou.nanmean()),
        float(accuracy.nanmean()),
        float(right.sum() / truth.sum()),
    )

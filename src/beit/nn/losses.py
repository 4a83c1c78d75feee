"""Training losses: cosine distance to a teacher, and the losses of masked predictions."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Loss = Literal["cross-entropy", "mse", "smooth-l1", "cosine"]


def cosine_distance(features: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of 1 - cos(features, targets), (..., T) both: () in [0, 2].

    First term of Eq. 2. A zero vector has distance 1 (the published code divides by zero there).
    """
    return 1 - F.cosine_similarity(features.float(), targets.float(), dim=-1).mean()


def masked_losses(
    prediction: tuple[Tensor, Tensor | None],
    targets: Tensor,
    loss: Loss = "cross-entropy",
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the losses of the predictions from patches and from [CLS], () float32 each.

    Means over the masked patches; their sum is the training loss, for codes Eq. 3, in nats. The
    second is 0 without patch aggregation.

    Args:
        prediction: of `MaskedImageModel`: two of (B, M, K) logits of codes, or (B, M, T) values
        targets: (B, M) int64 codes, or (B, M, T) values
        loss: loss of a patch; smooth L1 is quadratic below a distance of 1 and linear above
        weights: (B, M) of the patches; None for equal weights
    """
    logits, cls_logits = prediction
    patch_loss = prediction_loss(logits, targets, loss, weights)
    if cls_logits is None:
        return patch_loss, patch_loss.new_zeros(())
    return patch_loss, prediction_loss(cls_logits, targets, loss, weights)


def prediction_loss(
    predicted: Tensor, targets: Tensor, loss: Loss, weights: Tensor | None = None
) -> Tensor:
    """Return the mean loss () of one prediction (B, M, K) or (B, M, T); see `masked_losses`."""
    predicted = predicted.float()
    if loss == "cross-entropy":
        if targets.is_floating_point():
            raise ValueError(f"codes are {targets.dtype}, expected int64; give codes.long()")
        logits, codes = predicted.flatten(0, 1), targets.flatten()  # (BM, K), (BM,)
        if weights is None:
            return F.cross_entropy(logits, codes)
        losses = F.cross_entropy(logits, codes, reduction="none").view_as(targets)  # (B, M)
    elif loss == "cosine":
        losses = 1 - F.cosine_similarity(predicted, targets.float(), dim=-1)  # (B, M)
    else:
        distance = F.mse_loss if loss == "mse" else F.smooth_l1_loss
        losses = distance(predicted, targets.float(), reduction="none").mean(dim=-1)  # (B, M)
    return weighted_mean(losses, weights)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean () of values (B, M), weighted by weights (B, M) unless they are None."""
    return values.mean() if weights is None else (values * weights).sum() / weights.sum()

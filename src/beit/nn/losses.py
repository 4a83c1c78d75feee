"""What is minimised: cosine distance to a teacher, and the losses of what is predicted."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from beit.nn.mim import MaskedPrediction

Loss = Literal["cross-entropy", "mse", "smooth-l1", "cosine"]


def cosine_distance(features: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of 1 - cos(features, targets) over all vectors, () in [0, 2].

    First term of Eq. 2. A vector of zeros is at distance 1 of everything (the published code
    divides by zero there).

    Args:
        features: (..., T)
        targets: (..., T)
    """
    return 1 - F.cosine_similarity(features.float(), targets.float(), dim=-1).mean()


def masked_token_losses(prediction: MaskedPrediction, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return both cross-entropies of Eq. 3, in nats: of the patches, and through [CLS].

    Each is the mean over all masked patches; their sum is the loss. The second is 0 without
    patch aggregation.

    Args:
        prediction: logits (B, M, K), one or two
        targets: (B, M) int64 codes of the masked patches
    """
    return masked_losses(prediction, targets, "cross-entropy")


def masked_losses(
    prediction: MaskedPrediction, targets: Tensor, loss: Loss, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the loss of the patches' prediction and of that through [CLS], () float32 each.

    The second is 0 without patch aggregation.

    Args:
        prediction: (B, M, K) logits of codes, or (B, M, T) numbers; one or two
        targets: (B, M) int64 codes, or (B, M, T) numbers
        loss: of a patch; smooth L1 turns from square to straight at a distance of 1
        weights: (B, M) of the patches; None: all alike
    """
    patch_loss = prediction_loss(prediction.logits, targets, loss, weights)
    if prediction.cls_logits is None:
        return patch_loss, patch_loss.new_zeros(())
    return patch_loss, prediction_loss(prediction.cls_logits, targets, loss, weights)


def prediction_loss(
    predicted: Tensor, targets: Tensor, loss: Loss, weights: Tensor | None = None
) -> Tensor:
    """Return the mean loss () over patches of one prediction, as in `masked_losses`."""
    predicted = predicted.float()
    if loss == "cross-entropy":
        flat = predicted.flatten(0, 1)
        if weights is None:
            return F.cross_entropy(flat, targets.flatten())
        costs = F.cross_entropy(flat, targets.flatten(), reduction="none").view_as(targets)
    elif loss == "cosine":
        costs = 1 - F.cosine_similarity(predicted, targets.float(), dim=-1)  # (B, M)
    else:
        distance = F.mse_loss if loss == "mse" else F.smooth_l1_loss
        costs = distance(predicted, targets.float(), reduction="none").mean(dim=-1)  # (B, M)
    return weighted_mean(costs, weights)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean () of values (B, M), by weights (B, M) if there are any."""
    return values.mean() if weights is None else (values * weights).sum() / weights.sum()

"""What is minimised: cosine distance to a teacher, cross-entropy of masked tokens."""

from torch import Tensor
from torch.nn import functional as F

from beit.nn.mim import MaskedPrediction


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
    flat = targets.flatten()
    loss = F.cross_entropy(prediction.logits.flatten(0, 1).float(), flat)
    if prediction.cls_logits is None:
        return loss, loss.new_zeros(())
    return loss, F.cross_entropy(prediction.cls_logits.flatten(0, 1).float(), flat)

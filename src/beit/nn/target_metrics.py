"""Interface of the targets of pretraining (see `targets.py`), and metrics of predictions."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from beit.nn.losses import Loss, weighted_mean
from beit.nn.mim import Predicts

# The keys of `target_metrics` for each kind of target.
TARGET_METRICS = {"tokens": ("accuracy",), "pixels": ("error", "spread"), "features": ("cosine",)}


class Target(Protocol):
    """Interface of a target.

    Attributes:
        width: number of codes (K), or values of a patch (T)
        normalised: targets are standardised, pixels per patch, features per vector
        image_size: (height, width) to which `target_images` are resized
        lanczos: resize them by Lanczos, as BEiT v1's tokenizers need
    """

    kind: Predicts
    loss: Loss
    width: int
    normalised: bool
    image_size: tuple[int, int]
    lanczos: bool

    def of(self, images: Tensor, /, positions: Tensor | None = None) -> Tensor:
        """Return the codes (B, N) int64, or values (B, N, T), of images (B, 3, H, W).

        positions: (B, M) int64, the patches to return, M instead of N; None for all
        """


@torch.no_grad()
def target_metrics(
    kind: Predicts, predicted: Tensor, targets: Tensor, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the metrics of a prediction, () each, averaged over patches.

    Tokens: `accuracy`. Features: `cosine`. Pixels: `error`, the squared error, and `spread`, the
    square of the target, which `explained_from_error` combines.

    Args:
        predicted: (B, M, K) or (B, M, T)
        targets: (B, M) int64 or (B, M, T)
        weights: (B, M) of the patches; None for equal weights
    """
    if kind == "tokens":
        values = {"accuracy": (predicted.argmax(dim=2) == targets).float()}
    elif kind == "features":
        values = {"cosine": F.cosine_similarity(predicted.float(), targets, dim=-1)}
    else:
        error, spread = (predicted.float() - targets).square(), targets.square()
        values = {"error": error.mean(dim=-1), "spread": spread.mean(dim=-1)}
    return {name: weighted_mean(value, weights) for name, value in values.items()}


def explained_from_error(metrics: Mapping[str, float]) -> dict[str, float]:
    """Replace each pair of `error` and `spread` by `explained` = 1 - error / spread.

    1 is perfect. 0 is as good as predicting zeros: the mean colour of the data for raw pixels, the
    mean of the patch for normalised ones. A spread of 0 gives 0.
    """
    result = {}
    for name, value in metrics.items():
        if name.endswith("error"):
            prefix = name.removesuffix("error")
            spread = metrics[prefix + "spread"]
            result[prefix + "explained"] = 1 - value / spread if spread else 0.0
        elif not name.endswith("spread"):
            result[name] = value
    return result

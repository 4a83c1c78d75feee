"""Interface of the targets of pretraining (see `targets.py`), and a metric read from two sums."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from beit.nn.losses import Loss
from beit.nn.mim import Predicts


class Target(Protocol):
    """Interface of a target.

    Attributes:
        metrics: names of what `measure` returns
        width: number of codes (K), or values of a patch (T)
        normalised: targets are standardised, pixels per patch, features per vector
        image_size: (height, width) to which `target_images` are resized
        lanczos: resize them by Lanczos, as BEiT v1's tokenizers need
    """

    kind: Predicts
    metrics: tuple[str, ...]
    loss: Loss
    width: int
    normalised: bool
    image_size: tuple[int, int]
    lanczos: bool

    def of(self, images: Tensor, /, positions: Tensor | None = None) -> Tensor:
        """Return the codes (B, N) int64, or values (B, N, T), of images (B, 3, H, W).

        positions: (B, M) int64, the patches to return, M instead of N; None for all
        """

    def measure(self, predicted: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return metrics, (B, M) each, of predictions (B, M, K or T), given what `of` returns."""


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

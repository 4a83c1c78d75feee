"""What pretraining predicts of a patch: a tokenizer's code, its pixels, or a teacher's features.

Codes are BEiT's. Pixels are the ablation of BEiT v1, regressed as by MAE (He et al. 2022, with
`normalised`) or SimMIM (Xie et al. 2022); features are what MVP and EVA regress.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from beit.nn.dalle import DalleTokenizer
from beit.nn.dvae import DiscreteVAE
from beit.nn.losses import Loss, weighted_mean
from beit.nn.mim import Predicts, take
from beit.nn.patches import as_float, patchify
from beit.nn.resample import lanczos
from beit.nn.tokenizer import Tokenizer

PATCH_EPS = 1e-6  # added to the variance of a patch (MAE's code)
# What `merits` measures of each kind of target.
MERITS = {"tokens": ("accuracy",), "pixels": ("error", "spread"), "features": ("cosine",)}


class FeatureSource(Protocol):
    """What is asked of a teacher."""

    width: int

    def features(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the features (B, N, T) of the cells of a grid, of images of any size."""


class TokenTarget:
    """Codes of a tokenizer.

    VQ-KD and others on a fixed grid see images of their own size, resized bicubically. BEiT v1's
    tokenizers, which are convolutions, see what gives the grid of the backbone (112 pixels a side
    for 14 x 14 codes), resized by Lanczos as published.

    Attributes:
        image_size: (height, width) of the images that `of` need not resize
        lanczos: how it resizes others
    """

    kind: Predicts = "tokens"
    loss: Loss = "cross-entropy"
    normalised = False

    def __init__(self, tokenizer: Tokenizer, grid: tuple[int, int]) -> None:
        self.tokenizer, self.width = tokenizer, tokenizer.vocab_size
        self.image_size, self.lanczos = tokenizer.image_size, False
        if isinstance(tokenizer, DiscreteVAE | DalleTokenizer):
            (H, W), (Gh, Gw) = tokenizer.image_size, tokenizer.grid
            self.image_size, self.lanczos = (H // Gh * grid[0], W // Gw * grid[1]), True
        elif tokenizer.grid != grid:
            raise ValueError(
                f"the tokenizer's grid is {tokenizer.grid}, the backbone's {grid}; choose "
                "model.backbone.image_size and patch_size so that both have as many patches"
            )

    def of(self, images: Tensor) -> Tensor:
        """Return the codes (B, N) int64 of images (B, 3, H, W), uint8 or float in [0, 1]."""
        if images.shape[-2:] != torch.Size(self.image_size):
            if self.lanczos and images.dtype == torch.uint8:
                images = lanczos(images, self.image_size)
            else:
                images = F.interpolate(
                    as_float(images), self.image_size, mode="bicubic", antialias=True
                ).clamp(0, 1)
        return self.tokenizer.encode(images)


class PixelTarget:
    """Pixels as the backbone sees them, row by row, the channels of a pixel together.

    With `normalised` each patch less its mean and over its deviation, all channels together: what
    is left is its structure.
    """

    kind: Predicts = "pixels"
    lanczos = False

    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: int,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        normalised: bool = True,
        loss: Loss = "mse",
    ) -> None:
        self.image_size, self.patch_size = image_size, patch_size
        self.normalised, self.loss = normalised, loss
        self.width = 3 * patch_size**2
        self.mean = torch.tensor(mean or (0.0,) * 3).view(-1, 1, 1)
        self.std = torch.tensor(std or (1.0,) * 3).view(-1, 1, 1)

    def of(self, images: Tensor) -> Tensor:
        """Return the targets (B, N, 3PP) of images (B, 3, H, W), uint8 or float in [0, 1]."""
        patches = self._patches(images)
        if not self.normalised:
            return patches
        mean, deviation = moments(patches)
        return (patches - mean) / deviation

    def paint(self, images: Tensor, masked: Tensor, predicted: Tensor) -> Tensor:
        """Put what was predicted (B, M, 3PP) in the place of the masked (B, M) patches.

        Where the target is normalised, with the mean and deviation of the true patch, which the
        model does not know: the picture then shows a patch's structure, its brightness is given.

        Returns: (B, 3, H, W) in [0, 1]
        """
        patches, predicted = self._patches(images), predicted.float()
        if self.normalised:
            mean, deviation = moments(take(patches, masked))
            predicted = predicted * deviation + mean
        where = masked[..., None].expand(-1, -1, self.width)
        pixels = unpatchify(patches.scatter(1, where, predicted), self.image_size, self.patch_size)
        return (pixels * self.std.to(pixels) + self.mean.to(pixels)).clamp(0, 1)

    def _patches(self, images: Tensor) -> Tensor:
        pixels = as_float(images).float()
        return patchify(
            (pixels - self.mean.to(pixels)) / self.std.to(pixels), self.patch_size
        )  # (B, N, 3PP)


class FeatureTarget:
    """A teacher's features of each patch.

    With `normalised` each vector less its mean and over its deviation, so that no channel that is
    always large outweighs the others in a smooth L1 or squared distance.
    """

    kind: Predicts = "features"
    lanczos = False

    def __init__(
        self,
        teacher: FeatureSource,
        image_size: tuple[int, int],
        grid: tuple[int, int],
        normalised: bool = False,
        loss: Loss = "cosine",
    ) -> None:
        self.teacher, self.width = teacher, teacher.width
        self.image_size, self.grid = image_size, grid
        self.normalised, self.loss = normalised, loss

    def of(self, images: Tensor) -> Tensor:
        """Return the features (B, N, T) float32 of images (B, 3, H, W), uint8 or in [0, 1]."""
        features = self.teacher.features(images, self.grid).float()
        return F.layer_norm(features, (self.width,)) if self.normalised else features


Target = TokenTarget | PixelTarget | FeatureTarget


def moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and deviation, (B, N, 1) each, of the values of patches (B, N, 3PP)."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + PATCH_EPS).sqrt()


def unpatchify(patches: Tensor, image_size: tuple[int, int], patch_size: int) -> Tensor:
    """Put patches (B, N, P*P*c) together to images (B, c, H, W): the inverse of `patchify`."""
    (H, W), P = image_size, patch_size
    tiles: Tensor = patches.unflatten(1, (H // P, W // P)).unflatten(3, (P, P, -1))
    return tiles.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, H, W)


@torch.no_grad()
def merits(
    kind: Predicts, predicted: Tensor, targets: Tensor, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Say how good one prediction is, in means over patches, () each.

    Tokens: `accuracy`. Features: `cosine`. Pixels: `error`, the squared distance, and `spread`, the
    square of the target itself, of which `with_explained` makes a share.

    Args:
        predicted: (B, M, K) or (B, M, T)
        targets: (B, M) int64 or (B, M, T)
        weights: (B, M), None: all alike
    """
    if kind == "tokens":
        values = {"accuracy": (predicted.argmax(dim=2) == targets).float()}
    elif kind == "features":
        values = {"cosine": F.cosine_similarity(predicted.float(), targets, dim=-1)}
    else:
        error, spread = (predicted.float() - targets).square(), targets.square()
        values = {"error": error.mean(dim=-1), "spread": spread.mean(dim=-1)}
    return {name: weighted_mean(value, weights) for name, value in values.items()}


def with_explained(figures: Mapping[str, float]) -> dict[str, float]:
    """Replace each pair of `error` and `spread` by `explained` = 1 - error / spread.

    1 is perfect; 0 is as good as always predicting zeros, which is the mean colour of the data for
    raw pixels and the patch's own mean for normalised ones. A spread of 0 gives 0.
    """
    shares = {}
    for name, value in figures.items():
        if name.endswith("error"):
            spread = figures[name.removesuffix("error") + "spread"]
            shares[name.removesuffix("error") + "explained"] = 1 - value / spread if spread else 0.0
        elif not name.endswith("spread"):
            shares[name] = value
    return shares

"""Targets of pretraining: codes of a tokenizer, pixels, or features of a teacher, for each patch.

Codes are BEiT's target. Pixels are an ablation of BEiT v1, regressed as in MAE (He et al. 2022,
with `normalised`) or SimMIM (Xie et al. 2022). Features are regressed as in MVP and EVA.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from beit.nn.channels import chosen_channels
from beit.nn.dalle import DalleTokenizer
from beit.nn.dvae import DiscreteVAE
from beit.nn.losses import Loss
from beit.nn.mim import Predicts
from beit.nn.patches import Size, as_float, patchify, take, unchecked
from beit.nn.resample import lanczos
from beit.nn.tokenizer import VQKD, Tokenizer

PATCH_EPS = 1e-6  # added to the variance of a patch (MAE's code)


class FeatureSource(Protocol):
    """Interface of a teacher."""

    width: int

    def features(self, images: Tensor, grid: Size) -> Tensor:
        """Return the features (B, N, T) of the grid cells of images of any size."""


class TokenTarget:
    """Codes of a tokenizer.

    Tokenizers with a fixed grid, such as VQ-KD, get images of their own size, resized bicubically.
    BEiT v1's convolutional tokenizers get the image size that gives the backbone's grid (112 x 112
    pixels for 14 x 14 codes), resized by Lanczos as published.
    """

    kind: Predicts = "tokens"
    metrics: tuple[str, ...] = ("accuracy",)
    loss: Loss = "cross-entropy"
    normalised = False

    def __init__(self, tokenizer: Tokenizer, grid: Size, channels: tuple[int, ...] = ()) -> None:
        """Check the grid; of the images' `channels` the tokenizer sees these, or all."""
        self.tokenizer, self.width, self.channels = tokenizer, tokenizer.vocab_size, channels
        self.image_size, self.lanczos = tokenizer.image_size, False
        if isinstance(tokenizer, DiscreteVAE | DalleTokenizer):
            (H, W), (Gh, Gw) = tokenizer.image_size, tokenizer.grid
            self.image_size, self.lanczos = (H // Gh * grid[0], W // Gw * grid[1]), True
        elif tokenizer.grid != grid:
            H, W = tokenizer.image_size
            raise ValueError(
                f"the tokenizer's grid is {tokenizer.grid}, the backbone's {grid}; both must be "
                f"equal, as with the tokenizer's --model.backbone.image_size [{H},{W}] "
                f"--model.backbone.patch_size {H // tokenizer.grid[0]}. Without --preset and "
                "--config they follow the tokenizer"
            )

    def of(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the codes (B, N) int64 of images (B, c, H, W), or (B, M) at positions (B, M)."""
        images = chosen_channels(images, self.channels)
        if images.shape[-2:] != torch.Size(self.image_size):
            if self.lanczos and images.dtype == torch.uint8:
                images = lanczos(images, self.image_size)
            else:
                images = F.interpolate(
                    as_float(images), self.image_size, mode="bicubic", antialias=True
                ).clamp(0, 1)
        with unchecked():
            if isinstance(self.tokenizer, VQKD):
                return self.tokenizer.encode(images, positions)
            return at(self.tokenizer.encode(images), positions)

    def measure(self, predicted: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return 1 where logits (B, M, K) are largest for the codes (B, M), else 0: (B, M)."""
        return {"accuracy": (predicted.argmax(dim=2) == targets).float()}


class PixelTarget:
    """Pixels normalised as for the backbone, row by row, the channels of a pixel together.

    With `normalised`, each patch is standardised over its pixels and channels.
    """

    kind: Predicts = "pixels"
    metrics: tuple[str, ...] = ("error", "spread")
    lanczos = False

    def __init__(
        self,
        image_size: Size,
        patch_size: int,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        normalised: bool = True,
        loss: Loss = "mse",
        channels: int = 3,
    ) -> None:
        self.image_size, self.patch_size = image_size, patch_size
        self.normalised, self.loss = normalised, loss
        self.width = channels * patch_size**2
        self.mean = torch.tensor(mean or (0.0,)).view(-1, 1, 1)
        self.std = torch.tensor(std or (1.0,)).view(-1, 1, 1)

    def of(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the targets (B, N, cPP) of images (B, c, H, W), or (B, M, cPP) at positions."""
        patches = at(self._patches(images), positions)
        if not self.normalised:
            return patches
        mean, std = mean_and_std(patches)
        return (patches - mean) / std

    def measure(self, predicted: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return squared errors (B, M), and squares of the targets; see `explained_from_error`."""
        error, spread = (predicted.float() - targets).square(), targets.square()
        return {"error": error.mean(dim=-1), "spread": spread.mean(dim=-1)}

    def paint(self, images: Tensor, masked: Tensor, predicted: Tensor) -> Tensor:
        """Replace the masked (B, M) patches of images by predicted ones (B, M, cPP), in [0, 1].

        Normalised predictions get the mean and standard deviation of the true patch, which the
        model does not know: such a picture shows predicted structure at the true brightness.
        """
        patches, predicted = self._patches(images), predicted.float()
        if self.normalised:
            mean, std = mean_and_std(take(patches, masked))
            predicted = predicted * std + mean
        index = masked[..., None].expand(-1, -1, self.width)  # (B, M, cPP)
        pixels = unpatchify(patches.scatter(1, index, predicted), self.image_size, self.patch_size)
        return (pixels * self.std.to(pixels) + self.mean.to(pixels)).clamp(0, 1)

    def _patches(self, images: Tensor) -> Tensor:
        pixels = as_float(images).float()
        pixels = (pixels - self.mean.to(pixels)) / self.std.to(pixels)
        return patchify(pixels, self.patch_size)  # (B, N, cPP)


class FeatureTarget:
    """Features of a teacher for each patch; with `normalised`, vectors standardised over channels.

    Then channels with large values do not dominate a smooth L1 or squared distance.
    """

    kind: Predicts = "features"
    metrics: tuple[str, ...] = ("cosine",)
    lanczos = False

    def __init__(
        self,
        teacher: FeatureSource,
        image_size: Size,
        grid: Size,
        normalised: bool = False,
        loss: Loss = "cosine",
    ) -> None:
        self.teacher, self.width = teacher, teacher.width
        self.image_size, self.grid = image_size, grid
        self.normalised, self.loss = normalised, loss

    def of(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the features (B, N, T) float32 of images, or (B, M, T) at positions (B, M)."""
        features = at(self.teacher.features(images, self.grid).float(), positions)
        return F.layer_norm(features, (self.width,)) if self.normalised else features

    def measure(self, predicted: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the cosine (B, M) of predicted and true features (B, M, T)."""
        return {"cosine": F.cosine_similarity(predicted.float(), targets, dim=-1)}


def at(targets: Tensor, positions: Tensor | None) -> Tensor:
    """Return the targets (B, N, ...) of the patches at positions (B, M); of all with None."""
    return targets if positions is None else take(targets, positions)


def mean_and_std(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (B, N, 1) of the values of each patch (B, N, cPP)."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + PATCH_EPS).sqrt()


def unpatchify(patches: Tensor, image_size: Size, patch_size: int) -> Tensor:
    """Assemble images (B, c, H, W) from patches (B, N, P*P*c): the inverse of `patchify`."""
    (H, W), P = image_size, patch_size
    tiles: Tensor = patches.unflatten(1, (H // P, W // P))  # (B, Gh, Gw, P*P*c)
    tiles = tiles.unflatten(3, (P, P, -1))  # (B, Gh, Gw, P, P, c)
    return tiles.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, H, W)

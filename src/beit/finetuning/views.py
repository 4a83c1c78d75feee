"""Training views of fine-tuning: random crop, RandAugment and random erasing.

As in docs/reference/finetuning.md, "Recipes". timm's implementations draw from the global random
states of Python, NumPy and torch; `seeded` sets these, so that a view stays a pure function of
(seed, epoch, index).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from beit.data.order import seeded
from beit.data.views import TrainViews, ViewConfig
from beit.nn.patches import IMAGENET_MEAN, IMAGENET_STD
from beit.nn.vit import ViTConfig

_POLICY = re.compile(r"rand(-((m|n|p|mstd|mmax|inc)\d+(\.\d+)?|t\w+))*")
_SHIFT = 0.45  # largest translation by RandAugment, as a share of the shorter side; published


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of a training view after crop and flip; the defaults are the published ones.

    Args:
        policy: RandAugment policy in timm's notation; empty for none
        erase: probability of random erasing: a rectangle, 2% to a third of the view, becomes noise
        repeats: number of views of each image in a step; an epoch then has 1/repeats of the images
    """

    policy: str = "rand-m9-mstd0.5-inc1"
    erase: float = 0.25
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.policy and not _POLICY.fullmatch(self.policy):
            raise ValueError(
                f"augment.policy {self.policy!r} is not valid; expected RandAugment in timm's "
                "notation, as in rand-m9-mstd0.5-inc1, or nothing"
            )
        if not 0 <= self.erase <= 1:
            raise ValueError(f"augment.erase must be a probability in [0, 1], got {self.erase}")
        if self.repeats < 1:
            raise ValueError(f"augment.repeats is {self.repeats}; expected 1 or more")


def check_augment(augment: AugmentConfig, vit: ViTConfig) -> None:
    """Raise ValueError for augmentation that images of other channels than RGB cannot have."""
    if vit.image_channels == 3:
        return
    images = f"images have {vit.image_channels} channels"
    if augment.policy:
        raise ValueError(
            f"augment.policy {augment.policy} changes red, green and blue, but {images}; give "
            "none: --augment.policy ''"
        )
    if augment.erase and vit.mean is None:
        raise ValueError(
            f"augment.erase is {augment.erase}: the noise has the mean and std of the model, which "
            f"has none, and {images}; give 0"
        )


class FinetuneViews:
    """Crop, flip, RandAugment and random erasing, in the published order.

    The noise of erasing is normal, with the mean and std of the model's normalisation. The
    published code draws it after normalisation, without bounds; here it is rounded and clamped to
    0..255.
    """

    def __init__(
        self,
        view: ViewConfig,
        augment: AugmentConfig,
        size: tuple[int, int],
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        """Build the views.

        Args:
            size: (height, width) of the view
            mean: per-channel mean of the noise, in [0, 1]; None for ImageNet's
            std: per-channel standard deviation of the noise; None for ImageNet's
        """
        from timm.data.auto_augment import rand_augment_transform  # slow to import
        from timm.data.random_erasing import RandomErasing

        self._views = TrainViews(view, size, size)
        colours = mean or IMAGENET_MEAN
        self._mean = torch.tensor(colours if len(colours) > 1 else colours * 3).view(-1, 1, 1)
        self._std = torch.tensor(std or IMAGENET_STD).view(-1, 1, 1)
        self._policy = None
        if augment.policy:
            parameters = {
                "translate_const": int(min(size) * _SHIFT),
                "img_mean": tuple(round(255 * value) for value in self._mean.flatten().tolist()),
                "interpolation": Image.Resampling.BICUBIC,
            }
            self._policy = rand_augment_transform(augment.policy, parameters)
            for operation in self._policy.ops:
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = posterized
        self._erasing = None
        if augment.erase:
            self._erasing = RandomErasing(augment.erase, mode="pixel", max_count=1, device="cpu")

    def __call__(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a view of `image`, (c, H, W) uint8. Returns: (c, H', W') uint8, twice."""
        view, _ = self._views(image, generator)
        with seeded(generator):
            if self._policy is not None:
                changed = self._policy(Image.fromarray(view.permute(1, 2, 0).numpy()))
                view = torch.from_numpy(np.array(changed)).permute(2, 0, 1).contiguous()
            if self._erasing is not None:
                noise = self._erasing(torch.full(view.shape, torch.nan))  # (c, H', W')
                pixels = (noise * self._std + self._mean).mul_(255).round_().clamp_(0, 255)
                view = torch.where(noise.isnan(), view, pixels.nan_to_num_(0).to(torch.uint8))
        return view, view


def posterized(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep `bits` bits of each channel, as timm does; the image is black for 0 bits.

    The published policy draws 0 bits once in many hundred images, which Pillow now refuses.
    """
    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)

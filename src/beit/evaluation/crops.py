"""What a classifier sees of an image at test time: the centre, or the centre and four corners."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from beit.data.views import EvalView


class CropViews:
    """Crops of one size out of an image resized as by `EvalView`, of which one crop is the same.

    Five are the centre and the corners (Krizhevsky et al. 2012). With crop_ratio 1 they differ
    along the longer side only.
    """

    def __init__(
        self,
        size: tuple[int, int],
        crop_ratio: float = 0.875,
        crops: Literal[1, 5] = 1,
        border: int = 0,
    ) -> None:
        """Cut `border` pixels off each side of an image before all else."""
        if crops not in (1, 5):
            raise ValueError(f"crops must be 1 (the centre) or 5 (corners too), got {crops}")
        self.centre = EvalView(size, crop_ratio)
        self.crops, self.border = crops, border

    def __call__(self, image: Tensor) -> Tensor:
        """Cut the crops out of `image`, (3, H, W) uint8. Returns: (V, 3, H', W') uint8."""
        cut = self.border
        if cut and min(image.shape[-2:]) > 2 * cut:
            image = image[:, cut:-cut, cut:-cut]
        if self.crops == 1:
            return self.centre(image)[None]
        scaled = self.centre.scaled(image)
        H, W = self.centre.size
        corners = [scaled[:, :H, :W], scaled[:, :H, -W:], scaled[:, -H:, :W], scaled[:, -H:, -W:]]
        return torch.stack([self.centre(image), *corners])

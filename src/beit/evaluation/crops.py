"""Test-time views of an image: the centre crop, or the centre and the four corners."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from beit.data.views import EvalView


class CropViews:
    """Crops of one size from an image resized as by `EvalView`; the first is its centre crop.

    Five crops are the centre and the corners (Krizhevsky et al. 2012). With crop_ratio 1 they
    differ along the longer side only.
    """

    def __init__(
        self,
        size: tuple[int, int],
        crop_ratio: float = 0.875,
        crops: Literal[1, 5] = 1,
        border: int = 0,
    ) -> None:
        """`border` pixels are cut off each side of an image first."""
        if crops not in (1, 5):
            raise ValueError(f"crops must be 1 (the centre) or 5 (corners too), got {crops}")
        self.centre = EvalView(size, crop_ratio)
        self.crops, self.border = crops, border

    def __call__(self, image: Tensor) -> Tensor:
        """Crop `image`, (3, H, W) uint8. Returns: (V, 3, H', W') uint8."""
        border = self.border
        if border and min(image.shape[-2:]) > 2 * border:
            image = image[:, border:-border, border:-border]
        if self.crops == 1:
            return self.centre(image)[None]
        scaled = self.centre.scaled(image)
        H, W = self.centre.size
        corners = [scaled[:, :H, :W], scaled[:, :H, -W:], scaled[:, -H:, :W], scaled[:, -H:, -W:]]
        return torch.stack([self.centre(image), *corners])

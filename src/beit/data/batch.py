"""The batch: images of one size, and what belongs to each of them."""

from typing import NamedTuple

import torch
from torch import Tensor

NO_LABEL_MAPS = torch.empty(0, dtype=torch.uint8)
NO_CROPS = torch.empty(0, 5)


class Batch(NamedTuple):
    """Images of one micro-step, or of one step of an evaluation.

    In training, the next readable image replaces an unreadable one, so B never changes. In an
    evaluation, unreadable images are left out: B can be smaller, even 0.
    """

    images: Tensor  # (B, c, H, W) uint8, c = 3 for RGB
    target_images: Tensor  # (B, c, H', W') uint8; the same tensor as `images` if sizes are equal
    labels: Tensor  # (B,) int64, -1 where unknown
    indices: Tensor  # (B,) int64, indices of the images in the source
    unreadable: list[str]  # "name: reason" of unreadable images
    label_maps: Tensor = NO_LABEL_MAPS  # (B, H, W) uint8, 255 where ignored
    # (B, 5) of random crops: top, left, height, width as shares of the image; 1 if mirrored, else 0
    crops: Tensor = NO_CROPS

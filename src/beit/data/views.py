"""Views of an image: random ones for training and the centre crop for evaluation.

Training views follow docs/reference/pretraining.md, "Augmentation".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from beit.data.colours import draw_changes, grey_mean, recoloured
from beit.nn.resample import bicubic_crops, lanczos

Size = tuple[int, int]  # height, width
Box = tuple[int, int, int, int]  # top, left, height, width

_CROP_TRIES = 10  # as published; then the largest central box of an allowed ratio is used
_LONGEST = 32  # of an image longer than so many views, such as a line, the ends are cut off


@dataclass(frozen=True)
class ViewConfig:
    """Random training views. Defaults are those of BEiT v2's pretraining.

    Args:
        min_scale: smallest area of the crop, as a share of the image
        max_scale: largest area of the crop, as a share of the image
        min_ratio: smallest aspect ratio of the crop, width over height, divided by the view's
        max_ratio: largest such ratio
        flip: probability of a horizontal flip
        color_jitter: strength of random brightness, contrast and saturation; 0 for none
    """

    min_scale: float = 0.2
    max_scale: float = 1.0
    min_ratio: float = 3 / 4
    max_ratio: float = 4 / 3
    flip: float = 0.5
    color_jitter: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.min_scale <= self.max_scale <= 1:
            scales = f"min_scale {self.min_scale} and max_scale {self.max_scale}"
            raise ValueError(f"expected 0 < min_scale <= max_scale <= 1, got {scales}")
        if not 0 < self.min_ratio <= self.max_ratio:
            ratios = f"min_ratio {self.min_ratio} and max_ratio {self.max_ratio}"
            raise ValueError(f"expected 0 < min_ratio <= max_ratio, got {ratios}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be a probability in [0, 1], got {self.flip}")
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter must be in [0, 1], got {self.color_jitter}")


class Sample(NamedTuple):
    """What a batch holds of one image, by the names of its fields; its colours not yet changed."""

    images: Tensor  # (3, H, W) uint8
    target_images: Tensor  # (3, H', W') uint8; the same tensor if sizes are equal
    crops: Tensor  # (5,), see `Batch.crops`
    changes: Tensor  # (3, 3) for `recoloured`, (0, 3) without jitter


class Crops(NamedTuple):
    """Random crops of B images."""

    boxes: Tensor  # (B, 4) int64: top, left, height, width
    mirrored: Tensor  # (B,) bool

    def shares(self, height: int, width: int) -> Tensor:
        """Return `Batch.crops`."""
        sides = torch.tensor([height, width, height, width])
        return torch.cat([self.boxes.double() / sides, self.mirrored[:, None]], dim=1).float()


class TrainViews:
    """Two views of one random crop that differ in size only: for the model and for its target.

    The published order is jitter, flip, crop, resize. Here the jitter comes last, on fewer pixels.
    It is affine in the colours, so it commutes with the others up to rounding and clipping.
    Contrast still uses the mean of the whole image. All arithmetic is exact or element-wise, so
    results do not depend on the number of threads.

    With `by_lanczos`, a target view of another size is resized as for BEiT v1's tokenizers.
    """

    def __init__(
        self, config: ViewConfig, size: Size, target_size: Size, by_lanczos: bool = False
    ) -> None:
        self.config, self.by_lanczos = config, by_lanczos
        self.size = _checked_size("size", size)
        self.target_size = _checked_size("target_size", target_size)

    def __call__(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return views (3, H', W') uint8 of (3, H, W) uint8; the same tensor if sizes are equal."""
        sample = self.sample(image, generator)
        sizes = [sample.images] if self.size == self.target_size else sample[:2]
        views = [recoloured(view[None], sample.changes[None])[0] for view in sizes]
        return views[0], views[-1]

    def sample(self, image: Tensor, generator: torch.Generator) -> Sample:
        """Return the views of (3, H, W) uint8, their crop and the changes of their colours."""
        _, height, width = image.shape
        draws = random_draws([generator])
        crops, mean = self.crops(height, width, draws), 0.0
        top, left, box_height, box_width = crops.boxes[0].tolist()
        crop = image[None, :, top : top + box_height, left : left + box_width]
        crop = crop.contiguous(memory_format=torch.channels_last)
        if crops.mirrored:
            crop = crop.flip(-1)
        view, same = resized(crop, self.size)[0], self.size == self.target_size
        resize = lanczos if self.by_lanczos else resized
        target = view if same else resize(crop, self.target_size)[0]
        if self.config.color_jitter > 0:
            mean = float(grey_mean(image))
        changes = self.changes(draws, [mean])
        return Sample(view, target, crops.shares(height, width)[0], changes[0])

    def samples(self, images: Tensor, crops: Crops) -> tuple[Tensor, Tensor]:
        """Return the views of whole images (B, 3, H, W) uint8 at once, on their device."""
        views = [
            bicubic_crops(images, crops.boxes, crops.mirrored, size)
            for size in dict.fromkeys((self.size, self.target_size))
        ]
        return views[0], views[-1]

    def crops(self, height: int, width: int, draws: Tensor) -> Crops:
        """Return the crops of images of one size from `random_draws`."""
        boxes = crop_boxes(height, width, self.config, draws[:, 5:], self.size[1] / self.size[0])
        return Crops(boxes, draws[:, 0] < self.config.flip)

    def changes(self, draws: Tensor, grey_means: Sequence[float]) -> Tensor:
        """Return the changes of colours (B, 3, 3), (B, 0, 3) without jitter, for `recoloured`."""
        strength = self.config.color_jitter
        if not strength > 0:
            return torch.empty(len(draws), 0, 3)
        pairs = zip(draws[:, 1:5].tolist(), grey_means, strict=True)
        return torch.tensor([draw_changes(strength, draw, mean) for draw, mean in pairs])


def random_draws(generators: Sequence[torch.Generator]) -> Tensor:
    """Draw what a view needs from the generator of each of B images: (B, 45) float64 in [0, 1)."""
    draws = torch.empty(len(generators), 5 + 4 * _CROP_TRIES, dtype=torch.float64)
    for row, generator in zip(draws.unbind(), generators, strict=True):
        row.uniform_(generator=generator)
    return draws


class EvalView:
    """Centre crop: resize the shorter side to `size / crop_ratio`, then crop."""

    def __init__(self, size: Size, crop_ratio: float = 0.875) -> None:
        if not 0 < crop_ratio <= 1:
            raise ValueError(f"crop_ratio must be in (0, 1], got {crop_ratio}")
        self.size, self.crop_ratio = _checked_size("size", size), crop_ratio

    def __call__(self, image: Tensor) -> Tensor:
        """Return the view (3, H', W') uint8 of an image (3, H, W) uint8."""
        image, (height, width) = self.scaled(image), self.size
        top, left = round((image.shape[-2] - height) / 2), round((image.shape[-1] - width) / 2)
        return image[:, top : top + height, left : left + width].contiguous()

    def scaled(self, image: Tensor) -> Tensor:
        """Resize `image`, (3, H, W) uint8, to `size / crop_ratio` or larger, without the crop.

        If it is more than 32 times longer than the view's shape, its middle is taken.
        """
        least_height, least_width = (int(side / self.crop_ratio) for side in self.size)
        height, width = image.shape[-2:]
        longest_height = _LONGEST * -(-width * least_height // least_width)
        longest_width = _LONGEST * -(-height * least_width // least_height)
        top, left = max(0, height - longest_height) // 2, max(0, width - longest_width) // 2
        image = image[:, top : top + longest_height, left : left + longest_width]
        height, width = image.shape[-2:]
        if least_height * width >= least_width * height:  # limited by the height
            size = (least_height, max(least_width, least_height * width // height))
        else:
            size = (max(least_height, least_width * height // width), least_width)
        return resized(image[None], size)[0]


def crop_boxes(
    height: int, width: int, config: ViewConfig, draws: Tensor, aspect: float = 1.0
) -> Tensor:
    """Return boxes of random resized crops of B images of one size: (B, 4) int64.

    `draws` (B, 4 * tries) are random numbers in [0, 1), four per attempt; the first box inside the
    image is taken. Its ratios are relative to `aspect`, width over height of the view, so that
    shapes keep theirs on average.
    """
    min_ratio, max_ratio = config.min_ratio * aspect, config.max_ratio * aspect
    log_ratios = (math.log(min_ratio), math.log(max_ratio))
    scales, ratios, tops, lefts = np.moveaxis(draws.numpy().reshape(len(draws), -1, 4), -1, 0)
    areas = (config.min_scale + scales * (config.max_scale - config.min_scale)) * height * width
    logs = log_ratios[0] + ratios * (log_ratios[1] - log_ratios[0])
    # NumPy's exp can differ from this one in the last bit.
    ratios = np.array(list(map(math.exp, logs.ravel().tolist()))).reshape(logs.shape)
    widths, heights = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    tops, lefts = np.floor(tops * (height - heights + 1)), np.floor(lefts * (width - widths + 1))
    inside = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)  # (B, tries)
    boxes = np.stack([tops, lefts, heights, widths], axis=-1).astype(np.int64)
    chosen = boxes[np.arange(len(boxes)), inside.argmax(axis=1)]  # (B, 4)
    chosen[~inside.any(axis=1)] = _central_box(height, width, min_ratio, max_ratio)
    return torch.from_numpy(chosen)


def _central_box(height: int, width: int, min_ratio: float, max_ratio: float) -> Box:
    """Return the largest central box of an allowed ratio."""
    box_height, box_width = height, width
    if width < min_ratio * height:
        box_height = max(1, round(width / min_ratio))
    elif width > max_ratio * height:
        box_width = max(1, round(height * max_ratio))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resized(images: Tensor, size: Size) -> Tensor:
    """Resize (B, 3, H, W) uint8 by antialiased bicubic interpolation.

    With the channels last, as decoders give them, torch is faster; pixels are the same.
    """
    if tuple(images.shape[-2:]) != tuple(size):
        images = images.contiguous(memory_format=torch.channels_last)
        images = functional.interpolate(images, size, mode="bicubic", antialias=True)
    return images.contiguous()


def _checked_size(name: str, size: Size) -> tuple[int, int]:
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"{name} must be (height, width), each at least 1, got {tuple(size)}")
    return height, width

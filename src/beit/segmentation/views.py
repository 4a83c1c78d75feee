"""Training views of a segmenter: random crops with their label maps.

Source: docs/reference/segmentation.md, Augmentation. Sizes and probabilities are those of the
published mmsegmentation pipeline: resize, crop, mirror, colours, padding. Two things differ on
purpose. Colours are computed in floating point and rounded once (there after each change). Maps are
resized about pixel centres, like the images (there a shrunk map is up to half a pixel off).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from beit.nn.patches import IMAGENET_MEAN
from beit.nn.segmenter import IGNORED
from beit.nn.sliding import working_size

Size = tuple[int, int]  # height, width
Box = tuple[int, int, int, int]  # top, left, height, width

_CROP_TRIES = 10  # as published; then one last crop is taken unconditionally


@dataclass(frozen=True)
class SegmentViewConfig:
    """Random training crops. Defaults are the published ones for ADE20K.

    Args:
        long_side: upper bound of the longer side after resizing, which keeps the aspect ratio
        short_side: upper bound of the shorter side after resizing
        min_ratio: smallest value of the random factor by which long_side and short_side are
            multiplied
        max_ratio: largest value of this factor
        max_share: a crop in which one class exceeds this share is drawn again, up to ten times; 1
            to keep the first crop
        flip: probability of a mirror image
        brightness: largest change of the pixel values, of 255; each colour change is applied with
            probability 0.5
        contrast: largest deviation of the contrast factor from 1
        saturation: largest deviation of the saturation factor from 1
        hue: largest rotation of the hue in degrees (mmsegmentation's 18 are units of 2 degrees)
    """

    long_side: int = 2048
    short_side: int = 512
    min_ratio: float = 0.5
    max_ratio: float = 2.0
    max_share: float = 0.75
    flip: float = 0.5
    brightness: float = 32.0
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 36.0

    def __post_init__(self) -> None:
        if not 1 <= self.short_side <= self.long_side:
            sides = f"short_side {self.short_side} and long_side {self.long_side}"
            raise ValueError(f"expected 1 <= short_side <= long_side, got {sides}")
        if not 0 < self.min_ratio <= self.max_ratio:
            ratios = f"min_ratio {self.min_ratio} and max_ratio {self.max_ratio}"
            raise ValueError(f"expected 0 < min_ratio <= max_ratio, got {ratios}")
        if not 0 < self.max_share <= 1:
            raise ValueError(f"max_share is a share in (0, 1], got {self.max_share}")
        for name in ("flip", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.brightness < 0 or not 0 <= self.hue <= 180:
            got = f"got brightness {self.brightness} and hue {self.hue}"
            raise ValueError(f"brightness must be at least 0 and hue in [0, 180] degrees, {got}")


class SegmentViews:
    """The same random crop of an image and its label map."""

    def __init__(
        self, config: SegmentViewConfig, size: Size, mean: tuple[float, ...] | None = None
    ) -> None:
        """Set the size (height, width) of the crops and the colour of their padding.

        `mean` in [0, 1] is that which the model subtracts, so that its input is the published 0 in
        the padding of images smaller than the crop; None for ImageNet's.
        """
        if min(size) < 1:
            raise ValueError(f"size must be (height, width), each at least 1, got {tuple(size)}")
        self.config, self.size = config, size
        colour = [round(255 * level) for level in mean or IMAGENET_MEAN]
        self._colour = torch.tensor(colour, dtype=torch.uint8).expand(3)

    def __call__(
        self, image: Tensor, label_map: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw a crop of `image`, (3, H, W) uint8, and `label_map`, (H, W) uint8.

        Returns: (3, H', W') uint8 and (H', W') uint8; the map is 255 in the padding.
        """
        config = self.config
        count = 2 + 9 + 2 * (_CROP_TRIES + 1)  # for resizing and mirroring, colours, crops
        chances = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
        ratio = config.min_ratio + chances[0] * (config.max_ratio - config.min_ratio)
        sides = int(config.short_side * ratio), int(config.long_side * ratio)
        size = working_size((label_map.shape[0], label_map.shape[1]), *sides)
        image, label_map = resized(image, size), resized_map(label_map, size)
        box = crop_box(label_map, self.size, config.max_share, chances[11:])
        image, label_map = _cut(image, box), _cut(label_map, box)
        if chances[1] < config.flip:
            image, label_map = image.flip(-1), label_map.flip(-1)
        applied = [chance < 0.5 for chance in chances[2:6]]  # each change half of the time
        spread = [(2 * chance - 1) * on for chance, on in zip(chances[6:10], applied, strict=True)]
        image = distorted(
            image,
            brightness=config.brightness * spread[0],
            contrast=1 + config.contrast * spread[1],
            saturation=1 + config.saturation * spread[2],
            hue=config.hue * spread[3],
            contrast_last=chances[10] < 0.5,
        )
        return _padded(image, label_map, self.size, self._colour)


def resized(image: Tensor, size: Size) -> Tensor:
    """Resize (3, H, W) or (B, 3, H, W) uint8 bilinearly, without antialiasing, as published.

    On the CPU in integers, elsewhere in floating point; results may differ by one level.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    images = image if image.ndim == 4 else image[None]
    integer = image.device.type == "cpu"
    images = functional.interpolate(images if integer else images.float(), size, mode="bilinear")
    images = images if integer else images.add_(0.5).to(torch.uint8)
    return images if image.ndim == 4 else images[0]


def resized_map(label_map: Tensor, size: Size) -> Tensor:
    """Resize (H, W) uint8 by nearest neighbour about pixel centres."""
    if tuple(label_map.shape) == tuple(size):
        return label_map
    return functional.interpolate(label_map[None, None], size, mode="nearest-exact")[0, 0]


def crop_box(label_map: Tensor, size: Size, max_share: float, chances: list[float]) -> Box:
    """Choose a crop of `label_map`, (H, W) uint8, that no class dominates.

    Returns the first crop with two or more classes, each with less than `max_share` of the labelled
    pixels; else the last crop. `chances` holds two numbers in [0, 1) per try. If the map is smaller
    than `size`, so is the crop.
    """
    height, width = label_map.shape
    crop_height, crop_width = min(size[0], height), min(size[1], width)
    for down, right in zip(chances[::2], chances[1::2], strict=True):
        top, left = int(down * (height - crop_height + 1)), int(right * (width - crop_width + 1))
        box = top, left, crop_height, crop_width
        if max_share >= 1:
            break
        counts = torch.bincount(_cut(label_map, box).flatten(), minlength=IGNORED + 1)[:IGNORED]
        largest, total = int(counts.max()), int(counts.sum())
        if largest < total and largest / total < max_share:
            break
    return box


def distorted(
    image: Tensor,
    *,
    brightness: float = 0.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    hue: float = 0.0,
    contrast_last: bool = False,
) -> Tensor:
    """Change the colours of (3, H, W) uint8; each result is clamped before the next change.

    `brightness` is added to each level of 255, `contrast` a factor of it; `saturation` is a factor
    in HSV, `hue` a rotation in degrees; `contrast_last` applies contrast after these two.
    """
    if (brightness, contrast, saturation, hue) == (0, 1, 1, 0):
        return image
    colours = image.to(torch.float32)
    if brightness:
        colours = colours.add_(brightness).clamp_(0, 255)
    if contrast != 1 and not contrast_last:
        colours = colours.mul_(contrast).clamp_(0, 255)
    if saturation != 1 or hue % 360:
        colours = _rotate_hue(colours, saturation, hue)
    if contrast != 1 and contrast_last:
        colours = colours.mul_(contrast).clamp_(0, 255)
    return colours.add_(0.5).to(torch.uint8)


def _rotate_hue(colours: Tensor, saturation: float, hue: float) -> Tensor:
    """Scale the saturation and rotate the hue of (3, H, W) float; the largest channel stays."""
    value, lowest = colours.amax(0), colours.amin(0)
    chroma = value - lowest
    # saturation = chroma / value, times the factor, at most 1
    new_chroma = torch.minimum(chroma * saturation, value)
    if not hue % 360:
        scale = new_chroma / chroma.clamp(min=1e-6)
        return value - scale * (value - colours)
    red, green, blue = colours
    safe = chroma.clamp(min=1e-6)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    ).add_(hue / 60)
    # Channels vary between the largest and smallest value, 120 degrees apart.
    place = torch.stack([sextant + 5, sextant + 3, sextant + 1]).remainder_(6)
    return value - new_chroma * torch.minimum(place, 4 - place).clamp_(0, 1)


def _cut(pixels: Tensor, box: Box) -> Tensor:
    top, left, height, width = box
    return pixels[..., top : top + height, left : left + width]


def _padded(image: Tensor, label_map: Tensor, size: Size, colour: Tensor) -> tuple[Tensor, Tensor]:
    """Pad on the right and below to `size`: the image with the colour, the map with 255."""
    height, width = label_map.shape
    padded_image = colour[:, None, None].repeat(1, *size)
    padded_map = label_map.new_full(size, IGNORED)
    padded_image[:, :height, :width] = image
    padded_map[:height, :width] = label_map
    return padded_image, padded_map

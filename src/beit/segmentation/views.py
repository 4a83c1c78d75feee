"""What a segmenter sees: random training crops with their label maps (FACTS 4), resized images.

The published augmentation is mmsegmentation's: resize, crop, mirror, colours, padding. Sizes and
chances here are its own. Two things differ on purpose: colours are computed in floating point and
rounded once (there after each change), and maps are resized about the centres of pixels, as the
images are (there a map resized to less lies up to half a pixel beside its image).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from beit.nn.patches import IMAGENET_MEAN
from beit.nn.segmenter import IGNORED
from beit.nn.sliding import working_size

Box = tuple[int, int, int, int]  # top, left, height, width

_CROP_TRIES = 10  # as published; the crop after them is taken as it comes


@dataclass(frozen=True)
class SegmentViewConfig:
    """Random training crops. Defaults are the published ones for ADE20K.

    Args:
        long_side: an image is resized, its proportions kept, to the largest size with the longer
            side at most this
        short_side: and the shorter side at most this
        min_ratio: both are multiplied by a random number, at least this
        max_ratio: at most this
        max_share: a crop of which one class has more than this share is drawn again, up to ten
            times; 1 takes the first
        flip: probability of a mirror image
        brightness: added to the pixels, at most so much up or down, of 255; half of the time each
        contrast: the pixels are scaled by 1 and at most so much more or less
        saturation: the saturation, likewise
        hue: the hue is turned by at most so many degrees (mmsegmentation's 18 are of 2 degrees)
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
            raise ValueError(
                "sides must satisfy 1 <= short_side <= long_side, "
                f"got short_side {self.short_side} and long_side {self.long_side}"
            )
        if not 0 < self.min_ratio <= self.max_ratio:
            raise ValueError(
                "resize ratios must satisfy 0 < min_ratio <= max_ratio, "
                f"got min_ratio {self.min_ratio} and max_ratio {self.max_ratio}"
            )
        if not 0 < self.max_share <= 1:
            raise ValueError(f"max_share is a share in (0, 1], got {self.max_share}")
        for name in ("flip", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.brightness < 0 or not 0 <= self.hue <= 180:
            raise ValueError(
                "brightness must be at least 0 and hue in [0, 180] degrees, "
                f"got brightness {self.brightness} and hue {self.hue}"
            )


class SegmentViews:
    """A random crop of an image and of its label map, alike in place."""

    def __init__(
        self,
        config: SegmentViewConfig,
        size: tuple[int, int],
        mean: tuple[float, ...] | None = None,
    ) -> None:
        """Build it.

        Args:
            size: (height, width) of the crop
            mean: colour, in [0, 1], of what lies beside an image smaller than the crop: the mean
                that the model subtracts, so that it sees the published 0 there; ImageNet's if None
        """
        if min(size) < 1:
            raise ValueError(f"size must be (height, width), each at least 1, got {tuple(size)}")
        self.config, self.size = config, size
        colour = [round(255 * level) for level in mean or IMAGENET_MEAN]
        self._colour = torch.tensor(colour, dtype=torch.uint8)

    def __call__(
        self, image: Tensor, label_map: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw a crop of `image`, (3, H, W) uint8, and `label_map`, (H, W) uint8.

        Returns: (3, H', W') uint8, (H', W') uint8, of the size; 255 in the map beside the image.
        """
        config = self.config
        count = 2 + 9 + 2 * (_CROP_TRIES + 1)  # resize and mirror, colours, crop
        chances = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
        ratio = config.min_ratio + chances[0] * (config.max_ratio - config.min_ratio)
        height, width = label_map.shape
        sides = int(config.short_side * ratio), int(config.long_side * ratio)
        resized_size = working_size((height, width), *sides)
        image, label_map = resized(image, resized_size), resized_map(label_map, resized_size)
        box = crop_box(label_map, self.size, config.max_share, chances[11:])
        image, label_map = _cut(image, box), _cut(label_map, box)
        if chances[1] < config.flip:
            image, label_map = image.flip(-1), label_map.flip(-1)
        image = self._distorted(image, chances[2:11])
        return _padded(image, label_map, self.size, self._colour)

    def _distorted(self, image: Tensor, chances: list[float]) -> Tensor:
        """Change the colours of (3, H, W) uint8: each change half of the time, as published."""
        config = self.config
        applied = [chance < 0.5 for chance in chances[:4]]
        spread = [2 * chance - 1 for chance in chances[4:8]]
        return distorted(
            image,
            brightness=config.brightness * spread[0] * applied[0],
            contrast=1 + config.contrast * spread[1] * applied[1],
            saturation=1 + config.saturation * spread[2] * applied[2],
            hue=config.hue * spread[3] * applied[3],
            contrast_last=chances[8] < 0.5,
        )


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (3, H, W) or (B, 3, H, W) uint8 bilinearly, without antialiasing, as published.

    On the CPU in integers, elsewhere in floating point: a level of a pixel may differ by one.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    images = image if image.ndim == 4 else image[None]
    if image.device.type == "cpu":
        images = functional.interpolate(images, size, mode="bilinear")
    else:
        images = functional.interpolate(images.float(), size, mode="bilinear")
        images = images.add_(0.5).to(torch.uint8)
    return images if image.ndim == 4 else images[0]


def resized_map(label_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (H, W) uint8 to the class nearest to the centre of each new pixel."""
    if tuple(label_map.shape) == tuple(size):
        return label_map
    return functional.interpolate(label_map[None, None], size, mode="nearest-exact")[0, 0]


def crop_box(
    label_map: Tensor, size: tuple[int, int], max_share: float, chances: list[float]
) -> Box:
    """Choose a crop of `label_map`, (H, W) uint8, in which no class is too large.

    `chances` has two numbers in [0, 1) a try. The first crop is taken that has two classes or
    more, of which none has `max_share` or more of the pixels that count; else the last, whatever
    it has. Where the map is smaller than `size`, so is the crop.
    """
    height, width = label_map.shape
    crop_height, crop_width = min(size[0], height), min(size[1], width)
    tries = len(chances) // 2
    for attempt in range(tries):
        top = int(chances[2 * attempt] * (height - crop_height + 1))
        left = int(chances[2 * attempt + 1] * (width - crop_width + 1))
        box = top, left, crop_height, crop_width
        if max_share >= 1 or attempt == tries - 1:
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
    """Change the colours of (3, H, W) uint8, each result cut to the range before the next change.

    Args:
        brightness: added to each level, of 255
        contrast: factor of each level
        saturation: factor of the saturation (HSV)
        hue: degrees by which it turns
        contrast_last: contrast comes after saturation and hue, not before

    Returns: (3, H, W) uint8
    """
    if (brightness, contrast, saturation, hue) == (0, 1, 1, 0):
        return image
    colours = image.to(torch.float32)
    if brightness:
        colours = colours.add_(brightness).clamp_(0, 255)
    if contrast != 1 and not contrast_last:
        colours = colours.mul_(contrast).clamp_(0, 255)
    if saturation != 1 or hue % 360:
        colours = _turned(colours, saturation, hue)
    if contrast != 1 and contrast_last:
        colours = colours.mul_(contrast).clamp_(0, 255)
    return colours.add_(0.5).to(torch.uint8)


def _turned(colours: Tensor, saturation: float, hue: float) -> Tensor:
    """Scale the saturation and turn the hue of (3, H, W) float; the largest channel stays."""
    value, lowest = colours.amax(0), colours.amin(0)
    chroma = value - lowest
    # S = chroma / value times the factor, at most 1
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
    # A channel falls from the largest to the smallest and back, 0, 120 and 240 degrees apart.
    place = torch.stack([sextant + 5, sextant + 3, sextant + 1]).remainder_(6)
    return value - new_chroma * torch.minimum(place, 4 - place).clamp_(0, 1)


def _cut(pixels: Tensor, box: Box) -> Tensor:
    top, left, height, width = box
    return pixels[..., top : top + height, left : left + width]


def _padded(
    image: Tensor, label_map: Tensor, size: tuple[int, int], colour: Tensor
) -> tuple[Tensor, Tensor]:
    """Add what lacks to `size` at the right and below: the colour, and 255."""
    height, width = label_map.shape
    if (height, width) == tuple(size):
        return image.contiguous(), label_map.contiguous()
    wide_image = colour[:, None, None].repeat(1, *size)
    wide_map = label_map.new_full(size, IGNORED)
    wide_image[:, :height, :width] = image
    wide_map[:height, :width] = label_map
    return wide_image, wide_map

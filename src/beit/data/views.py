"""Views of an image: random ones for training and the centre crop for evaluation.

Training views follow docs/reference/pretraining.md, "Augmentation".
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from beit.data.colours import draw_changes, grey_mean, recoloured
from beit.data.shrinking import Need
from beit.nn.patches import Size
from beit.nn.resample import lanczos

Box = tuple[int, int, int, int]  # top, left, height, width

CROP_RATIO = 0.875  # of ImageNet: 224 of 256 pixels
_CROP_TRIES = 10  # as published; then the largest central box of an allowed ratio is used
NUM_DRAWS = 5 + 4 * _CROP_TRIES  # random numbers of a view: flip, four of the colours, crop
_LONGEST = 32  # of an image longer than so many views, such as a line, the ends are cut off


@dataclass(frozen=True)
class ViewConfig:
    """Random training views. Defaults are those of BEiT v2's pretraining.

    Args:
        min_scale: smallest area of the crop, as a share of the image
        max_scale: largest area of the crop, as a share of the image
        min_ratio: smallest aspect ratio of the crop, width over height, relative to the view's
            aspect ratio
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

    images: Tensor  # (c, H, W) uint8
    target_images: Tensor  # (c, H', W') uint8; the same tensor if sizes are equal
    crops: list[float]  # see `Batch.crops`
    changes: list[list[float]]  # of `draw_changes`; none without jitter


class Plan(NamedTuple):
    """All that is random in the views of an image."""

    box: Box  # of the crop
    mirrored: bool
    changes: list[list[float]]  # of `draw_changes`; none without jitter


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

    @property
    def need(self) -> Need:
        """The least size of images: the smallest crop has the pixels of the larger view."""
        height, width = map(max, self.size, self.target_size)
        config, aspect = self.config, self.size[1] / self.size[0]
        tallest, widest = config.min_ratio * aspect, config.max_ratio * aspect
        area = max(height**2 * widest, width**2 / tallest) / config.min_scale
        return Need(math.ceil(area), height, width)

    def __call__(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return views (c, H', W') uint8 of (c, H, W) uint8; the same tensor if sizes are equal."""
        sample = self.sample(image, generator)
        changes = torch.tensor([sample.changes])
        view = recoloured(sample.images[None], changes)[0]
        if self.size == self.target_size:
            return view, view
        return view, recoloured(sample.target_images[None], changes)[0]

    def sample(self, image: Tensor, generator: torch.Generator) -> Sample:
        """Return the views of (c, H, W) uint8, their crop and the changes of their colours."""
        channels, height, width = image.shape
        if channels != 3 and self.config.color_jitter > 0:
            raise ValueError(
                f"color_jitter is {self.config.color_jitter:g}, which changes red, green and blue, "
                f"but images have {channels} channels; give 0"
            )
        draws = torch.rand(NUM_DRAWS, generator=generator, dtype=torch.float64).tolist()
        mean = float(grey_mean(image)) if self.config.color_jitter > 0 else 0.0
        box, mirrored, changes = self.plan(height, width, draws, mean)
        top, left, box_height, box_width = box
        crop = image[None, :, top : top + box_height, left : left + box_width]
        if mirrored:
            crop = crop.flip(-1)
        crop = crop.contiguous(memory_format=torch.channels_last)
        view = target = resized(crop, self.size)[0]
        if self.size != self.target_size:
            target = (lanczos if self.by_lanczos else resized)(crop, self.target_size)[0]
        shares = [top / height, left / width, box_height / height, box_width / width, mirrored]
        return Sample(view, target, shares, changes)

    def plan(self, height: int, width: int, draws: list[float], grey_mean: float) -> Plan:
        """Return the crop of an image and the changes of its colours.

        Args:
            draws: `NUM_DRAWS` random numbers in [0, 1)
            grey_mean: mean luma of the image, for jitter
        """
        config, aspect = self.config, self.size[1] / self.size[0]
        box, changes = crop_box(height, width, config, draws[5:], aspect), list[list[float]]()
        if config.color_jitter > 0:
            changes = draw_changes(config.color_jitter, draws[1:5], grey_mean)
        return Plan(box, draws[0] < config.flip, changes)


class EvalView:
    """Centre crop: resize the shorter side to `size / crop_ratio`, then crop."""

    def __init__(
        self, size: Size, crop_ratio: float = CROP_RATIO, by_lanczos: bool = False
    ) -> None:
        if not 0 < crop_ratio <= 1:
            raise ValueError(f"crop_ratio must be in (0, 1], got {crop_ratio}")
        self.size, self.crop_ratio = _checked_size("size", size), crop_ratio
        self.by_lanczos = by_lanczos

    @property
    def need(self) -> Need:
        """The least size of images: that of `scaled`."""
        height, width = (int(side / self.crop_ratio) for side in self.size)
        return Need(height * width, height, width)

    def __call__(self, image: Tensor) -> Tensor:
        """Return the view (c, H', W') uint8 of an image (c, H, W) uint8."""
        image, (height, width) = self.scaled(image), self.size
        top, left = round((image.shape[-2] - height) / 2), round((image.shape[-1] - width) / 2)
        return image[:, top : top + height, left : left + width].contiguous()

    def scaled(self, image: Tensor) -> Tensor:
        """Resize `image`, (c, H, W) uint8, to `size / crop_ratio` or larger, without the crop.

        If it is more than 32 times longer than the view's shape, its middle is taken.
        """
        _, least_height, least_width = self.need
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
        return (lanczos if self.by_lanczos else resized)(image[None], size)[0]


class EvalViews:
    """Two centre crops that differ in size only, as `TrainViews`: for the model and its target."""

    def __init__(
        self,
        size: Size,
        target_size: Size,
        crop_ratio: float = CROP_RATIO,
        by_lanczos: bool = False,
    ) -> None:
        by_lanczos = by_lanczos and tuple(size) != tuple(target_size)
        self.both = EvalView(size, crop_ratio), EvalView(target_size, crop_ratio, by_lanczos)

    @property
    def need(self) -> Need:
        """The least size of images: that of the larger crop."""
        return Need(*map(max, zip(*(view.need for view in self.both), strict=True)))

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return views (c, H', W') uint8 of (c, H, W) uint8; the same tensor if sizes are equal."""
        view, target = self.both
        pixels = view(image)
        return pixels, pixels if view.size == target.size else target(image)


def crop_box(
    height: int, width: int, config: ViewConfig, draws: list[float], aspect: float = 1.0
) -> Box:
    """Return the box of a random resized crop from random numbers in [0, 1), four per attempt.

    Its ratios are relative to `aspect`, width over height of the view, so that shapes keep theirs
    on average.
    """
    min_ratio, max_ratio = config.min_ratio * aspect, config.max_ratio * aspect
    log_ratios = (math.log(min_ratio), math.log(max_ratio))
    for attempt in range(len(draws) // 4):
        scale_draw, ratio_draw, top_draw, left_draw = draws[4 * attempt : 4 * attempt + 4]
        scale = config.min_scale + scale_draw * (config.max_scale - config.min_scale)
        area = scale * height * width
        ratio = math.exp(log_ratios[0] + ratio_draw * (log_ratios[1] - log_ratios[0]))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(top_draw * (height - box_height + 1))
            left = int(left_draw * (width - box_width + 1))
            return top, left, box_height, box_width
    if width < min_ratio * height:
        box_height, box_width = max(1, round(width / min_ratio)), width
    elif width > max_ratio * height:
        box_height, box_width = height, max(1, round(height * max_ratio))
    else:
        box_height, box_width = height, width
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resized(images: Tensor, size: Size) -> Tensor:
    """Resize (B, c, H, W) uint8 by antialiased bicubic interpolation.

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

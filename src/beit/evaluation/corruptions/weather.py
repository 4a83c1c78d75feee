"""Weather of ImageNet-C (Hendrycks & Dietterich 2019): snow, frost, fog, brightness.

Frost is not the published one: see `frost`. The module `noise` describes the arguments of the
functions and `PARAMETERS`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from beit.evaluation.corruptions.blur import motion_blurred, truncated, zoomed
from beit.evaluation.corruptions.noise import Generators, Parameters, normals, uniforms
from beit.nn.patches import LUMA

PARAMETERS: dict[str, Parameters] = {
    "snow": {  # mean, deviation, zoom, threshold, radius, sigma, share of the image
        224: [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
        32: [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
    },
    "frost": {  # weight of the image, of the frost
        224: [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
        32: [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    },
    "fog": {  # thickness, decay
        224: [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
        32: [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    },
    "brightness": {  # added to the value
        224: [(0.1,), (0.2,), (0.3,), (0.4,), (0.5,)],
        32: [(0.05,), (0.1,), (0.15,), (0.2,), (0.3,)],
    },
}

_FROST_TINT = (0.86, 0.94, 1.0)  # our choice: a bluish white


def snow(
    images: Tensor,
    generators: Generators,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    share: float,
) -> Tensor:
    """Whiten the images and add flakes: enlarged bright noise, blurred downwards."""
    flakes = normals(generators, (1, *images.shape[-2:])).mul_(deviation).add_(mean)
    angles = -135 + 90 * uniforms(generators, (1,)).squeeze(1).double()
    flakes = zoomed(flakes, zoom)
    flakes = truncated(functional.threshold(flakes, threshold, 0).mul_(255))
    flakes = motion_blurred(flakes, radius, sigma, angles)
    red, green, blue = images.split(1, dim=1)
    grey = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    white = torch.maximum(images, grey.mul_(1.5).add_(0.5 * 255))
    white.mul_(1 - share).add_(images, alpha=share)
    return white.add_(flakes.rot90(2, (-2, -1)).add_(flakes))


def frost(images: Tensor, generators: Generators, weight: float, frost_weight: float) -> Tensor:
    """Blend in a drawn frost texture with the published weights.

    The published frost is cropped from six photographs of icy windows, which this package lacks.
    Ours is two plasma fractals per image, bright veins on a cloudy ground. Its scores cannot be
    compared with published ImageNet-C frost.
    """
    ice = frost_texture(generators, images.shape[-2:])
    return images.mul_(weight).add_(ice, alpha=frost_weight)


def frost_texture(generators: Generators, size: tuple[int, int] | torch.Size) -> Tensor:
    """Draw ice. Returns: (B, 3, H, W) in 0..255."""
    ground, veins = (_plasma_of(generators, size, decay) for decay in (2.0, 1.6))
    veins = 1 - (2 * veins - 1).abs()  # 1 where the fractal is 0.5
    ice = (0.2 + 0.35 * ground).add_(veins.square_().square_(), alpha=0.45)
    return ice.unsqueeze(1) * (255 * torch.tensor(_FROST_TINT).view(3, 1, 1))


def fog(images: Tensor, generators: Generators, thickness: float, decay: float) -> Tensor:
    """Add a plasma fractal, and rescale to the brightest value of the image."""
    clouds = _plasma_of(generators, images.shape[-2:], decay).unsqueeze(1)
    brightest = images.amax((1, 2, 3), keepdim=True)
    images.add_(clouds, alpha=255 * thickness)
    return images.mul_(brightest / (brightest + 255 * thickness))


def brightness(images: Tensor, generators: Generators, amount: float) -> Tensor:
    """Raise HSV's value by `amount` · 255, up to 255; hue and saturation stay, black turns grey."""
    value = images.amax(1, keepdim=True)
    raised = (value + 255 * amount).clamp_(max=255)
    return torch.where(value > 0, images * (raised / value.clamp(min=1)), raised)


def _plasma_of(generators: Generators, size: tuple[int, int] | torch.Size, decay: float) -> Tensor:
    """Crop a plasma fractal of the next power of two (256 for 224, 32 for 32) to `size`."""
    height, width = size
    side = 1 << (max(height, width) - 1).bit_length()
    return plasma(uniforms(generators, (side * side,)), decay)[:, :height, :width]


def plasma(chances: Tensor, decay: float) -> Tensor:
    """Draw height maps (B, S, S), each from 0 to 1, by the diamond-square algorithm on a torus.

    chances: (B, S·S) in [0, 1), S a power of two; decay: of the noise from one level to the next.
    """
    B, count = chances.shape
    side = round(count**0.5)
    noise = 2 * chances - 1
    heights = chances.new_zeros(B, side, side)
    step, wibble, used = side, 100.0, 0
    while step >= 2:
        half, n = step // 2, side // step
        levels = noise[:, used : used + 3 * n * n].view(B, 3, n, n) * wibble**2
        used += 3 * n * n
        corners = heights[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        centres = (pairs + pairs.roll(-1, 2)) / 4 + levels[:, 0]
        along = centres + centres.roll(1, 1) + (corners + corners.roll(-1, 2))
        down = centres + centres.roll(1, 2) + (corners + corners.roll(-1, 1))
        heights[:, half::step, half::step] = centres
        heights[:, ::step, half::step] = along / 4 + levels[:, 1]
        heights[:, half::step, ::step] = down / 4 + levels[:, 2]
        step, wibble = half, wibble / decay
    heights -= heights.amin((1, 2), keepdim=True)
    return heights / heights.amax((1, 2), keepdim=True)

"""Digital corruptions of ImageNet-C (Hendrycks & Dietterich 2019): contrast, elastic, pixels, JPEG.

The module `noise` describes the arguments of the functions and `PARAMETERS`.
"""

import io
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from beit.evaluation.corruptions.blur import gaussian
from beit.evaluation.corruptions.noise import Generators, Parameters, uniforms

PARAMETERS: dict[str, Parameters] = {
    "contrast": {
        224: [(0.4,), (0.3,), (0.2,), (0.1,), (0.05,)],
        32: [(0.75,), (0.5,), (0.4,), (0.3,), (0.15,)],
    },
    "elastic_transform": {  # pixels: displacement, sigma of its blur, shift of the corners
        # The published code has 244 and says that 224 was meant.
        224: [
            (244 * 2, 244 * 0.7, 244 * 0.1),
            (244 * 2, 244 * 0.08, 244 * 0.2),
            (244 * 0.05, 244 * 0.01, 244 * 0.02),
            (244 * 0.07, 244 * 0.01, 244 * 0.02),
            (244 * 0.12, 244 * 0.01, 244 * 0.02),
        ],
        32: [
            (0, 0, 32 * 0.08),
            (32 * 0.05, 32 * 0.2, 32 * 0.07),
            (32 * 0.08, 32 * 0.06, 32 * 0.06),
            (32 * 0.1, 32 * 0.04, 32 * 0.05),
            (32 * 0.1, 32 * 0.03, 32 * 0.03),
        ],
    },
    "pixelate": {  # share of the side that remains
        224: [(0.6,), (0.5,), (0.4,), (0.3,), (0.25,)],
        32: [(0.95,), (0.9,), (0.85,), (0.75,), (0.65,)],
    },
    "jpeg_compression": {  # quality
        224: [(25,), (18,), (15,), (10,), (7,)],
        32: [(80,), (65,), (58,), (50,), (40,)],
    },
}


def contrast(images: Tensor, generators: Generators, factor: float) -> Tensor:
    """Move the values towards the mean of their channel."""
    height, width = images.shape[-2:]
    sums = images.to(torch.int32).sum((-2, -1), keepdim=True)  # int64, exact in any order
    means = (sums.double() / (height * width)).to(images.dtype)
    return images.mul_(factor).add_(means * (1 - factor))


def elastic_transform(
    images: Tensor, generators: Generators, reach: float, sigma: float, shift: float
) -> Tensor:
    """Move three points by up to `shift`, then every pixel by a smooth random displacement."""
    B, _, height, width = images.shape
    shifts = (2 * uniforms(generators, (3, 2)).double() - 1) * shift
    noise = uniforms(generators, (2, height, width)).mul_(2).sub_(1)
    columns, rows = (torch.arange(side, dtype=torch.float64) for side in (width, height))
    # The affine map takes `points` to `moved`; each pixel needs its inverse.
    middle, side = torch.tensor([width // 2, height // 2]), min(height, width) // 3
    points = (middle + side * torch.tensor([[1, 1], [1, -1], [-1, -1]])).double()
    moved = torch.cat([points + shifts, torch.ones(B, 3, 1, dtype=torch.float64)], 2)
    back = torch.linalg.solve(moved, points.expand(B, 3, 2))  # (B, 3, 2)
    places = images.new_empty((B, height, width, 2))
    for axis, side in enumerate((width, height)):
        across, down, start = back[:, :, axis, None].unbind(1)  # (B, 1)
        # grid_sample's -1 and 1 are here the centres of the first and the last pixel.
        by_column = (across * columns + start) * (2 / (side - 1)) - 1
        by_row = down * rows * (2 / (side - 1))
        torch.add(by_column.float()[:, None], by_row.float()[:, :, None], out=places[..., axis])
    # Mirrored about the centres of the border pixels: c b | a b c.
    images = functional.grid_sample(images, places, padding_mode="reflection", align_corners=True)
    if reach == 0:
        return images
    down, across = _reflecting_gaussian(height, sigma), _reflecting_gaussian(width, sigma).T
    # One image at a time: the order of summation may depend on the batch size.
    smooth = torch.stack([down @ pair @ across for pair in noise])
    by_column, by_row = ((2 * line + 1) / len(line) - 1 for line in (columns, rows))
    torch.add(by_column.float(), smooth[:, 0], alpha=2 * reach / width, out=places[..., 0])
    torch.add(by_row.float()[:, None], smooth[:, 1], alpha=2 * reach / height, out=places[..., 1])
    # Mirrored about the outer edges: b a | a b c.
    return functional.grid_sample(images, places, padding_mode="reflection", align_corners=False)


@lru_cache(maxsize=2)  # height, width
def _reflecting_gaussian(side: int, sigma: float) -> Tensor:
    """Return a Gaussian filter matrix, cut off at 3 sigma, mirrored outside: (side, side)."""
    half = int(3 * sigma + 0.5)
    mirrored = np.pad(np.arange(side), half, mode="symmetric")
    matrix = np.zeros((side, side))
    for row in range(side):
        np.add.at(matrix[row], mirrored[row : row + 2 * half + 1], gaussian(sigma, half))
    return torch.from_numpy(matrix).float()


def pixelate(images: Tensor, generators: Generators, share: float) -> Tensor:
    """Shrink and enlarge with a box filter, bit-identical to Pillow's resize."""
    height, width = images.shape[-2:]
    down, across = (_box_means(side, int(side * share)) for side in (height, width))
    # Rounded after the columns and after the rows, like Pillow. Runs have 1 to 5 pixels. Only runs
    # of 2 and 4 give halves, and their means are exact, so the order of summation does not matter.
    pixels = torch.matmul(images, across.T).add_(0.5).floor_()
    pixels = torch.matmul(down, pixels).add_(0.5).floor_()
    for axis, large, small in ((-2, height, len(down)), (-1, width, len(across))):
        places = ((np.arange(large) + 0.5) * (small / large)).astype(np.int64)
        pixels = pixels.index_select(axis, torch.from_numpy(places))
    return pixels


@lru_cache(maxsize=2)  # height, width
def _box_means(large: int, small: int) -> Tensor:
    """Return the matrix of means over the runs of pixels that Pillow averages: (small, large)."""
    scale = large / small
    centres = (np.arange(small)[:, None] + 0.5) * scale
    offsets = (np.arange(large) - centres + 0.5) / scale
    taken = (offsets > -0.5) & (offsets <= 0.5)
    return torch.from_numpy((taken / taken.sum(1, keepdims=True)).astype(np.float32))


def jpeg_compression(images: Tensor, generators: Generators, quality: int) -> Tensor:
    """Write and read JPEG with Pillow, as published."""
    pixels = images.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()  # (B, H, W, 3)
    read = []
    for picture in pixels:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        with Image.open(file, formats=["JPEG"]) as compressed:
            read.append(np.asarray(compressed))
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).to(images.dtype)

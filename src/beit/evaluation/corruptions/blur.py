"""Blur of ImageNet-C (Hendrycks & Dietterich 2019): defocus, frosted glass, motion, zoom; filters.

The module `noise` describes the arguments of the functions and `PARAMETERS`. Filters take images
(B, C, H, W) float in 0..255 and sum shifted images elementwise, so the result for an image does not
depend on its batch.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from beit.evaluation.corruptions.noise import Generators, Parameters, uniforms

Kernel = npt.NDArray[np.float64]

_MAX_SHIFTS = 40  # above this, Fourier transforms are faster than sums of shifted images

PARAMETERS: dict[str, Parameters] = {
    "defocus_blur": {  # radius of the disk, sigma of its edge
        224: [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
        32: [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    },
    "glass_blur": {  # sigma, reach, rounds
        224: [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
        32: [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    },
    "motion_blur": {  # radius, sigma
        224: [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
        32: [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    },
    "zoom_blur": {  # end and step of the zoom factors, as numpy.arange takes them
        224: [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
        32: [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
    },
}


def defocus_blur(images: Tensor, generators: Generators, radius: float, sigma: float) -> Tensor:
    """Filter with a disk with softened edges; the image border is mirrored."""
    kernel = disk(radius, sigma)
    used = np.flatnonzero(kernel.any(0))
    return filtered(images, kernel[used[0] : used[-1] + 1, used[0] : used[-1] + 1])


def glass_blur(
    images: Tensor, generators: Generators, sigma: float, reach: int, rounds: int
) -> Tensor:
    """Blur, replace each pixel with one at most `reach` away (`rounds` times), and blur again.

    The published loop is meant to swap a pixel with its neighbour, but both sides are views of one
    array, so it copies the neighbour. The published data come from that copy, and so do ours.
    """
    height, width = images.shape[-2:]
    blurred = truncated(gaussian_blurred(images.transpose(0, 1).contiguous(), sigma))
    source = torch.arange(len(images) * height * width)
    for _ in range(rounds):
        size = (2, height, width)  # columns, rows
        moves = [torch.randint(-reach, reach, size, generator=each) for each in generators]
        source = source.index_select(0, _sources_of(torch.stack(moves), reach))
    moved = blurred.flatten(1).index_select(1, source).view_as(blurred)
    return gaussian_blurred(moved, sigma).transpose(0, 1)


def _sources_of(moves: Tensor, reach: int) -> Tensor:
    """Return the flat index of the pixel whose value each pixel has after one round: (B · H · W,).

    moves: (B, 2, H, W) int64, columns and rows.
    """
    B, _, height, width = moves.shape
    own = torch.arange(B * height * width)
    neighbours = own.clone()
    inner = slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1)
    columns, rows = moves[:, :, *inner].unbind(1)
    neighbours.view(B, height, width)[:, *inner] += rows * width + columns
    # The published loop runs from the last pixel to the first. A neighbour with a larger index
    # already has the value of its own neighbour, and so on, down to one with a smaller index.
    source = neighbours.clone()
    pending = (source > own).nonzero().squeeze(1)
    while len(pending):
        current = source.index_select(0, pending)
        following = neighbours.index_select(0, current)
        source.index_copy_(0, pending, following)
        pending = pending[following > current]
    return source


def motion_blur(images: Tensor, generators: Generators, radius: float, sigma: float) -> Tensor:
    """Blur along a line at -45 to 45 degrees."""
    angles = -45 + 90 * uniforms(generators, (1,)).squeeze(1).double()
    return motion_blurred(images, radius, sigma, angles)


def motion_blurred(images: Tensor, radius: float, sigma: float, angles: Tensor) -> Tensor:
    """Blur (B, C, H, W) like ImageMagick's MotionBlurImage, truncated to whole numbers.

    One half of a Gaussian with 2 · radius + 1 weights, at whole pixels along the direction of
    `angles`, (B,) degrees; the border is repeated outside. ImageMagick rounds to 16 bits, 257 per
    level, and truncates that to 8 bits.
    """
    height, width = images.shape[-2:]
    length = 2 * math.ceil(radius) + 1
    weights = np.exp(-(np.arange(length) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    angles, order = angles.sort()  # similar angles share most shifts
    lines = np.arange(length)[:, None] * np.exp(1j * np.deg2rad(angles.numpy()))
    columns = np.ceil(lines.real - 0.5).astype(int)  # (length, B)
    rows = np.ceil(lines.imag - 0.5).astype(int)
    left, top = max(0, -columns.min()), max(0, -rows.min())
    margins = [left, max(0, columns.max()), top, max(0, rows.max())]
    padded = functional.pad(images[order], [int(margin) for margin in margins], mode="replicate")
    total = torch.zeros_like(images)
    for weight, row, column in zip(weights.tolist(), rows + top, columns + left, strict=True):
        changes = np.flatnonzero(np.diff(row) | np.diff(column)) + 1
        for first, end in zip([0, *changes], [*changes, len(order)], strict=True):
            y, x = row[first], column[first]
            shifted = padded[first:end, :, y : y + height, x : x + width]
            total[first:end].add_(shifted, alpha=weight)
    blurred = torch.empty_like(total)
    blurred[order] = total.add_(0.5 / 257).floor_()
    return blurred


def zoom_blur(images: Tensor, generators: Generators, end: float, step: float) -> Tensor:
    """Average the images with their enlargements by 1, 1 + step, ... (before `end`)."""
    pixels = images.flatten(2).flatten(0, 1).t().contiguous()  # (H·W, B·3)
    places, weights, starts = _zoom_taps(*images.shape[-2:], end, step)
    mixed = functional.embedding_bag(places, pixels, starts, mode="sum", per_sample_weights=weights)
    return mixed.t().reshape(images.shape)


@lru_cache(maxsize=1)
def _zoom_taps(height: int, width: int, end: float, step: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels that each pixel of `zoom_blur` averages: four per factor, and itself.

    Cached, because it takes a quarter of a second at 224 pixels. Returns: indices and weights of
    all taps, (T,) int32 and float32; the position of each pixel's first tap, (H·W,) int32.
    """
    factors, across = np.arange(1, end, step).tolist(), np.arange(width)
    lines = [[_zoom_places(side, factor) for factor in factors] for side in (height, width)]
    (upper, down), (left, right) = (map(np.stack, zip(*line, strict=True)) for line in lines)
    columns = np.stack([left, left + 1])  # (2, factors, W)
    column_shares = np.stack([1 - right, right])
    places, weights, counts = [], [], []
    for row in range(height):
        rows = np.stack([upper[:, row], upper[:, row] + 1])[:, None, :, None]
        row_shares = np.stack([1 - down[:, row], down[:, row]])[:, None, :, None]
        taps = across * height * width + rows * width + columns  # (2, 2, factors, W)
        own = across * height * width + row * width + across
        of_all = np.concatenate([taps.ravel(), own])
        shares = np.concatenate([(row_shares * column_shares).ravel(), np.ones(width)])
        distinct, which = np.unique(of_all, return_inverse=True)
        sums = np.bincount(which, shares) / (len(factors) + 1)
        used = sums > 1e-12
        places.append(distinct[used] % (height * width))
        weights.append(sums[used])
        counts.append(np.bincount(distinct[used] // (height * width), minlength=width))
    starts = np.concatenate(counts).cumsum() - np.concatenate(counts)
    return (
        torch.from_numpy(np.concatenate(places).astype(np.int32)),
        torch.from_numpy(np.concatenate(weights).astype(np.float32)),
        torch.from_numpy(starts.astype(np.int32)),
    )


def zoomed(images: Tensor, factor: float) -> Tensor:
    """Enlarge the centre of (B, C, H, W) to full size: bilinear, corners aligned."""
    for axis in (-2, -1):
        below, share = map(torch.from_numpy, _zoom_places(images.shape[axis], factor))
        share = share.to(images.dtype)[:, None] if axis == -2 else share.to(images.dtype)
        lower, upper = (images.index_select(axis, below + i) for i in (0, 1))
        images = lower.lerp_(upper, share)
    return images


def _zoom_places(side: int, factor: float) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return, for each pixel of an enlarged line, the pixel below it and the weight of the next."""
    box = math.ceil(side / factor)
    large = round(box * factor)
    places = (np.arange(side) + (large - side) // 2) * ((box - 1) / (large - 1))
    below = np.minimum(places.astype(np.int64), box - 2)
    return (side - box) // 2 + below, places - below


# ── filters ───────────────────────────────────────────────────────────────────────────────────────


def disk(radius: float, sigma: float) -> Kernel:
    """Return the published (n, n) kernel: a disk of sum 1, blurred over 3 × 3 (5 × 5 above 8).

    n is 17 up to radius 8. The blur mirrors at the border of the array, which disks of radius 8 and
    10 touch; their sum exceeds 1 by up to 2 %, as published.
    """
    reach = 8 if radius <= 8 else int(radius)
    places = np.arange(-reach, reach + 1)
    kernel: Kernel = (places[:, None] ** 2 + places**2 <= radius**2).astype(np.float64)
    kernel /= kernel.sum()
    half = 1 if radius <= 8 else 2
    weights = gaussian(sigma, half)
    for _ in range(2):  # columns, rows
        padded = np.pad(kernel, ((half, half), (0, 0)), mode="reflect")
        shifts = [weight * padded[i : i + len(kernel)] for i, weight in enumerate(weights)]
        kernel = np.sum(shifts, axis=0).T
    return kernel


def filtered(images: Tensor, kernel: Kernel) -> Tensor:
    """Filter images with a symmetric kernel, (n, n), n odd; the border is mirrored."""
    kernel = np.where(kernel > 1e-12, kernel, 0)  # smaller weights vanish in float32
    if np.count_nonzero(kernel) > _MAX_SHIFTS:
        return _by_fourier(images, kernel)
    padded = functional.pad(images, [len(kernel) // 2] * 4, mode="reflect")
    return _shifted_sum(padded, kernel)


def _by_fourier(images: Tensor, kernel: Kernel) -> Tensor:
    # In float64: rounding that depends on the batch is far below one level.
    from scipy.fft import next_fast_len  # slow to import

    height, width = images.shape[-2:]
    last = len(kernel) - 1
    sides = [next_fast_len(side + last, real=True) for side in (height, width)]
    half = last // 2
    margins = [half, sides[1] - width - half, half, sides[0] - height - half]
    spectrum = torch.fft.rfft2(torch.from_numpy(kernel), s=sides)
    result = torch.empty_like(images)
    for image, into in zip(images, result, strict=True):  # one at a time fits the CPU cache
        padded = functional.pad(image[None], margins, mode="reflect").double()
        sums = torch.fft.irfft2(torch.fft.rfft2(padded[0]).mul_(spectrum), s=sides)
        into.copy_(sums[:, last : last + height, last : last + width])
    return result


def gaussian_blurred(images: Tensor, sigma: float) -> Tensor:
    """Filter with a Gaussian, cut off at 4 sigma; the border is repeated outside."""
    half = int(4 * sigma + 0.5)
    if half == 0:
        return images
    weights = gaussian(sigma, half)
    padded = functional.pad(images, [half] * 4, mode="replicate")
    return _shifted_sum(_shifted_sum(padded, weights[:, None]), weights[None])


def _shifted_sum(padded: Tensor, kernel: Kernel) -> Tensor:
    """Sum the shifts of images by the kernel's weights, without its size - 1 at the border."""
    height, width = (side + 1 - n for side, n in zip(padded.shape[-2:], kernel.shape, strict=True))
    total = padded.new_zeros((*padded.shape[:-2], height, width))
    for row, column in np.argwhere(kernel).tolist():
        shifted = padded[..., row : row + height, column : column + width]
        total.add_(shifted, alpha=float(kernel[row, column]))
    return total


def truncated(values: Tensor) -> Tensor:
    """Truncate values to integers in 0..255 in place, like a cast to uint8; the dtype stays.

    0.0001 is added first, so that float32 rounding does not cost a whole number one level.
    """
    return values.clamp_(0, 255).add_(1e-4).floor_()


def gaussian(sigma: float, half: int) -> Kernel:
    """Return the 2 · half + 1 weights, of sum 1, of a Gaussian."""
    weights = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    return np.asarray(weights / weights.sum())

"""Filters of the corruptions (disk, symmetric kernel, Gaussian), and truncation to levels.

Images are (B, C, H, W) float in 0..255. Shifted images are summed elementwise, so the result for an
image does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Tap = tuple[int, int, float]  # row, column, weight
Kernel = npt.NDArray[np.float64]

_MAX_SHIFTS = 40  # above this, Fourier transforms are faster than sums of shifted images


def disk(radius: float, sigma: float) -> Kernel:
    """Return the published kernel: a disk of sum 1, blurred over 3 × 3 (5 × 5 above radius 8).

    The blur mirrors at the border of the array, which disks of radius 8 and 10 touch. Their sum
    exceeds 1 by up to 2 %, as published.

    Returns: (n, n) float64, n = 17 up to radius 8
    """
    reach = 8 if radius <= 8 else int(radius)
    places = np.arange(-reach, reach + 1)
    kernel: Kernel = (places[:, None] ** 2 + places**2 <= radius**2).astype(np.float64)
    kernel /= kernel.sum()
    half = 1 if radius <= 8 else 2
    weights = _gaussian(sigma, half)
    for _ in range(2):  # columns, rows
        padded = np.pad(kernel, ((half, half), (0, 0)), mode="reflect")
        shifts = [weight * padded[i : i + len(kernel)] for i, weight in enumerate(weights)]
        kernel = np.sum(shifts, axis=0).T
    return kernel


def filtered(images: Tensor, kernel: Kernel) -> Tensor:
    """Filter images with a symmetric kernel, (n, n), n odd; the border is mirrored."""
    places = np.argwhere(kernel > 1e-12)  # smaller weights vanish in float32
    if len(places) > _MAX_SHIFTS:
        return _by_fourier(images, kernel)
    taps = [(int(row), int(column), float(kernel[row, column])) for row, column in places]
    padded = functional.pad(images, [len(kernel) // 2] * 4, mode="reflect")
    return weighted_shifts(padded, taps, images.shape[-2:])


def _by_fourier(images: Tensor, kernel: Kernel) -> Tensor:
    # In float64: rounding that depends on the batch is far below one level.
    height, width = images.shape[-2:]
    last = len(kernel) - 1
    sides = _fast_size(height + last), _fast_size(width + last)
    left, top = last // 2, last // 2
    margins = [left, sides[1] - width - left, top, sides[0] - height - top]
    spectrum = torch.fft.rfft2(torch.from_numpy(kernel), s=sides)
    result = torch.empty_like(images)
    for image, into in zip(images, result, strict=True):  # one at a time fits the CPU cache
        padded = functional.pad(image[None], margins, mode="reflect").double()
        sums = torch.fft.irfft2(torch.fft.rfft2(padded[0]).mul_(spectrum), s=sides)
        into.copy_(sums[:, last : last + height, last : last + width])
    return result


def _fast_size(least: int) -> int:
    """Return the next size without prime factors above 5, for which Fourier transforms are fast."""
    side = least
    while True:
        rest = side
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return side
        side += 1


def gaussian_blurred(images: Tensor, sigma: float) -> Tensor:
    """Filter with a Gaussian, cut off at 4 sigma; the border is repeated outside."""
    half = int(4 * sigma + 0.5)
    if half == 0:
        return images
    weights = _gaussian(sigma, half).tolist()
    padded = functional.pad(images, [half] * 4, mode="replicate")
    height, width = images.shape[-2:]
    taps = [(i, 0, weight) for i, weight in enumerate(weights)]
    padded = weighted_shifts(padded, taps, (height, width + 2 * half))
    return weighted_shifts(
        padded, [(0, i, weight) for i, weight in enumerate(weights)], images.shape[-2:]
    )


def weighted_shifts(padded: Tensor, taps: Sequence[Tap], size: Sequence[int]) -> Tensor:
    """Sum weight · padded[..., row :, column :] over `taps`. Returns: (B, C, *size)."""
    height, width = size
    total = padded.new_zeros((*padded.shape[:-2], height, width))
    for row, column, weight in taps:
        total.add_(padded[..., row : row + height, column : column + width], alpha=weight)
    return total


def truncated(values: Tensor) -> Tensor:
    """Truncate values to integers in 0..255 in place, like a cast to uint8; the dtype stays.

    0.0001 is added first, so that float32 rounding does not cost a whole number one level.
    """
    return values.clamp_(0, 255).add_(1e-4).floor_()


def _gaussian(sigma: float, half: int) -> Kernel:
    """Return 2 · half + 1 weights of sum 1."""
    weights = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    return np.asarray(weights / weights.sum())

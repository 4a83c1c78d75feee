"""Lanczos resampling of images as Pillow computes it, for tokenizers that were trained on it."""

import torch
from torch import Tensor

LOBES = 3  # of the kernel, on either side
UNIT = 1 << 22  # a weight is a whole number of its parts, as Pillow rounds them for 8-bit images


def lanczos(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images (..., H, W) uint8 to (..., H', W') uint8, antialiased.

    The very numbers of Pillow's LANCZOS, along rows and then along columns (recent versions begin
    with the columns where that is less work, and can differ by rounding). All sums are of whole
    numbers below 2 ** 53 and exact in float64, whatever the threads; on MPS, which has none, not.

    Raises:
        ValueError: the images are not uint8.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}, expected uint8")
    H, W = images.shape[-2:]
    wide = images if W == size[1] else _along_rows(images, size[1])
    if H == size[0]:
        return wide
    return _along_rows(wide.transpose(-1, -2), size[0]).transpose(-1, -2).contiguous()


def _along_rows(images: Tensor, width: int) -> Tensor:
    """Resize the last dimension of images (..., W) uint8."""
    dtype = torch.float32 if images.device.type == "mps" else torch.float64
    weights = _weights(images.shape[-1], width).to(images.device, dtype)  # (W', W)
    sums = images.to(dtype) @ weights.T
    return ((sums + UNIT // 2) / UNIT).floor().clamp(0, 255).to(torch.uint8)


def _weights(old: int, new: int) -> Tensor:
    """Return what each of `old` pixels adds to each of `new` ones, times UNIT, (new, old)."""
    scale = old / new
    stretch = max(scale, 1.0)
    pixels = torch.arange(old, dtype=torch.float64)
    centres = ((torch.arange(new, dtype=torch.float64) + 0.5) * scale)[:, None]
    reach = LOBES * stretch
    first, last = (centres - reach + 0.5).trunc(), (centres + reach + 0.5).trunc()
    x = (pixels - centres + 0.5) / stretch  # (new, old)
    kernel = torch.sinc(x) * torch.sinc(x / LOBES)
    kernel = kernel * ((pixels >= first) & (pixels < last) & (x.abs() <= LOBES))
    weights = kernel / kernel.sum(dim=1, keepdim=True) * UNIT
    return (weights + 0.5 * weights.sign()).trunc()

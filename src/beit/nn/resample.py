"""Lanczos resampling that equals Pillow's, for tokenizers trained with it."""

import torch
from torch import Tensor

LOBES = 3  # lobes of the kernel on each side
UNIT = 1 << 22  # weights are multiples of 1 / UNIT, as Pillow rounds them for 8-bit images


def lanczos(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images (..., H, W) uint8 to (..., H', W') uint8, antialiased.

    Bit-identical to Pillow's LANCZOS along rows, then along columns. (Recent versions of Pillow
    start with the columns if that is less work, and can differ by rounding.) All sums are of
    integers below 2 ** 53, hence exact in float64 for any number of threads; MPS has no float64,
    so results can differ there.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}, expected uint8")
    H, W = images.shape[-2:]
    if W != size[1]:
        images = _along_rows(images, size[1])  # (..., H, W')
    if H == size[0]:
        return images
    return _along_rows(images.transpose(-1, -2), size[0]).transpose(-1, -2).contiguous()


def _along_rows(images: Tensor, width: int) -> Tensor:
    """Resize the last dimension of images (..., W) uint8."""
    dtype = torch.float32 if images.device.type == "mps" else torch.float64
    weights = _weights(images.shape[-1], width).to(images.device, dtype)  # (W', W)
    sums = images.to(dtype) @ weights.T
    return ((sums + UNIT // 2) / UNIT).floor().clamp(0, 255).to(torch.uint8)


def _weights(old: int, new: int) -> Tensor:
    """Return the weight of each old pixel in each new pixel, times UNIT: (new, old)."""
    scale = old / new
    stretch = max(scale, 1.0)
    pixels = torch.arange(old, dtype=torch.float64)
    centres = ((torch.arange(new, dtype=torch.float64) + 0.5) * scale)[:, None]
    support = LOBES * stretch
    first, last = (centres - support + 0.5).trunc(), (centres + support + 0.5).trunc()
    x = (pixels - centres + 0.5) / stretch  # (new, old)
    kernel = torch.sinc(x) * torch.sinc(x / LOBES)
    kernel = kernel * ((pixels >= first) & (pixels < last) & (x.abs() <= LOBES))
    weights = kernel / kernel.sum(dim=1, keepdim=True) * UNIT
    return (weights + 0.5 * weights.sign()).trunc()

"""Antialiased resampling: Lanczos that equals Pillow's, and bicubic of a batch of crops."""

from functools import lru_cache

import torch
from torch import Tensor

LOBES = 3  # lobes of the kernel on each side
_AT_ONCE = 64  # crops on a CPU: their floats fit into its cache
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


def bicubic_crops(images: Tensor, boxes: Tensor, mirrored: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a box out of each image, mirror it or not, and resize it: (B, C, H', W') uint8.

    Bit-identical to torch's antialiased bicubic interpolation of uint8 on a CPU, crop by crop:
    weights are integers times a power of two, so sums in float32 are exact, unless a crop shrinks
    by more than 4 or TF32 is allowed; then some pixels differ by a level.

    Args:
        images: (B, C, H, W) uint8
        boxes: (B, 4) int64: top, left, height, width
        mirrored: (B,) bool
        size: H', W'
    """
    count = _AT_ONCE if images.is_cpu else len(images)
    pieces = zip(images.split(count), boxes.split(count), mirrored.split(count), strict=True)
    return torch.cat([_bicubic_crops(part, box, flips, size) for part, box, flips in pieces])


def _bicubic_crops(
    images: Tensor, boxes: Tensor, mirrored: Tensor, size: tuple[int, int]
) -> Tensor:
    (B, C, H, W), device = images.shape, images.device
    tops, lefts, heights, widths = boxes.to(device, non_blocking=True).unbind(1)
    mirrored = mirrored.to(device, non_blocking=True)
    columns = _box_weights(lefts, widths, mirrored, W, size[1])  # (B, W, W')
    rows = _box_weights(tops, heights, torch.zeros_like(tops, dtype=torch.bool), H, size[0])
    lines = images.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    with torch.autocast(device.type, enabled=False):
        wide = _levels(torch.bmm(lines.view(B, H * C, W), columns))  # (B, H * C, W')
        pixels = _levels(torch.bmm(rows.mT, wide.view(B, H, C * size[1])))  # (B, H', C * W')
    pixels = pixels.to(torch.int16).view(B, size[0], C, size[1]).transpose(1, 2)
    return pixels.to(torch.uint8, memory_format=torch.contiguous_format)


def _levels(sums: Tensor) -> Tensor:
    return sums.add_(0.5).floor_().clamp_(0, 255)


def _box_weights(firsts: Tensor, counts: Tensor, mirrored: Tensor, old: int, new: int) -> Tensor:
    """Return the weights of `old` pixels in the new ones, 0 outside of the box: (B, old, new)."""
    places = torch.arange(old, device=firsts.device) - firsts[:, None]  # (B, old), in the box
    places = torch.where(mirrored[:, None], counts[:, None] - 1 - places, places)
    # Of a count, or of one less, the rows outside of the box are zeros.
    table = _bicubic_weights(old, new, firsts.device).view(-1, new)
    return table.index_select(0, (counts[:, None] * old + places).flatten()).view(-1, old, new)


@lru_cache(maxsize=8)
def _bicubic_weights(longest: int, new: int, device: torch.device) -> Tensor:
    """Return the weights of `count` pixels in `new` ones, for each count: (count, pixel, new)."""
    weights = torch.zeros(longest + 1, longest, new)
    for count in range(1, longest + 1):
        scale = count / new
        support, stretch = 2 * max(scale, 1.0), max(scale, 1.0)
        centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
        first = (centres - support + 0.5).trunc().clamp(min=0)
        last = (centres + support + 0.5).trunc().clamp(max=count)
        pixels = torch.arange(count, dtype=torch.float64)[:, None]  # (count, new) below
        x = ((pixels - centres + 0.5) / stretch).abs()
        kernel = torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2)
        kernel = kernel * ((pixels >= first) & (pixels < last) & (x < 2))
        kernel = kernel / kernel.sum(dim=0)
        unit = 1  # the largest power of two at which weights fit into 15 bits, as torch rounds them
        while unit < 1 << 22 and int(0.5 + float(kernel.max()) * 2 * unit) < 1 << 15:
            unit *= 2
        weights[count, :count] = (kernel * unit + 0.5 * kernel.sign()).trunc() / unit
    return weights.to(device)

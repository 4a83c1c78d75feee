"""Crops of feature maps: the features of a part of an image, from the map of the whole image."""

import torch
from torch import Tensor


def crop_maps(maps: Tensor, boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample a box of each map to a grid (Gh, Gw): (B, N, T) float32, row by row.

    Bilinear, antialiased if a side shrinks; for the whole map as `torch.nn.functional.interpolate`.
    It runs in float32 under any autocast.

    Args:
        maps: (B, h, w, T)
        boxes: (B, 4), top, left, height and width as shares of the map
    """
    _, h, w, _ = maps.shape
    top, left, height, width = boxes.float().unbind(1)
    with torch.autocast(maps.device.type, enabled=False):
        rows = _weights(top, height, h, grid[0])  # (B, Gh, h)
        columns = _weights(left, width, w, grid[1])  # (B, Gw, w)
        return torch.einsum("bih,bjw,bhwt->bijt", rows, columns, maps.float()).flatten(1, 2)


def _weights(start: Tensor, length: Tensor, old: int, new: int) -> Tensor:
    """Weight `old` cells for each of `new` cells in [start, start + length]: (B, new, old)."""
    scale = (length * old / new)[:, None, None]  # old cells in a new one
    centres = (torch.arange(new, device=start.device) + 0.5)[:, None] * scale
    centres = centres + (start * old)[:, None, None] - 0.5  # (B, new, 1)
    distances = (torch.arange(old, device=start.device) - centres).abs()
    weights = (1 - distances / scale.clamp(min=1)).clamp(min=0)
    return weights / weights.sum(2, keepdim=True)

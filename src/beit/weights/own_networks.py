"""Networks of the user's own as teachers: python:MODULE:NAME gives a module."""

import math

import torch
from torch import Tensor, nn

from beit.data.own_code import call
from beit.wording import an


def own_network(source: str) -> nn.Module:
    """Return the module that python:MODULE:NAME gives; random weights are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = call(source)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{source} gives {an(type(network).__name__)}; expected a torch.nn.Module")
    return network


def own_map(network: nn.Module, images: Tensor) -> Tensor:
    """Return the features of a module as a map (B, T, h, w); it gives that, or (B, N, T).

    A map of another proportion than the images may have its channels last, so it is refused unless
    the module's attribute `grid` is (h, w).
    """
    features: object = network(images)
    shape = tuple(features.shape) if isinstance(features, Tensor) else ()
    grid: tuple[int, int] | None = getattr(network, "grid", None)
    if isinstance(features, Tensor) and shape[:1] == (len(images),):
        if features.ndim == 4:
            (h, w), (height, width) = shape[2:], images.shape[-2:]
            rounding = 0 if height == width else max(height, width)  # sides differ by a cell
            in_proportion = abs(h * width - w * height) <= rounding
            if (h, w) == tuple(grid) if grid else in_proportion:
                return features
        elif features.ndim == 3:
            side = math.isqrt(shape[1])
            h, w = grid or (side, side)
            if h * w == shape[1]:
                return torch.unflatten(features.transpose(1, 2), 2, (h, w))  # (B, T, h, w)
    raise ValueError(
        f"{an(type(network).__name__)} gives {shape or type(features).__name__} for {len(images)} "
        f"images of {tuple(images.shape[-2:])}; expected features (B, T, h, w) with h and w in the "
        "proportion of the images' sides, or (B, N, T) of N = h * w cells, row by row, without "
        "[CLS]. Channels that come last are moved by maps.permute(0, 3, 1, 2); a map of another "
        "proportion, or tokens of a map that is not square, need an attribute grid of the module, "
        "(h, w)"
    )

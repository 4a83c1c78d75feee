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
    """Return the features of a module as a map (B, T, h, w); it gives that, or (B, N, T)."""
    features: object = network(images)
    shape = tuple(features.shape) if isinstance(features, Tensor) else ()
    if isinstance(features, Tensor) and shape[:1] == (len(images),):
        if features.ndim == 4:
            return features
        side = math.isqrt(shape[1]) if features.ndim == 3 else 0
        h, w = getattr(network, "grid", (side, side))
        if features.ndim == 3 and h * w == shape[1]:
            return torch.unflatten(features.transpose(1, 2), 2, (h, w))  # (B, T, h, w)
    raise ValueError(
        f"{an(type(network).__name__)} gives {shape or type(features).__name__} for {len(images)} "
        "images; expected features (B, T, h, w), or (B, N, T) of N = h * w cells, row by row, "
        "without [CLS]; of a map that is not square the module needs an attribute grid, (h, w)"
    )

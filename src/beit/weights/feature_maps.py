"""Read feature maps from timm networks: patch tokens, CLIP's projected tokens, last maps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = "stride"


def map_reader(network: Any, stride: int | None, source: str) -> Callable[[Any, Tensor], Tensor]:
    """Return the function that reads the feature map of a timm network.

    Args:
        stride: of the map; None: the network's last one
        source: name of the network in errors

    Returns:
        Function of the network and normalised images (B, 3, H, W) that returns (B, T, h, w)
    """
    if stride is not None:
        strides = [info["reduction"] for info in getattr(network, "feature_info", ())]
        has_maps = hasattr(network, "forward_intermediates") and len(set(strides)) > 1
        if not has_maps or stride not in strides:
            known = ", ".join(f"{STRIDE}{known}" for known in sorted(set(strides)))
            raise ValueError(
                f"{source} has no layer {STRIDE}{stride}; "
                + (f"expected one of {known}" if has_maps else "leave the layer out")
            )
        index = len(strides) - 1 - strides[::-1].index(stride)
        return partial(_inner_map, index=index)
    return clip_map if _has_projection(network) else token_map


def clip_map(network: Any, images: Tensor) -> Tensor:
    """Patch tokens after the final norm, times the projection."""
    tokens: Tensor = network.forward_features(images)[:, network.num_prefix_tokens :]
    tokens = F.linear(tokens, network.head.weight).transpose(1, 2)  # (B, T, N)
    return torch.unflatten(tokens, 2, network.patch_embed.grid_size)  # (B, T, h, w)


def token_map(network: Any, images: Tensor) -> Tensor:
    """Patch tokens after the final norm, or the last map of a convolutional network."""
    features = network.forward_features(images)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise ValueError(f"a {type(network).__name__} gives no single feature map; choose another")
    if features.ndim == 4:
        channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        maps: Tensor = features.permute(0, 3, 1, 2) if channels_last else features
        return maps
    if isinstance(getattr(network, "norm", None), nn.Identity) and hasattr(network, "fc_norm"):
        features = network.fc_norm(features)  # with mean pooling, this is the final norm
    patches = features[:, getattr(network, "num_prefix_tokens", 0) :]
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if grid is None or grid[0] * grid[1] != patches.shape[1]:
        # A hierarchical network does not give its last grid; forward_intermediates does.
        return _inner_map(network, images, index=None, norm=True)
    return torch.unflatten(patches.transpose(1, 2), 2, grid)  # (B, T, h, w)


def _inner_map(network: Any, images: Tensor, index: int | None, norm: bool = False) -> Tensor:
    """An intermediate map by timm's index; None: the last. Later layers are not computed."""
    maps: list[Tensor] = network.forward_intermediates(
        images,
        indices=1 if index is None else [index],
        norm=norm,
        stop_early=True,
        output_fmt="NCHW",
        intermediates_only=True,
    )
    return maps[-1]


def _has_projection(network: Any) -> bool:
    """Whether a timm network is a CLIP ViT with its projection, not fine-tuned to classes."""
    cfg = network.pretrained_cfg
    head = getattr(network, "head", None)
    return (
        "_clip_" in cfg["architecture"]
        and "ft_" not in (cfg.get("tag") or "")
        and isinstance(getattr(network, "norm", None), nn.LayerNorm)
        and isinstance(head, nn.Linear)
        and (head.bias is None or not head.bias.any())
    )

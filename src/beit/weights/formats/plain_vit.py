"""Build timm's VisionTransformer from the tensors of CLIP's tower or DINO's backbone.

Sizes are derived from shapes; tensor names are timm's.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from beit.run.settings import first
from beit.weights.file import mismatches
from beit.weights.formats.published_config import num_heads_of


def plain_vit(
    state: Mapping[str, Tensor],
    image_size: tuple[int, int] | None,
    num_heads: int | None,
    norm_eps: float,
    clip: bool = False,
) -> nn.Module:
    """Build a ViT with [CLS] and learned positions, and load the tensors strictly, in float32.

    No other memory is allocated and no random number is drawn.

    Args:
        state: tensors by timm's names
        image_size: (height, width), to which positions are resized; None: that of its training
        num_heads: None: one per 64 channels
        clip: use QuickGELU, a norm before the blocks, and a projection `head` without bias
    """
    from timm.layers.pos_embed import resample_abs_pos_embed
    from timm.models.vision_transformer import VisionTransformer

    tensors = {name: tensor.float() for name, tensor in state.items()}
    for name, num_axes in {"patch_embed.proj.weight": 4, "pos_embed": 3}.items():
        if tensors[name].ndim != num_axes:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)}, expected {num_axes} axes")
    width, _, patch_size, _ = tensors["patch_embed.proj.weight"].shape
    side = _grid_side(tensors["pos_embed"].shape[1] - 1)
    with torch.device("meta"):
        network: Any = VisionTransformer(
            img_size=image_size or (side * patch_size, side * patch_size),
            patch_size=patch_size,
            num_classes=0,
            embed_dim=width,
            depth=sum(name.endswith(".norm1.weight") for name in tensors),
            num_heads=num_heads_of(width, None, num_heads, "the file"),
            norm_layer=partial(nn.LayerNorm, eps=norm_eps),
            pre_norm=clip,
            act_layer="quick_gelu" if clip else "gelu",
        )
        if clip:
            # Any shape if the file has none: the check below then says that it is missing.
            network.head = nn.Linear(width, len(tensors.get("head.weight", [0])), bias=False)
    grid = network.patch_embed.grid_size
    if grid != (side, side):  # bicubic, antialiased where it shrinks
        tensors["pos_embed"] = resample_abs_pos_embed(tensors["pos_embed"], grid, (side, side))
    if problems := mismatches(tensors, network.state_dict()):
        raise ValueError(first(problems))
    network.load_state_dict(tensors, assign=True)
    assert isinstance(network, nn.Module)
    return network


def _grid_side(num_patches: int) -> int:
    side = math.isqrt(max(num_patches, 0))
    if side < 1 or side**2 != num_patches:
        raise ValueError(f"its {num_patches} patch positions are not a square grid")
    return side

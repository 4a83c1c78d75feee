"""A plain ViT of others (CLIP's tower, DINO's backbone) as timm's VisionTransformer.

Sizes are read off the shapes; names of tensors are timm's.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from beit.run.settings import first

HEAD_WIDTH = 64  # channels of an attention head in every published CLIP and DINO


def plain_vit(
    state: Mapping[str, Tensor],
    image_size: tuple[int, int] | None,
    num_heads: int | None,
    norm_eps: float,
    clip: bool = False,
) -> nn.Module:
    """Build a ViT with a class token and learned positions, filled strictly, in float32.

    The memory is that of the tensors: nothing is initialised, no random number is drawn.

    Args:
        state: tensors by timm's names
        image_size: (height, width), positions are resized to it; None: the size of its training
        num_heads: None: one per 64 channels
        clip: QuickGELU, a norm before the blocks, and a bias-free projection `head`
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
            num_heads=_num_heads(width, num_heads),
            norm_layer=partial(nn.LayerNorm, eps=norm_eps),
            pre_norm=clip,
            act_layer="quick_gelu" if clip else "gelu",
        )
        if clip:
            # Without a projection in the file: any shape, for the check below to find it missing.
            network.head = nn.Linear(width, len(tensors.get("head.weight", [0])), bias=False)
    grid = network.patch_embed.grid_size
    if grid != (side, side):  # bicubic, antialiased where it shrinks
        tensors["pos_embed"] = resample_abs_pos_embed(tensors["pos_embed"], grid, (side, side))
    _check_names_and_shapes(network.state_dict(), tensors)
    network.load_state_dict(tensors, assign=True)
    assert isinstance(network, nn.Module)
    return network


def _grid_side(num_patches: int) -> int:
    side = math.isqrt(max(num_patches, 0))
    if side < 1 or side**2 != num_patches:
        raise ValueError(f"its {num_patches} patch positions are not a square grid")
    return side


def _num_heads(width: int, num_heads: int | None) -> int:
    """The number of attention heads, which no shape tells."""
    if num_heads is None and width % HEAD_WIDTH:
        raise ValueError(f"its width {width} is no multiple of {HEAD_WIDTH} a head; give num_heads")
    num_heads = width // HEAD_WIDTH if num_heads is None else num_heads
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"its width {width} is not a multiple of num_heads {num_heads}")
    return num_heads


def _check_names_and_shapes(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unexpected" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(first(problems))

"""The ViTs of DINO (Caron et al. 2021) as published; names of their tensors are timm's."""

from collections.abc import Mapping

from torch import Tensor

DINO_NORM_EPS = 1e-6

PREFIXES = ("module.", "backbone.")  # of a training checkpoint: module.backbone.cls_token
PROJECTION = ("head.mlp.", "head.last_layer.")  # DINO's head, no part of the backbone
NEEDED = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}


def from_dino(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Pick out the backbone; None when the tensors are no ViT with class token and positions."""
    state = {}
    for name, tensor in tensors.items():
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        if not name.startswith(PROJECTION):
            state[name] = tensor
    return state if NEEDED <= state.keys() else None

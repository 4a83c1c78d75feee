"""The ViTs of DINO (Caron et al. 2021) and DINOv2 (Oquab et al. 2023) by timm's names.

The files have published names, which are timm's with few exceptions, or those of transformers.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from beit.weights.formats.names import Rows, fused, renamed
from beit.weights.formats.transformers_names import MODULES

DINO_NORM_EPS = 1e-6

PROJECTION = ("head.mlp.", "head.last_layer.")  # DINO's head, not part of the backbone
NEEDED = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}

GATED: Rows = (  # the MLP of DINOv2's giant: (published, timm's)
    ("blocks.#.mlp.w12.*", "blocks.#.mlp.fc1.*"),
    ("blocks.#.mlp.w3.*", "blocks.#.mlp.fc2.*"),
)

TRANSFORMERS_PREFIX = re.compile(r"^(vit|dinov2(_with_registers)?)\.")  # in a model with a head
POOLER = "pooler.dense."  # of ViTModel, not trained with the rest
# (transformers' in files, timm's), after `fused`
TRANSFORMERS: Rows = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    ("embeddings.register_tokens", "register_tokens"),
    ("embeddings.mask_token", "mask_token"),
    ("layernorm.*", "norm.*"),
    ("encoder.layer.#.layernorm_before.*", "blocks.#.norm1.*"),
    ("encoder.layer.#.layernorm_after.*", "blocks.#.norm2.*"),
    ("encoder.layer.#.attention.attention.qkv.*", "blocks.#.attn.qkv.*"),
    ("encoder.layer.#.attention.output.dense.*", "blocks.#.attn.proj.*"),
    ("encoder.layer.#.intermediate.dense.*", "blocks.#.mlp.fc1.*"),
    ("encoder.layer.#.output.dense.*", "blocks.#.mlp.fc2.*"),
    # Of DINOv2.
    ("encoder.layer.#.norm#.*", "blocks.#.norm#.*"),
    ("encoder.layer.#.layer_scale#.lambda1", "blocks.#.ls#.gamma"),
    ("encoder.layer.#.mlp.weights_in.*", "blocks.#.mlp.fc1.*"),
    ("encoder.layer.#.mlp.weights_out.*", "blocks.#.mlp.fc2.*"),
    ("encoder.layer.#.mlp.fc#.*", "blocks.#.mlp.fc#.*"),
)


def from_dino(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Select the backbone, by timm's names; None if it is not a ViT with [CLS] and positions."""
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(PROJECTION)}
    if "embeddings.patch_embeddings.projection.weight" in map(_without_prefix, state):
        state = _from_transformers(state)
    state = renamed(state, GATED)
    state.pop("mask_token", None)  # of DINOv2, for training only
    if not state.keys() >= NEEDED:
        return None
    cls_token, positions = state["cls_token"], state["pos_embed"]
    fit = positions.ndim == 3 and positions[:1, :1].shape == cls_token.shape
    if "register_tokens" in state and fit:
        # With registers, timm has the position of [CLS] in the token itself.
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"], state["pos_embed"] = cls_token + positions[:, :1], positions[:, 1:]
    return state


def _from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of transformers' ViT to timm's names; unknown names are kept."""
    state = {_without_prefix(name): tensor for name, tensor in tensors.items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(POOLER)}
    state = renamed(state, MODULES)
    for kind in ("weight", "bias"):
        parts = tuple(f"attention.{part}.{kind}" for part in ("query", "key", "value"))
        state = fused(state, parts, f"attention.qkv.{kind}")
    return renamed(state, TRANSFORMERS)


def _without_prefix(name: str) -> str:
    return TRANSFORMERS_PREFIX.sub("", name)

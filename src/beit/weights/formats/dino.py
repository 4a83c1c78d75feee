"""The ViTs of DINO (Caron et al. 2021), by published names, which are timm's, or transformers'."""

from collections.abc import Mapping

from torch import Tensor

from beit.weights.formats.names import Rows, fused, renamed
from beit.weights.formats.transformers_names import MODULES

DINO_NORM_EPS = 1e-6

PREFIXES = ("module.", "backbone.")  # of a training checkpoint: module.backbone.cls_token
PROJECTION = ("head.mlp.", "head.last_layer.")  # DINO's head, not part of the backbone
NEEDED = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}

TRANSFORMERS_PREFIX = "vit."  # in a model with a head
POOLER = "pooler.dense."  # of ViTModel, not trained with the rest
# (transformers' in files, timm's), after `fused`
TRANSFORMERS: Rows = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    ("layernorm.*", "norm.*"),
    ("encoder.layer.#.layernorm_before.*", "blocks.#.norm1.*"),
    ("encoder.layer.#.layernorm_after.*", "blocks.#.norm2.*"),
    ("encoder.layer.#.attention.attention.qkv.*", "blocks.#.attn.qkv.*"),
    ("encoder.layer.#.attention.output.dense.*", "blocks.#.attn.proj.*"),
    ("encoder.layer.#.intermediate.dense.*", "blocks.#.mlp.fc1.*"),
    ("encoder.layer.#.output.dense.*", "blocks.#.mlp.fc2.*"),
)


def from_dino(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Select the backbone, by timm's names; None if it is not a ViT with [CLS] and positions."""
    state = {}
    for name, tensor in tensors.items():
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        if not name.startswith(PROJECTION):
            state[name] = tensor
    if "embeddings.patch_embeddings.projection.weight" in map(_without_prefix, state):
        state = _from_transformers(state)
    return state if NEEDED <= state.keys() else None


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
    return name.removeprefix(TRANSFORMERS_PREFIX)

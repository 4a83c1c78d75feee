"""The ViTs of DINO (Caron et al. 2021), by published names, which are timm's, or transformers'."""

from collections.abc import Mapping

from torch import Tensor

from beit.weights.formats.names import Rows, fused, renamed

DINO_NORM_EPS = 1e-6

PREFIXES = ("module.", "backbone.")  # of a training checkpoint: module.backbone.cls_token
PROJECTION = ("head.mlp.", "head.last_layer.")  # DINO's head, not part of the backbone
NEEDED = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}

TRANSFORMERS_PREFIX = "vit."  # in a model with a head
POOLER = "pooler.dense."  # of ViTModel, not trained with the rest
# (transformers', timm's), after `fused`: names in files, then names in memory since version 5.
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
    ("layers.#.layernorm_before.*", "blocks.#.norm1.*"),
    ("layers.#.layernorm_after.*", "blocks.#.norm2.*"),
    ("layers.#.attention.qkv.*", "blocks.#.attn.qkv.*"),
    ("layers.#.attention.o_proj.*", "blocks.#.attn.proj.*"),
    ("layers.#.mlp.fc1.*", "blocks.#.mlp.fc1.*"),
    ("layers.#.mlp.fc2.*", "blocks.#.mlp.fc2.*"),
)
QUERY_KEY_VALUE = (
    ("attention.query.", "attention.key.", "attention.value."),
    ("attention.q_proj.", "attention.k_proj.", "attention.v_proj."),
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
    state = {
        name: tensor
        for name, tensor in zip(map(_without_prefix, tensors), tensors.values(), strict=True)
        if not name.startswith(POOLER)
    }
    for stems in QUERY_KEY_VALUE:
        for kind in ("weight", "bias"):
            state = fused(state, tuple(stem + kind for stem in stems), f"attention.qkv.{kind}")
    return renamed(state, TRANSFORMERS)


def _without_prefix(name: str) -> str:
    return name.removeprefix(TRANSFORMERS_PREFIX)

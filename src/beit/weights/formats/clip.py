"""The visual tower of CLIP (Radford et al. 2021), by the names of OpenAI and of transformers."""

from collections.abc import Mapping

from torch import Tensor

from beit.weights.formats.names import Rows, fused, renamed

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_NORM_EPS = 1e-5  # OpenAI's

OPENAI_PREFIXES = ("visual.", "module.visual.", "")  # whole model, the same from DDP, tower alone
# (CLIP's, timm's)
OPENAI: Rows = (
    ("class_embedding", "cls_token"),
    ("positional_embedding", "pos_embed"),
    ("proj", "head.weight"),
    ("conv1.*", "patch_embed.proj.*"),
    ("ln_pre.*", "norm_pre.*"),
    ("ln_post.*", "norm.*"),
    ("transformer.resblocks.#.ln_1.*", "blocks.#.norm1.*"),
    ("transformer.resblocks.#.ln_2.*", "blocks.#.norm2.*"),
    ("transformer.resblocks.#.attn.in_proj_*", "blocks.#.attn.qkv.*"),
    ("transformer.resblocks.#.attn.out_proj.*", "blocks.#.attn.proj.*"),
    ("transformer.resblocks.#.mlp.c_fc.*", "blocks.#.mlp.fc1.*"),
    ("transformer.resblocks.#.mlp.c_proj.*", "blocks.#.mlp.fc2.*"),
)

TRANSFORMERS_PREFIXES = ("vision_model.", "")  # CLIPModel and ...WithProjection; CLIPVisionModel
PROJECTION = "visual_projection.weight"  # beside vision_model.*
# The misspelling in pre_layrnorm is transformers'.
TRANSFORMERS: Rows = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding.weight", "pos_embed"),
    ("embeddings.patch_embedding.*", "patch_embed.proj.*"),
    (PROJECTION, "head.weight"),
    ("pre_layrnorm.*", "norm_pre.*"),
    ("post_layernorm.*", "norm.*"),
    ("encoder.layers.#.layer_norm1.*", "blocks.#.norm1.*"),
    ("encoder.layers.#.layer_norm2.*", "blocks.#.norm2.*"),
    ("encoder.layers.#.self_attn.qkv.*", "blocks.#.attn.qkv.*"),  # after `fused`
    ("encoder.layers.#.self_attn.out_proj.*", "blocks.#.attn.proj.*"),
    ("encoder.layers.#.mlp.fc1.*", "blocks.#.mlp.fc1.*"),
    ("encoder.layers.#.mlp.fc2.*", "blocks.#.mlp.fc2.*"),
)
POSITION_IDS = "embeddings.position_ids"  # 0, 1, 2, ... in older files


def from_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Rename the visual tower's tensors to timm's names; None if they are not a CLIP ViT.

    Unknown names are kept, so that strict loading refuses them.
    """
    state = _from_openai(tensors) or _from_transformers(tensors)
    if state is None:
        return None
    state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in state:
        state["pos_embed"] = state["pos_embed"][None]  # (1, 1 + N, D)
    return state


def _from_openai(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    prefix = _prefix(tensors, OPENAI_PREFIXES, ("class_embedding", "conv1.weight"))
    if prefix is None:
        return None
    state = renamed(_without_prefix(tensors, prefix), OPENAI)
    if "head.weight" in state:
        state["head.weight"] = state["head.weight"].T.contiguous()  # (T, D)
    return state


def _from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    needed = ("embeddings.class_embedding", "embeddings.patch_embedding.weight")
    prefix = _prefix(tensors, TRANSFORMERS_PREFIXES, needed)
    if prefix is None:
        return None
    tower = _without_prefix(tensors, prefix)
    tower.pop(POSITION_IDS, None)
    if PROJECTION in tensors:
        tower[PROJECTION] = tensors[PROJECTION]
    for kind in ("weight", "bias"):
        parts = tuple(f"self_attn.{letter}_proj.{kind}" for letter in "qkv")
        tower = fused(tower, parts, f"self_attn.qkv.{kind}")
    return renamed(tower, TRANSFORMERS)


def _prefix(
    tensors: Mapping[str, Tensor], prefixes: tuple[str, ...], needed: tuple[str, ...]
) -> str | None:
    """Return the first prefix with which all needed names are there."""
    fitting = (
        prefix for prefix in prefixes if all(f"{prefix}{name}" in tensors for name in needed)
    )
    return next(fitting, None)


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors with a prefix, and remove it from their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }

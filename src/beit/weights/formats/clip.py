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


def from_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Rename the visual tower's tensors to timm's names; None if they are not a CLIP ViT.

    Unknown names are kept, so that strict loading refuses them.
    """
    openai = _tower(tensors, OPENAI_PREFIXES, "conv1.weight", "class_embedding")
    if openai is not None:
        state = renamed(openai, OPENAI)
        if "head.weight" in state:
            state["head.weight"] = state["head.weight"].T.contiguous()  # (T, D)
    else:
        needed = ("embeddings.patch_embedding.weight", "embeddings.class_embedding")
        tower = _tower(tensors, TRANSFORMERS_PREFIXES, *needed)
        if tower is None:
            return None
        tower.pop("embeddings.position_ids", None)  # 0, 1, 2, ... in older files
        if PROJECTION in tensors:
            tower[PROJECTION] = tensors[PROJECTION]
        for kind in ("weight", "bias"):
            parts = tuple(f"self_attn.{letter}_proj.{kind}" for letter in "qkv")
            tower = fused(tower, parts, f"self_attn.qkv.{kind}")
        state = renamed(tower, TRANSFORMERS)
    state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in state:
        state["pos_embed"] = state["pos_embed"][None]  # (1, 1 + N, D)
    return state


def _tower(
    tensors: Mapping[str, Tensor], prefixes: tuple[str, ...], *needed: str
) -> dict[str, Tensor] | None:
    """Select the tensors with the first prefix that all needed names have, without the prefix."""
    for prefix in prefixes:
        if all(f"{prefix}{name}" in tensors for name in needed):
            names = [name for name in tensors if name.startswith(prefix)]
            return {name.removeprefix(prefix): tensors[name] for name in names}
    return None

"""The visual tower of CLIP (Radford et al. 2021) in the layout OpenAI published it in."""

from collections.abc import Mapping

from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_NORM_EPS = 1e-5  # OpenAI's

PREFIXES = ("visual.", "module.visual.", "")  # the whole model, also out of DDP; the tower alone
# CLIP's name or beginning of a name -> timm's.
TOWER = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "proj": "head.weight",
    "conv1.": "patch_embed.proj.",
    "ln_pre.": "norm_pre.",
    "ln_post.": "norm.",
}
BLOCKS = ("transformer.resblocks.", "blocks.")
IN_BLOCK = {
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj.": "attn.proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}


def from_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Give the visual tower timm's names; None when the tensors are no CLIP ViT.

    A name that CLIP does not have keeps its own, for the strict load to refuse.
    """
    for prefix in PREFIXES:
        if f"{prefix}class_embedding" in tensors and f"{prefix}conv1.weight" in tensors:
            break
    else:
        return None
    state = {
        _timm_name(name.removeprefix(prefix)): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in state:
        state["pos_embed"] = state["pos_embed"][None]  # (1, 1 + N, D)
    if "head.weight" in state:
        state["head.weight"] = state["head.weight"].T.contiguous()  # (T, D)
    return state


def _timm_name(name: str) -> str:
    if name.startswith(BLOCKS[0]):
        number, _, inner = name.removeprefix(BLOCKS[0]).partition(".")
        return f"{BLOCKS[1]}{number}.{_translated(inner, IN_BLOCK)}"
    return _translated(name, TOWER)


def _translated(name: str, table: Mapping[str, str]) -> str:
    for theirs, ours in table.items():
        if name == theirs or (theirs.endswith((".", "_")) and name.startswith(theirs)):
            return ours + name.removeprefix(theirs)
    return name

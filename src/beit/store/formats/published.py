"""The checkpoint layouts of the published BEiT code: VQ-KD tokenizers and pretraining models.

Names are translated by the tables below, in both directions; sizes are read off the shapes.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.patches import IMAGENET_MEAN, IMAGENET_STD, grid_of
from beit.nn.position import CLS_ROWS, relative_position_index
from beit.nn.tokenizer import NO_CUT, VQKD, VQKDConfig
from beit.nn.vit import ViTConfig
from beit.store.settings import first
from beit.store.weights import assemble, size_pair

logger = logging.getLogger(__name__)

CONTAINERS = ("model", "module", "state_dict")  # torch, DeepSpeed, mm

Names = tuple[tuple[str, str], ...]  # (ours, published)
# The first pair whose beginning matches is used.
VQKD_PREFIXES: Names = (
    ("encoder.norm.", "encoder.fc_norm."),
    ("decoder.norm.", "decoder.fc_norm."),
    ("encode_task.", "encode_task_layer."),
    ("decode_task.", "decode_task_layer."),
    ("quantizer.codebook", "quantize.embedding.weight"),
    ("quantizer.initialised", "quantize.embedding.initted"),
    ("quantizer.counts", "quantize.cluster_size"),
    ("encoder.", "encoder."),
    ("decoder.", "decoder."),
)
MIM_PREFIXES: Names = (
    ("mask_token", "mask_token"),
    ("head.", "lm_head."),
    ("aggregation.", "cls_pt_layers."),
    ("cls_norm.", "cls_pt_norm."),
    ("cls_head.", "cls_pt_lm_head."),
    ("backbone.", ""),
)
# The first pair whose end matches is used: a block's own table, a shared one.
SUFFIXES: Names = (
    ("attn.rel_pos_bias.table", "attn.relative_position_bias_table"),
    ("rel_pos_bias.table", "rel_pos_bias.relative_position_bias_table"),
)
TABLE, INDEX = "relative_position_bias_table", "relative_position_index"

# In published files, without influence on what the model computes: the teacher and the scaling of
# its input, the loss, tensors of the quantizer that its code never reads, and indices that follow
# from the grid.
IGNORED_PREFIXES = ("teacher_model.", "scaling_layer.", "loss")
STALE = ("quantize.embedding.cluster_size", "quantize.embedding.embed_avg")
COUNTS, INITTED = "quantize.cluster_size", "quantize.embedding.initted"

VQKD_OVERRIDES = ("num_heads", "image_size", "mean", "std", "decay")
MIM_OVERRIDES = ("num_heads", "image_size", "mean", "std", "early_layers")
CHANNELS_PER_HEAD = 64  # of all published models
EARLY_LAYERS = {12: 9, 24: 21}  # by depth: the published base and large models


def from_published(
    state: Mapping[str, Any], *, origin: str = "the state", **overrides: Any
) -> VQKD | MaskedImageModel:
    """Build the model that a published checkpoint holds, in eval mode.

    Args:
        state: tensors by published name, or a checkpoint that has them under `model`, `module` or
            `state_dict`.
        origin: what errors and the log call it, such as the file's name.
        overrides: what shapes cannot tell. `num_heads` (64 channels a head unless a position table
            or this says otherwise), `image_size` (square unless given), `mean` and `std` ([-1, 1]
            for a tokenizer, ImageNet's for a pretraining model), `early_layers` (9 at depth 12,
            21 at depth 24; needed elsewhere), `decay` of a tokenizer's codebook.
    """
    tensors = _tensors(state, origin)
    left_out = [name for name in tensors if _ignored(name)]
    if left_out:
        logger.info("%s: left out %s", origin, ", ".join(_grouped(left_out)))
        tensors = {name: tensor for name, tensor in tensors.items() if not _ignored(name)}

    if {"encoder.patch_embed.proj.weight", "quantize.embedding.weight"} <= tensors.keys():
        # A bookkeeping tensor: missing in files that were cleaned, the model is the same.
        num_codes = tensors["quantize.embedding.weight"].shape[0]
        tensors = {COUNTS: torch.zeros(num_codes)} | tensors
        vqkd = assemble(
            VQKD,
            vqkd_config(tensors, origin, overrides),
            _translated(tensors, VQKD_PREFIXES),
            origin,
        )
        assert isinstance(vqkd, VQKD)
        return vqkd
    if {"patch_embed.proj.weight", "mask_token", "lm_head.weight"} <= tensors.keys():
        mim = assemble(
            MaskedImageModel,
            mim_config(tensors, origin, overrides),
            _translated(tensors, MIM_PREFIXES),
            origin,
        )
        assert isinstance(mim, MaskedImageModel)
        return mim
    raise ValueError(
        f"{origin} is in no known layout; expected a published VQ-KD tokenizer "
        "(encoder.*, quantize.embedding.weight) or pretraining model (mask_token, lm_head.*), got "
        f"{first(list(tensors)) or 'nothing'}"
    )


def to_published(model: nn.Module) -> dict[str, Tensor]:
    """Give the model's tensors by published name: the inverse of `from_published`.

    Complete for the published code's own strict loader: with the tensors it never reads and the
    position indices. Tensors are shared with the model, not copied.
    """
    if isinstance(model, VQKD):
        prefixes, grid = VQKD_PREFIXES, model.grid
    elif isinstance(model, MaskedImageModel):
        prefixes, grid = MIM_PREFIXES, model.config.backbone.grid
    else:
        raise ValueError(
            f"a {type(model).__name__} has no published layout; "
            "expected a VQKD or a MaskedImageModel"
        )
    state = {_published(name, prefixes): tensor for name, tensor in model.state_dict().items()}
    for name in [name for name in state if name.endswith(TABLE)]:
        device = state[name].device
        state[name.removesuffix(TABLE) + INDEX] = relative_position_index(grid).to(device)
    if isinstance(model, VQKD):
        codebook = model.quantizer.codebook
        state[INITTED] = state[INITTED].float().reshape(1)
        state["quantize.embedding.cluster_size"] = torch.zeros_like(codebook[:, 0])
        state["quantize.embedding.embed_avg"] = codebook.clone()
    return state


def vqkd_config(
    tensors: Mapping[str, Tensor], origin: str, overrides: Mapping[str, Any]
) -> VQKDConfig:
    """Read a tokenizer's configuration off its shapes."""
    _check_overrides(overrides, VQKD_OVERRIDES, origin)
    encoder = _vit_config(
        tensors, "encoder.", "fc_norm", origin, {"mean": (0.5,) * 3, "std": (0.5,) * 3, **overrides}
    )
    num_codes, code_width = _shape(tensors, "quantize.embedding.weight", 2, origin)
    return VQKDConfig(
        encoder=encoder,
        decoder_depth=_count(tensors, "decoder.blocks."),
        num_codes=num_codes,
        code_width=code_width,
        teacher_width=_shape(tensors, "decode_task_layer.2.weight", 2, origin)[0],
        decay=overrides.get("decay", VQKDConfig.decay),
    )


def mim_config(
    tensors: Mapping[str, Tensor], origin: str, overrides: Mapping[str, Any]
) -> MaskedImageModelConfig:
    """Read a pretraining model's configuration off its shapes."""
    _check_overrides(overrides, MIM_OVERRIDES, origin)
    backbone = _vit_config(
        tensors, "", "norm", origin, {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, **overrides}
    )
    head_layers = _count(tensors, "cls_pt_layers.")
    early_layers = overrides.get("early_layers", EARLY_LAYERS.get(backbone.depth))
    if early_layers is None:
        if head_layers:
            raise ValueError(
                f"{origin} has {head_layers} aggregation blocks over a backbone of depth "
                f"{backbone.depth}, and shapes do not tell which block feeds them; "
                "give early_layers=…"
            )
        early_layers = backbone.depth  # unused
    return MaskedImageModelConfig(
        backbone=backbone,
        num_codes=_shape(tensors, "lm_head.weight", 2, origin)[0],
        early_layers=early_layers,
        head_layers=head_layers,
        shared_head="cls_pt_lm_head.weight" not in tensors,
    )


def _vit_config(
    tensors: Mapping[str, Tensor],
    prefix: str,
    norm: str,
    origin: str,
    overrides: Mapping[str, Any],
) -> ViTConfig:
    width, in_channels, patch_size, _ = _shape(
        tensors, f"{prefix}patch_embed.proj.weight", 4, origin
    )
    hidden = _shape(tensors, f"{prefix}blocks.0.mlp.fc1.weight", 2, origin)[0]
    mlp_ratio = hidden / width
    if int(width * mlp_ratio) < hidden:  # the quotient was rounded down
        mlp_ratio = math.nextafter(mlp_ratio, math.inf)
    depth = _count(tensors, f"{prefix}blocks.")
    relative_bias: Literal["none", "shared", "per_block"] = "none"
    rows, heads = None, None  # of the position table
    if f"{prefix}rel_pos_bias.{TABLE}" in tensors:
        rows, heads = _shape(tensors, f"{prefix}rel_pos_bias.{TABLE}", 2, origin)
        relative_bias = "shared"
    elif f"{prefix}blocks.0.attn.{TABLE}" in tensors:
        rows, heads = _shape(tensors, f"{prefix}blocks.0.attn.{TABLE}", 2, origin)
        relative_bias = "per_block"
    absolute = f"{prefix}pos_embed" in tensors
    positions = _shape(tensors, f"{prefix}pos_embed", 3, origin)[1] - 1 if absolute else None
    scaled = f"{prefix}blocks.0.gamma_1" in tensors
    mean, std = overrides["mean"], overrides["std"]
    return ViTConfig(
        image_size=_image_size(patch_size, rows, positions, overrides.get("image_size"), origin),
        patch_size=patch_size,
        in_channels=in_channels,
        width=width,
        depth=depth,
        num_heads=_num_heads(width, heads, overrides.get("num_heads"), origin),
        mlp_ratio=mlp_ratio,
        absolute_positions=absolute,
        relative_bias=relative_bias,
        # Where the scales started is not in the file; as published, it goes by depth.
        layer_scale=(0.1 if depth < 24 else 1e-5) if scaled else None,
        final_norm=f"{prefix}{norm}.weight" in tensors,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        init_bound=NO_CUT if prefix else ViTConfig.init_bound,
    )


def _image_size(
    patch_size: int,
    rows: int | None,
    positions: int | None,
    wanted: int | tuple[int, int] | None,
    origin: str,
) -> tuple[int, int]:
    """Find the image size from table rows or absolute positions: square, unless it is given."""
    if wanted is not None:
        size = size_pair(wanted)
        Gh, Gw = grid_of(size, patch_size)
        if rows not in (None, (2 * Gh - 1) * (2 * Gw - 1) + CLS_ROWS) or positions not in (
            None,
            Gh * Gw,
        ):
            raise ValueError(
                f"image_size {size} is a grid of {Gh} x {Gw} patches of {patch_size}, and the "
                f"positions in {origin} are for another; give the size it was trained at"
            )
        return size
    if rows is not None:  # (2g-1)^2 and those of [CLS]
        side = (math.isqrt(max(rows - CLS_ROWS, 0)) + 1) // 2
        square = side > 0 and (2 * side - 1) ** 2 + CLS_ROWS == rows
    else:
        side = math.isqrt(positions or 0)
        square = side > 0 and side**2 == positions
    if not square:
        raise ValueError(
            f"{origin} is not for square images, or has no positions; "
            "give image_size=(height, width)"
        )
    return side * patch_size, side * patch_size


def _num_heads(width: int, told: int | None, wanted: int | None, origin: str) -> int:
    """Find the heads: those of the position table, else as given, else 64 channels a head."""
    if told is not None:
        if wanted not in (None, told):
            raise ValueError(f"num_heads={wanted}, but the position table in {origin} has {told}")
        return told
    if wanted is not None:
        return wanted
    if width % CHANNELS_PER_HEAD:
        raise ValueError(
            f"{origin} has width {width}, no multiple of {CHANNELS_PER_HEAD}, and shapes do not "
            "tell the number of heads; give num_heads=…"
        )
    return width // CHANNELS_PER_HEAD


def _tensors(state: Mapping[str, Any], origin: str) -> dict[str, Tensor]:
    """Take the tensors out of their container; a checkpoint's other entries are not weights."""
    for container in CONTAINERS:
        if isinstance(state.get(container), Mapping):
            state = state[container]
            break
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"{origin} does not hold tensors by name, nor does one of its entries "
            f"{', '.join(CONTAINERS)}; got {first(others)}"
        )
    return dict(state)


def _ignored(name: str) -> bool:
    return name.startswith(IGNORED_PREFIXES) or name in STALE or name.endswith(INDEX)


def _grouped(names: list[str]) -> list[str]:
    """Sum up names under `teacher_model.` and the like, which are hundreds."""
    groups: dict[str, int] = {}
    for name in names:
        prefix = next((prefix for prefix in IGNORED_PREFIXES if name.startswith(prefix)), None)
        group = name if prefix is None else f"{prefix}*"
        groups[group] = groups.get(group, 0) + 1
    return [name if count == 1 else f"{name} ({count} tensors)" for name, count in groups.items()]


def _translated(tensors: Mapping[str, Tensor], prefixes: Names) -> dict[str, Tensor]:
    """Give the tensors our names; a name that is not a published one stays, to be refused."""
    ours = {}
    for name, tensor in tensors.items():
        translated = _ours(name, prefixes)
        known = _published(translated, prefixes) == name
        ours[translated if known else f"{name} (published name)"] = tensor
    if INITTED in tensors:
        ours["quantizer.initialised"] = tensors[INITTED].reshape(()) != 0
    return ours


def _ours(name: str, prefixes: Names) -> str:
    for ours, published in prefixes:
        if name.startswith(published):
            name = ours + name.removeprefix(published)
            break
    for ours, published in SUFFIXES:
        if name.endswith(published):
            return name.removesuffix(published) + ours
    return name


def _published(name: str, prefixes: Names) -> str:
    for ours, published in prefixes:
        if name.startswith(ours):
            name = published + name.removeprefix(ours)
            break
    for ours, published in SUFFIXES:
        if name.endswith(ours):
            return name.removesuffix(ours) + published
    return name


def _shape(tensors: Mapping[str, Tensor], name: str, ndim: int, origin: str) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"{origin} has no {name}")
    shape = tuple(tensors[name].shape)
    if len(shape) != ndim or 0 in shape:
        raise ValueError(f"{name} in {origin} is {shape}, expected {ndim} sizes above 0")
    return shape


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Count the blocks under `prefix`."""
    names = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    return len({name.split(".")[0] for name in names})


def _check_overrides(overrides: Mapping[str, Any], known: tuple[str, ...], origin: str) -> None:
    unknown = [name for name in overrides if name not in known]
    if unknown:
        raise ValueError(
            f"{origin} takes no override {', '.join(unknown)}; expected {', '.join(known)}"
        )

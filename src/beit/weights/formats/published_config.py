"""Derive the configuration of a published BEiT model from the shapes of its tensors."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from beit.nn.heads import ImageClassifierConfig
from beit.nn.mim import MaskedImageModelConfig
from beit.nn.patches import IMAGENET_MEAN, IMAGENET_STD, grid_of
from beit.nn.relative_bias import CLS_ROWS
from beit.nn.tokenizer import NO_CUT, VQKDConfig
from beit.nn.vit import ViTConfig
from beit.weights.file import NO_HEAD, EarlyLayersUnknownError, SizeUnknownError, size_pair, three
from beit.weights.formats.published_names import TABLE

BACKBONE_OVERRIDES = ("num_heads", "image_size", "mean", "std")
VQKD_OVERRIDES = (*BACKBONE_OVERRIDES, "decay")
MIM_OVERRIDES = (*BACKBONE_OVERRIDES, "early_layers")
CLASSIFIER_OVERRIDES = (*BACKBONE_OVERRIDES, "num_classes", "class_names")
CHANNELS_PER_HEAD = 64  # of all published models, CLIP and DINO included
EARLY_LAYERS = {12: 9, 24: 21}  # by depth: the published base and large models
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def vqkd_config(
    tensors: Mapping[str, Tensor], origin: str, overrides: Mapping[str, Any]
) -> VQKDConfig:
    """Derive a tokenizer's configuration from its shapes."""
    check_overrides(overrides, VQKD_OVERRIDES, origin)
    settings = {"mean": (0.5,) * 3, "std": (0.5,) * 3, **overrides}
    encoder = backbone_config(tensors, "encoder.", "fc_norm", origin, settings)
    num_codes, code_width = shape_of(tensors, "quantize.embedding.weight", 2, origin)
    return VQKDConfig(
        encoder=encoder,
        decoder_depth=count_blocks(tensors, "decoder.blocks."),
        num_codes=num_codes,
        code_width=code_width,
        teacher_width=shape_of(tensors, "decode_task_layer.2.weight", 2, origin)[0],
        decay=overrides.get("decay", VQKDConfig.decay),
    )


def mim_config(
    tensors: Mapping[str, Tensor], origin: str, overrides: Mapping[str, Any]
) -> MaskedImageModelConfig:
    """Derive a pretraining model's configuration from its shapes."""
    check_overrides(overrides, MIM_OVERRIDES, origin)
    backbone = backbone_config(tensors, "", "norm", origin, IMAGENET | dict(overrides))
    head_layers = count_blocks(tensors, "cls_pt_layers.")
    early_layers = overrides.get("early_layers", EARLY_LAYERS.get(backbone.depth))
    if early_layers is None:
        if head_layers:
            raise EarlyLayersUnknownError(
                f"{origin} has {head_layers} aggregation blocks over a backbone of depth "
                f"{backbone.depth}, and shapes do not determine which block feeds them; "
                "give early_layers=…"
            )
        early_layers = backbone.depth  # unused
    return MaskedImageModelConfig(
        backbone=backbone,
        num_codes=shape_of(tensors, "lm_head.weight", 2, origin)[0],
        early_layers=early_layers,
        head_layers=head_layers,
        shared_head="cls_pt_lm_head.weight" not in tensors,
    )


def classifier_config(
    tensors: Mapping[str, Tensor], origin: str, overrides: Mapping[str, Any]
) -> ImageClassifierConfig:
    """Derive a classifier's configuration from its shapes."""
    check_overrides(overrides, CLASSIFIER_OVERRIDES, origin)
    num_rows = shape_of(tensors, "head.weight", 2, origin)[0]
    names = overrides.get("class_names")
    return ImageClassifierConfig(
        backbone=backbone_config(tensors, "", "norm", origin, IMAGENET | dict(overrides)),
        num_classes=overrides.get("num_classes", num_rows),
        pooling="mean" if "fc_norm.weight" in tensors else "cls",
        class_names=None if names is None else tuple(names),
    )


def vit_config(
    tensors: Mapping[str, Tensor], origin: str, overrides: Mapping[str, Any]
) -> ViTConfig:
    """Derive the configuration of a backbone without head from its shapes."""
    check_overrides(overrides, BACKBONE_OVERRIDES, origin)
    return backbone_config(tensors, "", "norm", origin, IMAGENET | dict(overrides))


def backbone_config(
    tensors: Mapping[str, Tensor], prefix: str, norm: str, origin: str, overrides: Mapping[str, Any]
) -> ViTConfig:
    """Derive a ViT's configuration from its shapes.

    Args:
        prefix: of its names, such as `encoder.`
        norm: name of its final norm, if it has one
        overrides: `mean` and `std`, and optionally `num_heads` and `image_size`
    """
    projection = shape_of(tensors, f"{prefix}patch_embed.proj.weight", 4, origin)
    width, in_channels, patch_size, _ = projection
    hidden = shape_of(tensors, f"{prefix}blocks.0.mlp.fc1.weight", 2, origin)[0]
    mlp_ratio = hidden / width
    if int(width * mlp_ratio) < hidden:  # the quotient was rounded down
        mlp_ratio = math.nextafter(mlp_ratio, math.inf)
    depth = count_blocks(tensors, f"{prefix}blocks.")
    relative_bias: Literal["none", "shared", "per_block"] = "none"
    rows, heads = None, None  # of the position table
    shared, per_block = f"{prefix}rel_pos_bias.{TABLE}", f"{prefix}blocks.0.attn.{TABLE}"
    if shared in tensors or per_block in tensors:
        relative_bias = "shared" if shared in tensors else "per_block"
        table = shared if shared in tensors else per_block
        rows, heads = shape_of(tensors, table, 2, origin)
    absolute = f"{prefix}pos_embed" in tensors
    positions = shape_of(tensors, f"{prefix}pos_embed", 3, origin)[1] - 1 if absolute else None
    scaled = f"{prefix}blocks.0.gamma_1" in tensors
    mean, std = overrides["mean"], overrides["std"]
    return ViTConfig(
        image_size=image_size_of(patch_size, rows, positions, overrides.get("image_size"), origin),
        patch_size=patch_size,
        in_channels=in_channels,
        width=width,
        depth=depth,
        num_heads=num_heads_of(width, heads, overrides.get("num_heads"), origin),
        mlp_ratio=mlp_ratio,
        absolute_positions=absolute,
        relative_bias=relative_bias,
        # The initial value is not in the file; in the published code it depends on the depth.
        layer_scale=(0.1 if depth < 24 else 1e-5) if scaled else None,
        final_norm=f"{prefix}{norm}.weight" in tensors,
        mean=None if mean is None else three(mean),
        std=None if std is None else three(std),
        init_bound=NO_CUT if prefix else ViTConfig.init_bound,
    )


def image_size_of(
    patch_size: int,
    rows: int | None,
    positions: int | None,
    override: int | tuple[int, int] | None,
    origin: str,
) -> tuple[int, int]:
    """Derive the image size from table rows or absolute positions: square, unless overridden."""
    if override is not None:
        size = size_pair(override)
        Gh, Gw = grid_of(size, patch_size)
        expected_rows = (2 * Gh - 1) * (2 * Gw - 1) + CLS_ROWS
        if rows not in (None, expected_rows) or positions not in (None, Gh * Gw):
            raise ValueError(
                f"image_size {size} is a grid of {Gh} x {Gw} patches of {patch_size}, and the "
                f"positions in {origin} are for another; give the size it was trained at, and "
                "resize the loaded model: beit.nn.position.resized(model, (height, width))"
            )
        return size
    if rows is not None:  # (2g-1)^2, and those of [CLS]
        side = (math.isqrt(max(rows - CLS_ROWS, 0)) + 1) // 2
        square = side > 0 and (2 * side - 1) ** 2 + CLS_ROWS == rows
    else:
        side = math.isqrt(positions or 0)
        square = side > 0 and side**2 == positions
    if not square:
        advice = "give image_size=(height, width)"
        raise SizeUnknownError(f"{origin} is not for square images, or has no positions; {advice}")
    return side * patch_size, side * patch_size


def num_heads_of(width: int, table_heads: int | None, override: int | None, origin: str) -> int:
    """Return the heads of the position table, else the override, else one per 64 channels."""
    if table_heads is not None:
        if override in (None, table_heads):
            return table_heads
        table = f"the position table in {origin}"
        raise ValueError(f"num_heads={override}, but {table} has {table_heads}")
    if override is None and width % CHANNELS_PER_HEAD:
        raise ValueError(
            f"{origin} has width {width}, not a multiple of {CHANNELS_PER_HEAD}, and shapes do not "
            "determine the number of heads; give num_heads=…"
        )
    num_heads = width // CHANNELS_PER_HEAD if override is None else override
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"{origin} has width {width}, not a multiple of num_heads={num_heads}")
    return num_heads


def shape_of(tensors: Mapping[str, Tensor], name: str, ndim: int, origin: str) -> tuple[int, ...]:
    """Return the shape of a required tensor with `ndim` axes."""
    if name not in tensors:
        raise ValueError(f"{origin} has no {name}")
    shape = tuple(tensors[name].shape)
    if len(shape) != ndim or 0 in shape:
        raise ValueError(f"{name} in {origin} is {shape}, expected {ndim} sizes above 0")
    return shape


def count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Count the blocks under `prefix`."""
    names = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    return len({name.split(".")[0] for name in names})


def summary(what: str, vit: ViTConfig, left_out: list[str], more: str = "") -> str:
    """Describe a model and the tensors that were left out, for the log."""
    sizes = f"{vit.width} wide, {vit.depth} blocks, {vit.num_heads} heads"
    images = "images of {} x {}".format(*vit.image_size)
    return "; left out ".join([f"{what} ({sizes}, {images}{more})", *left_out])


def check_overrides(overrides: Mapping[str, Any], known: tuple[str, ...], origin: str) -> None:
    """Refuse overrides that a layout does not have."""
    unknown = [name for name in overrides if name not in known]
    if unknown:
        names, more = ", ".join(unknown), NO_HEAD if "num_classes" in unknown else ""
        raise ValueError(f"{origin} takes no override {names}; expected {', '.join(known)}{more}")

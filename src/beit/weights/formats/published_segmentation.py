"""The checkpoint layout of the published segmentation models: BEiT under mmsegmentation 0.11."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from beit.nn.position import relative_position_index
from beit.nn.segmenter import LAYERS, SegmenterConfig, SemanticSegmenter
from beit.weights.file import assemble
from beit.weights.formats.containers import named_tensors
from beit.weights.formats.names import Rows
from beit.weights.formats.published_config import (
    BACKBONE_OVERRIDES,
    IMAGENET,
    backbone_config,
    check_overrides,
    shape_of,
)
from beit.weights.formats.published_names import (
    INDEX,
    TABLE,
    counted,
    to_ours,
    to_theirs,
    vit_rows,
    without_influence,
)

logger = logging.getLogger(__name__)

CONV_BLOCKS = (
    ("decoder.pooled.#", "decode_head.psp_modules.#.1"),
    ("decoder.bottleneck", "decode_head.bottleneck"),
    ("decoder.lateral.#", "decode_head.lateral_convs.#"),
    ("decoder.smooth.#", "decode_head.fpn_convs.#"),
    ("decoder.fuse", "decode_head.fpn_bottleneck"),
    ("auxiliary.conv", "auxiliary_head.convs.0"),
)
ROWS: Rows = (  # (ours, published)
    *vit_rows("backbone.", "backbone."),
    ("pyramid.up4.#.*", "backbone.fpn1.#.*"),
    ("pyramid.up2.*", "backbone.fpn2.0.*"),
    *((f"{ours}.conv.weight", f"{theirs}.conv.weight") for ours, theirs in CONV_BLOCKS),
    *((f"{ours}.norm.*", f"{theirs}.bn.*") for ours, theirs in CONV_BLOCKS),
    ("decoder.head.*", "decode_head.conv_seg.*"),
    ("auxiliary.head.*", "auxiliary_head.conv_seg.*"),
)
CLASSIFIER = "decode_head.conv_seg.weight"
AUXILIARY_CLASSIFIER = "auxiliary_head.conv_seg.weight"
NEEDED = {CLASSIFIER, "backbone.patch_embed.proj.weight", "backbone.fpn1.0.weight"}
OVERRIDES = (*BACKBONE_OVERRIDES, "layers", "num_classes", "class_names", "palette")
HEADS = ("decoder.head.", "auxiliary.head.")  # what another `num_classes` replaces


def recognises(tensors: Mapping[str, Any]) -> bool:
    """Whether the names are those of a published segmentation model."""
    return tensors.keys() >= NEEDED


def from_published_segmentation(
    state: Mapping[str, Any], *, origin: str = "the state", **overrides: Any
) -> SemanticSegmenter:
    """Build the model that a published segmentation checkpoint holds, in eval mode.

    Args:
        state: tensors by published name, or a checkpoint that has them under `state_dict` and
            names and colours of the classes under `meta`.
        origin: what errors and the log call it, such as the file's name.
        overrides: what shapes cannot tell. `layers`, numbers of four blocks from 1 (4, 6, 8, 12
            at depth 12; 8, 12, 16, 24 at depth 24; needed elsewhere), `num_heads`, `image_size`
            (square unless given), `mean` and `std` (ImageNet's), `class_names`, `palette`.
            Where `num_classes` differs from the file's, both classification layers start anew.
    """
    tensors = named_tensors(state, origin)
    model, about = segmenter_and_about(tensors, origin, overrides, state.get("meta"))
    logger.info("%s: published layout, %s", origin, about)
    return model


def segmenter_and_about(
    tensors: Mapping[str, Tensor],
    origin: str,
    overrides: Mapping[str, Any],
    meta: object = None,
) -> tuple[SemanticSegmenter, str]:
    """Build the segmenter; say what it is and what was left out, for the log."""
    ignored = without_influence(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    config = segmenter_config(tensors, origin, overrides, meta)
    left_out = list(ignored.values())
    ours = to_ours(tensors, ROWS)
    # A count that training alone reads: missing in files that were cleaned, the model is the same.
    for name in [name for name in ours if name.endswith(".running_mean")]:
        ours.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    fresh: list[str] = []
    if config.num_classes != len(tensors[CLASSIFIER]):
        fresh = [name for name in ours if name.startswith(HEADS)]
        ours = {name: tensor for name, tensor in ours.items() if name not in fresh}
        left_out.append(
            f"*.conv_seg.* (of {len(tensors[CLASSIFIER])} classes; new ones of "
            f"{config.num_classes} start near zero)"
        )
    vit = config.backbone
    about = (
        f"a segmenter of {config.num_classes} classes ({vit.width} wide, {vit.depth} blocks, "
        f"{vit.num_heads} heads, images of {vit.image_size[0]} x {vit.image_size[1]}; the pyramid "
        f"reads blocks {', '.join(map(str, config.layers))})"
        + "".join(f"; left out {entry}" for entry in counted(left_out))
    )
    return assemble(SemanticSegmenter, config, ours, origin, fresh), about


def to_published_segmentation(model: SemanticSegmenter) -> dict[str, Tensor]:
    """Give the model's tensors by published name: the inverse of `from_published_segmentation`.

    Complete for mmsegmentation's own strict loader, which wants them under `state_dict`: with the
    position indices. Tensors are shared with the model, not copied.

    Raises:
        ValueError: the model's head is not UPerNet.
    """
    if model.config.head != "upernet":
        raise ValueError(
            f"this segmenter has a {model.config.head} head, and the published layout is UPerNet's "
            "alone; export it as safetensors"
        )
    state = to_theirs(model.state_dict(), ROWS)
    for name in [name for name in state if name.endswith(TABLE)]:
        index = relative_position_index(model.config.backbone.grid)
        state[name.removesuffix(TABLE) + INDEX] = index.to(state[name].device)
    return state


def published_meta(config: SegmenterConfig) -> dict[str, Any]:
    """Give what a published checkpoint says of its classes, for its entry `meta`."""
    return {"CLASSES": config.class_names, "PALETTE": config.palette}


def segmenter_config(
    tensors: Mapping[str, Tensor],
    origin: str,
    overrides: Mapping[str, Any],
    meta: object = None,
) -> SegmenterConfig:
    """Read a segmentation model's configuration off its shapes; names of the classes off `meta`."""
    check_overrides(overrides, OVERRIDES, origin)
    backbone = backbone_config(tensors, "backbone.", "norm", origin, IMAGENET | dict(overrides))
    layers = overrides.get("layers", LAYERS.get(backbone.depth))
    if layers is None:
        raise ValueError(
            f"{origin} has a backbone of depth {backbone.depth}, and shapes do not tell which four "
            "blocks feed the pyramid; give layers=…"
        )
    found, channels = shape_of(tensors, CLASSIFIER, 4, origin)[:2]
    auxiliary = AUXILIARY_CLASSIFIER in tensors
    if auxiliary:
        auxiliary_channels = shape_of(tensors, AUXILIARY_CLASSIFIER, 4, origin)[1]
    else:
        auxiliary_channels = SegmenterConfig.auxiliary_channels
    num_classes = overrides.get("num_classes", found)
    about = meta if isinstance(meta, Mapping) else {}
    class_names = overrides.get("class_names", _class_names(about.get("CLASSES"), num_classes))
    palette = overrides.get("palette", _palette(about.get("PALETTE"), num_classes))
    return SegmenterConfig(
        backbone=backbone,
        num_classes=num_classes,
        layers=tuple(layers),
        channels=channels,
        auxiliary=auxiliary,
        auxiliary_channels=auxiliary_channels,
        class_names=None if class_names is None else tuple(class_names),
        palette=None if palette is None else tuple((r, g, b) for r, g, b in palette),
    )


def _class_names(values: object, num_classes: int) -> tuple[str, ...] | None:
    """Take a checkpoint's names of classes; None where they are for others or no names."""
    if not isinstance(values, list | tuple) or len(values) != num_classes:
        return None
    return tuple(values) if all(isinstance(name, str) for name in values) else None


def _palette(values: object, num_classes: int) -> tuple[tuple[int, int, int], ...] | None:
    """Take a checkpoint's colours of classes; None where they are for others or no colours."""
    if not isinstance(values, list | tuple) or len(values) != num_classes:
        return None
    colours = [tuple(colour) for colour in values if isinstance(colour, list | tuple)]
    fit = all(len(colour) == 3 and set(map(type, colour)) == {int} for colour in colours)
    return tuple(colours) if fit and len(colours) == num_classes else None

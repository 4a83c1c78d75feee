"""The checkpoint layout of the published segmentation models: BEiT under mmsegmentation 0.11."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from beit.nn.segmenter import LAYERS, SegmenterConfig, SemanticSegmenter
from beit.run.settings import from_plain
from beit.weights.assemble import assemble
from beit.weights.formats import published_names as names
from beit.weights.formats.containers import named_tensors
from beit.weights.formats.names import Rows
from beit.weights.formats.published_config import (
    BACKBONE_OVERRIDES,
    IMAGENET,
    backbone_config,
    check_overrides,
    shape_of,
    summary,
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
    *names.vit_rows("backbone.", "backbone."),
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
HEADS = ("decoder.head.", "auxiliary.head.")  # replaced if `num_classes` differs


def recognises(tensors: Mapping[str, Any]) -> bool:
    """Whether the names are those of a published segmentation model."""
    return tensors.keys() >= NEEDED


def from_published_segmentation(
    state: Mapping[str, Any], *, origin: str = "the state", **overrides: Any
) -> SemanticSegmenter:
    """Build the model in a published segmentation checkpoint, in eval mode.

    Args:
        state: tensors by published name, or a checkpoint with them under `state_dict`, and names
            and colours of the classes under `meta`
        overrides: settings that shapes do not determine. `layers`, numbers of four blocks from 1
            (default: 4, 6, 8, 12 at depth 12; 8, 12, 16, 24 at depth 24; else required),
            `num_heads`, `image_size` (default: square), `mean` and `std` (default: ImageNet's),
            `class_names`, `palette`. A different `num_classes` replaces both classification layers.
    """
    tensors = named_tensors(state, origin)
    model, about = segmenter_and_summary(tensors, origin, overrides, state.get("meta"))
    logger.info("%s: published layout, %s", origin, about)
    return model


def segmenter_and_summary(
    tensors: Mapping[str, Tensor], origin: str, overrides: Mapping[str, Any], meta: object = None
) -> tuple[SemanticSegmenter, str]:
    """Build the segmenter; describe it and what was left out, for the log."""
    ignored = names.unused(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    config = segmenter_config(tensors, origin, overrides, meta)
    left_out = list(ignored.values())
    ours = names.to_ours(tensors, ROWS)
    # Files that were cleaned lack this count, which only training reads.
    for name in [name for name in ours if name.endswith(".running_mean")]:
        ours.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    fresh: list[str] = []
    old, new = len(tensors[CLASSIFIER]), config.num_classes
    if old != new:
        fresh = [name for name in ours if name.startswith(HEADS)]
        ours = {name: tensor for name, tensor in ours.items() if name not in fresh}
        left_out.append(
            f"*.conv_seg.* (of {old} classes; replaced by new ones for {new}, near zero)"
        )
    what = f"a segmenter of {new} classes"
    more = f"; the pyramid reads blocks {', '.join(map(str, config.layers))}"
    about = summary(what, config.backbone, names.counted(left_out), more)
    return assemble(SemanticSegmenter, config, ours, origin, fresh), about


def to_published_segmentation(model: SemanticSegmenter) -> dict[str, Tensor]:
    """Return the model's tensors by published name: the inverse of `from_published_segmentation`.

    mmsegmentation can load them strictly, under `state_dict`: the position indices are included.
    Tensors are shared with the model, not copied.
    """
    if model.config.head != "upernet":
        raise ValueError(
            f"this segmenter has a {model.config.head} head, and the published layout has UPerNet "
            "only; export it as safetensors"
        )
    state = names.to_theirs(model.state_dict(), ROWS)
    names.add_indices(state, model.config.backbone.grid)
    return state


def published_meta(config: SegmenterConfig) -> dict[str, Any]:
    """Return names and colours of the classes, for the entry `meta` of a published checkpoint."""
    return {"CLASSES": config.class_names, "PALETTE": config.palette}


def segmenter_config(
    tensors: Mapping[str, Tensor], origin: str, overrides: Mapping[str, Any], meta: object = None
) -> SegmenterConfig:
    """Derive the configuration from shapes, and names and colours of the classes from `meta`."""
    check_overrides(overrides, OVERRIDES, origin)
    backbone = backbone_config(tensors, "backbone.", "norm", origin, IMAGENET | dict(overrides))
    layers = overrides.get("layers", LAYERS.get(backbone.depth))
    if layers is None:
        raise ValueError(
            f"{origin} has a backbone of depth {backbone.depth}; shapes do not determine which "
            "four blocks feed the pyramid; give layers=…"
        )
    num_rows, channels = shape_of(tensors, CLASSIFIER, 4, origin)[:2]
    auxiliary = AUXILIARY_CLASSIFIER in tensors
    auxiliary_channels = SegmenterConfig.auxiliary_channels
    if auxiliary:
        auxiliary_channels = shape_of(tensors, AUXILIARY_CLASSIFIER, 4, origin)[1]
    num_classes = overrides.get("num_classes", num_rows)
    about = meta if isinstance(meta, Mapping) else {}
    labels = _per_class(str, about.get("CLASSES"), num_classes)
    colours = _per_class(tuple[int, int, int], about.get("PALETTE"), num_classes)
    class_names, palette = overrides.get("class_names", labels), overrides.get("palette", colours)
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


def _per_class(hint: Any, values: object, num_classes: int) -> tuple[Any, ...] | None:
    """Return an entry of `meta`; None if it does not have one value of this type per class."""
    if not isinstance(values, list | tuple) or len(values) != num_classes:
        return None
    plain = [list(value) if isinstance(value, tuple) else value for value in values]
    try:
        return tuple(from_plain(hint, value, "meta") for value in plain)
    except ValueError:
        return None

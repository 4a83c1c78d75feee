"""The checkpoint layouts of the published BEiT v1 and v2 code: tokenizers, pretrained, fine-tuned.

Names are translated in both directions by the tables in `published_names`; `published_config`
derives the sizes from the shapes.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from beit.nn.heads import ImageClassifier
from beit.nn.mim import MaskedImageModel
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.tokenizer import VQKD
from beit.nn.vit import VisionTransformer
from beit.run.settings import first
from beit.weights.assemble import HEAD, assemble, config_of_vit
from beit.weights.formats import published_names as names
from beit.weights.formats.containers import named_tensors
from beit.weights.formats.names import Rows
from beit.weights.formats.published_config import (
    CHANNELS_PER_HEAD,
    classifier_config,
    mim_config,
    summary,
    vit_config,
    vqkd_config,
)
from beit.weights.formats.published_segmentation import to_published_segmentation
from beit.wording import an

logger = logging.getLogger(__name__)

Model = VQKD | MaskedImageModel | ImageClassifier | VisionTransformer


class Kind(NamedTuple):
    """A kind of model in the published layouts, and how to read it."""

    model: type[Any]
    needed: set[str]  # names that identify it
    config: Callable[[Mapping[str, Tensor], str, Mapping[str, Any]], Any]
    rows: Rows
    what: str  # in words, with the fields of its configuration


BACKBONE_KEYS = {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.q_bias"}
VQKD_KEYS = {"encoder.patch_embed.proj.weight", "quantize.embedding.weight"}
MIM_KEYS, CLASSIFIER_KEYS = BACKBONE_KEYS | {"lm_head.weight"}, BACKBONE_KEYS | {"head.weight"}
CLASSIFIER = "a classifier of {.num_classes} classes"
MIM = "a pretraining model with {.head_layers} aggregation blocks"
KINDS = (  # the first one whose names are all there is used
    Kind(VQKD, VQKD_KEYS, vqkd_config, names.VQKD_ROWS, "a VQ-KD tokenizer of {.num_codes} codes"),
    Kind(MaskedImageModel, MIM_KEYS, mim_config, names.MIM_ROWS, MIM),
    Kind(ImageClassifier, CLASSIFIER_KEYS, classifier_config, names.CLASSIFIER_ROWS, CLASSIFIER),
    Kind(VisionTransformer, BACKBONE_KEYS, vit_config, names.BACKBONE_ROWS, "a backbone"),
)


def recognises(tensors: Mapping[str, Any]) -> bool:
    """Whether the names are those of a published tokenizer or BEiT, with or without a head."""
    return tensors.keys() >= VQKD_KEYS or tensors.keys() >= BACKBONE_KEYS


def from_published(
    state: Mapping[str, Any], *, origin: str = "the state", **overrides: Any
) -> Model:
    """Build the model in a published checkpoint, in eval mode.

    Args:
        state: tensors by published name, or a checkpoint with them under `model`, `module` or
            `state_dict`
        origin: name of the file in errors and the log, here and in the other layouts
        overrides: settings that shapes do not determine. `num_heads` (default: that of a position
            table, else one per 64 channels), `image_size` (default: square), `mean` and `std`
            (default: 0.5 for a tokenizer, ImageNet's for the others), `early_layers` of a
            pretraining model (default: 9 at depth 12, 21 at depth 24; else required), `decay` of a
            tokenizer's codebook, `class_names`. A different `num_classes` replaces a classifier's
            head.
    """
    model, about = model_and_summary(named_tensors(state, origin), origin, overrides)
    logger.info("%s: published layout, %s", origin, about)
    return model


def model_and_summary(
    tensors: Mapping[str, Tensor], origin: str, overrides: Mapping[str, Any]
) -> tuple[Model, str]:
    """Build the model of `from_published`; describe it and what was left out, for the log."""
    ignored = names.unused(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    left_out = names.counted(ignored.values())
    kind = next((kind for kind in KINDS if tensors.keys() >= kind.needed), None)
    if kind is None:
        raise ValueError(
            f"{origin} is in no known layout; expected a published VQ-KD tokenizer "
            "(encoder.*, quantize.embedding.weight) or BEiT (patch_embed.*, blocks.*.attn.q_bias), "
            f"got {first(list(tensors)) or 'nothing'}"
        )
    config = kind.config(tensors, origin, overrides)
    fresh: Collection[str] = ()
    if kind.model is ImageClassifier and config.num_classes != len(tensors["head.weight"]):
        old, new, fresh = len(tensors["head.weight"]), config.num_classes, HEAD
        left_out.append(f"head.* (of {old} classes; replaced by a new one for {new}, near zero)")
        tensors = {name: tensor for name, tensor in tensors.items() if name not in HEAD}
    if kind.model is VQKD:  # files that were cleaned lack the counts, which only training reads
        zeros = torch.zeros(len(tensors["quantize.embedding.weight"]))
        tensors = {names.COUNTS: zeros, **tensors}
        if names.INITTED in tensors:
            tensors[names.INITTED] = tensors[names.INITTED].reshape(()) != 0
    ours = names.to_ours(tensors, kind.rows)
    model: Model = assemble(kind.model, config, ours, origin, fresh, kind.rows)
    vit = config_of_vit(config)
    assert vit is not None
    known = kind.model is VQKD and vit.width == 768  # all published tokenizers have 12 heads
    if vit.relative_bias == "none" and not known and "num_heads" not in overrides:
        logger.warning(
            "%s does not say its number of heads; taken as %d, of %d channels each. If it has "
            "another, give num_heads",
            origin,
            vit.num_heads,
            CHANNELS_PER_HEAD,
        )
    return model, summary(kind.what.format(config), vit, left_out)


def to_published(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's tensors by published name: the inverse of `from_published`.

    The published code can load them strictly: the tensors that it never reads and the position
    indices are included. Tensors are shared with the model, not copied.
    """
    if isinstance(model, SemanticSegmenter):
        return to_published_segmentation(model)
    kind = next((kind for kind in KINDS if kind.model is type(model)), None)
    if kind is None:
        raise ValueError(
            f"{an(type(model).__name__)} has no published BEiT layout; expected a VQKD, a "
            "MaskedImageModel, an ImageClassifier, a SemanticSegmenter or a VisionTransformer"
        )
    if isinstance(model, VQKD) and not model.config.l2_normalised:
        raise ValueError(
            "this tokenizer's codes are not l2-normalised, as the published layout requires; "
            "export it as safetensors"
        )
    if isinstance(model, MaskedImageModel) and model.config.predicts != "tokens":
        raise ValueError(
            f"this pretraining model predicts {model.config.predicts}, and the published "
            "layout has a head for tokens only; export its backbone (beit.load_backbone, "
            "beit export --part backbone)"
        )
    vit = config_of_vit(model.config)
    assert vit is not None
    state = names.to_theirs(model.state_dict(), kind.rows)
    names.add_indices(state, vit.grid)
    if isinstance(model, VQKD):
        codebook = model.quantizer.codebook
        state[names.INITTED] = state[names.INITTED].float().reshape(1)
        state |= zip(names.STALE, (torch.zeros_like(codebook[:, 0]), codebook.clone()), strict=True)
    return state

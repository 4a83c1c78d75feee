"""The checkpoint layouts of the published BEiT v1 and v2 code: tokenizers, pretrained, fine-tuned.

Names are translated in both directions by the tables in `published_names`; `published_config`
derives the sizes from the shapes.
"""

import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from beit.nn.heads import ImageClassifier
from beit.nn.mim import MaskedImageModel
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.tokenizer import VQKD
from beit.nn.vit import VisionTransformer
from beit.run.settings import first
from beit.weights.file import HEAD, assemble, config_of_vit
from beit.weights.formats.containers import named_tensors
from beit.weights.formats.published_config import (
    BACKBONE_OVERRIDES,
    IMAGENET,
    backbone_config,
    check_overrides,
    classifier_config,
    mim_config,
    summary,
    vqkd_config,
)
from beit.weights.formats.published_names import (
    BACKBONE_ROWS,
    CLASSIFIER_ROWS,
    COUNTS,
    INITTED,
    MIM_ROWS,
    STALE,
    VQKD_ROWS,
    add_indices,
    counted,
    to_ours,
    to_theirs,
    unused,
)
from beit.weights.formats.published_segmentation import to_published_segmentation

logger = logging.getLogger(__name__)

Model = VQKD | MaskedImageModel | ImageClassifier | VisionTransformer

# Names that identify the kinds; the first kind whose names are all there is used.
VQKD_KEYS = {"encoder.patch_embed.proj.weight", "quantize.embedding.weight"}
BACKBONE_KEYS = {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.q_bias"}
MIM_KEYS = BACKBONE_KEYS | {"lm_head.weight"}
CLASSIFIER_KEYS = BACKBONE_KEYS | {"head.weight"}
ROWS = {
    VQKD: VQKD_ROWS,
    MaskedImageModel: MIM_ROWS,
    ImageClassifier: CLASSIFIER_ROWS,
    VisionTransformer: BACKBONE_ROWS,
}


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
        origin: name of the file in errors and the log
        overrides: settings that shapes do not determine. `num_heads` (default: that of a position
            table, else one per 64 channels), `image_size` (default: square), `mean` and `std`
            (default: 0.5 for a tokenizer, ImageNet's for the others), `early_layers` of a
            pretraining model (default: 9 at depth 12, 21 at depth 24; else required), `decay` of a
            tokenizer's codebook, `class_names`. A different `num_classes` replaces a classifier's
            head.

    Raises:
        ValueError: names, shapes or overrides do not fit such a model.
    """
    model, about = model_and_summary(named_tensors(state, origin), origin, overrides)
    logger.info("%s: published layout, %s", origin, about)
    return model


def model_and_summary(
    tensors: Mapping[str, Tensor], origin: str, overrides: Mapping[str, Any]
) -> tuple[Model, str]:
    """Build the model of `from_published`; describe it and what was left out, for the log."""
    ignored = unused(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    left_out = counted(ignored.values())
    if tensors.keys() >= VQKD_KEYS:
        vqkd = vqkd_config(tensors, origin, overrides)
        about = summary(f"a VQ-KD tokenizer of {vqkd.num_codes} codes", vqkd.encoder, left_out)
        return assemble(VQKD, vqkd, _tokenizer_tensors(tensors), origin), about
    if tensors.keys() >= MIM_KEYS:
        mim = mim_config(tensors, origin, overrides)
        what = f"a pretraining model with {mim.head_layers} aggregation blocks"
        ours = to_ours(tensors, MIM_ROWS)
        model = assemble(MaskedImageModel, mim, ours, origin)
        return model, summary(what, mim.backbone, left_out)
    if tensors.keys() >= CLASSIFIER_KEYS:
        classifier = classifier_config(tensors, origin, overrides)
        fresh: Collection[str] = ()
        new, old = classifier.num_classes, len(tensors["head.weight"])
        if new != old:
            fresh = HEAD
            left_out.append(
                f"head.* (of {old} classes; replaced by a new one for {new}, near zero)"
            )
            tensors = {name: tensor for name, tensor in tensors.items() if name not in HEAD}
        ours = to_ours(tensors, CLASSIFIER_ROWS)
        head = assemble(ImageClassifier, classifier, ours, origin, fresh)
        return head, summary(f"a classifier of {new} classes", classifier.backbone, left_out)
    if tensors.keys() >= BACKBONE_KEYS:
        check_overrides(overrides, BACKBONE_OVERRIDES, origin)
        vit = backbone_config(tensors, "", "norm", origin, IMAGENET | dict(overrides))
        ours = to_ours(tensors, BACKBONE_ROWS)
        return assemble(VisionTransformer, vit, ours, origin), summary("a backbone", vit, left_out)
    raise ValueError(
        f"{origin} is in no known layout; expected a published VQ-KD tokenizer "
        "(encoder.*, quantize.embedding.weight) or BEiT (patch_embed.*, blocks.*.attn.q_bias), "
        f"got {first(list(tensors)) or 'nothing'}"
    )


def to_published(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's tensors by published name: the inverse of `from_published`.

    The published code can load them strictly: the tensors that it never reads and the position
    indices are included. Tensors are shared with the model, not copied.

    Raises:
        ValueError: the published layouts have no such model.
    """
    if isinstance(model, SemanticSegmenter):
        return to_published_segmentation(model)
    if type(model) not in ROWS:
        raise ValueError(
            f"a {type(model).__name__} has no published BEiT layout; expected a VQKD, a "
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
    state = to_theirs(model.state_dict(), ROWS[type(model)])
    add_indices(state, vit.grid)
    if isinstance(model, VQKD):
        codebook = model.quantizer.codebook
        state[INITTED] = state[INITTED].float().reshape(1)
        state |= zip(STALE, (torch.zeros_like(codebook[:, 0]), codebook.clone()), strict=True)
    return state


def _tokenizer_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a tokenizer's tensors to our names.

    Files that were cleaned lack the counts of codes, which do not change what the model computes.
    """
    num_codes = len(tensors["quantize.embedding.weight"])
    ours = to_ours({COUNTS: torch.zeros(num_codes)} | dict(tensors), VQKD_ROWS)
    if INITTED in tensors:
        ours["quantizer.initialised"] = tensors[INITTED].reshape(()) != 0
    return ours

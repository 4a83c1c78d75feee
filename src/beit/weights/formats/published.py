"""The checkpoint layouts of the published BEiT v1 and v2 code: tokenizers, pretrained, fine-tuned.

Names are translated by the tables in `published_names`, in both directions; sizes are read off the
shapes in `published_config`.
"""

import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from beit.nn.heads import ImageClassifier
from beit.nn.mim import MaskedImageModel
from beit.nn.position import relative_position_index
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.tokenizer import VQKD
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.run.settings import first
from beit.weights.file import HEAD, assemble
from beit.weights.formats.containers import named_tensors
from beit.weights.formats.published_config import (
    BACKBONE_OVERRIDES,
    IMAGENET,
    backbone_config,
    check_overrides,
    classifier_config,
    mim_config,
    vqkd_config,
)
from beit.weights.formats.published_names import (
    BACKBONE_ROWS,
    CLASSIFIER_ROWS,
    COUNTS,
    INDEX,
    INITTED,
    MIM_ROWS,
    STALE,
    TABLE,
    VQKD_ROWS,
    counted,
    to_ours,
    to_theirs,
    without_influence,
)
from beit.weights.formats.published_segmentation import to_published_segmentation

logger = logging.getLogger(__name__)

Model = VQKD | MaskedImageModel | ImageClassifier | VisionTransformer

# What tells the kinds apart; the first that is all there counts.
VQKD_KEYS = {"encoder.patch_embed.proj.weight", "quantize.embedding.weight"}
BACKBONE_KEYS = {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.q_bias"}
MIM_KEYS = BACKBONE_KEYS | {"lm_head.weight"}
CLASSIFIER_KEYS = BACKBONE_KEYS | {"head.weight"}


def recognises(tensors: Mapping[str, Any]) -> bool:
    """Whether the names are those of a published tokenizer or BEiT, with or without a head."""
    return tensors.keys() >= VQKD_KEYS or tensors.keys() >= BACKBONE_KEYS


def from_published(
    state: Mapping[str, Any], *, origin: str = "the state", **overrides: Any
) -> Model:
    """Build the model that a published checkpoint holds, in eval mode.

    Args:
        state: tensors by published name, or a checkpoint that has them under `model`, `module` or
            `state_dict`.
        origin: what errors and the log call it, such as the file's name.
        overrides: what shapes cannot tell. `num_heads` (64 channels a head unless a position table
            or this says otherwise), `image_size` (square unless given), `mean` and `std` ([-1, 1]
            for a tokenizer, ImageNet's for the others), `early_layers` of a pretraining model (9 at
            depth 12, 21 at depth 24; needed elsewhere), `decay` of a tokenizer's codebook,
            `class_names`. Where `num_classes` differs from a classifier's, its head is left out.

    Raises:
        ValueError: the names are of no such model, or names, shapes and overrides contradict.
    """
    model, about = model_and_about(named_tensors(state, origin), origin, overrides)
    logger.info("%s: published layout, %s", origin, about)
    return model


def model_and_about(
    tensors: Mapping[str, Tensor], origin: str, overrides: Mapping[str, Any]
) -> tuple[Model, str]:
    """Build the model of `from_published`; say what it is and what was left out, for the log."""
    ignored = without_influence(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    left_out = counted(ignored.values())
    if tensors.keys() >= VQKD_KEYS:
        vqkd = vqkd_config(tensors, origin, overrides)
        about = _about(f"a VQ-KD tokenizer of {vqkd.num_codes} codes", vqkd.encoder, left_out)
        return assemble(VQKD, vqkd, _tokenizer_tensors(tensors), origin), about
    if tensors.keys() >= MIM_KEYS:
        mim = mim_config(tensors, origin, overrides)
        what = f"a pretraining model with {mim.head_layers} aggregation blocks"
        ours = to_ours(tensors, MIM_ROWS)
        return assemble(MaskedImageModel, mim, ours, origin), _about(what, mim.backbone, left_out)
    if tensors.keys() >= CLASSIFIER_KEYS:
        classifier = classifier_config(tensors, origin, overrides)
        fresh: Collection[str] = ()
        if classifier.num_classes != len(tensors["head.weight"]):
            fresh = HEAD
            found, wanted = len(tensors["head.weight"]), classifier.num_classes
            left_out.append(f"head.* (of {found} classes; a new one of {wanted} starts near zero)")
            tensors = {name: tensor for name, tensor in tensors.items() if name not in HEAD}
        what = f"a classifier of {classifier.num_classes} classes"
        ours = to_ours(tensors, CLASSIFIER_ROWS)
        model = assemble(ImageClassifier, classifier, ours, origin, fresh)
        return model, _about(what, classifier.backbone, left_out)
    if tensors.keys() >= BACKBONE_KEYS:
        check_overrides(overrides, BACKBONE_OVERRIDES, origin)
        vit = backbone_config(tensors, "", "norm", origin, IMAGENET | dict(overrides))
        ours = to_ours(tensors, BACKBONE_ROWS)
        return assemble(VisionTransformer, vit, ours, origin), _about("a backbone", vit, left_out)
    raise ValueError(
        f"{origin} is in no known layout; expected a published VQ-KD tokenizer "
        "(encoder.*, quantize.embedding.weight) or BEiT (patch_embed.*, blocks.*.attn.q_bias), "
        f"got {first(list(tensors)) or 'nothing'}"
    )


def to_published(model: nn.Module) -> dict[str, Tensor]:
    """Give the model's tensors by published name: the inverse of `from_published`.

    Complete for the published code's own strict loader: with the tensors it never reads and the
    position indices. Tensors are shared with the model, not copied.

    Raises:
        ValueError: there is no published layout for such a model.
    """
    if isinstance(model, SemanticSegmenter):
        return to_published_segmentation(model)
    if isinstance(model, VQKD):
        if not model.config.l2_normalised:
            raise ValueError(
                "this tokenizer's codes are not on the sphere (l2_normalised is false), and the "
                "published layout has no other; export it as safetensors"
            )
        rows, grid = VQKD_ROWS, model.grid
    elif isinstance(model, MaskedImageModel):
        if model.config.predicts != "tokens":
            raise ValueError(
                f"this pretraining model predicts {model.config.predicts}, and the published "
                "layout has a head for tokens only; take its backbone alone (beit.load_backbone, "
                "beit export --part backbone)"
            )
        rows, grid = MIM_ROWS, model.config.backbone.grid
    elif isinstance(model, ImageClassifier):
        rows, grid = CLASSIFIER_ROWS, model.config.backbone.grid
    elif isinstance(model, VisionTransformer):
        rows, grid = BACKBONE_ROWS, model.config.grid
    else:
        raise ValueError(
            f"a {type(model).__name__} has no published BEiT layout; expected a VQKD, a "
            "MaskedImageModel, an ImageClassifier, a SemanticSegmenter or a VisionTransformer"
        )
    state = to_theirs(model.state_dict(), rows)
    for name in [name for name in state if name.endswith(TABLE)]:
        device = state[name].device
        state[name.removesuffix(TABLE) + INDEX] = relative_position_index(grid).to(device)
    if isinstance(model, VQKD):
        codebook = model.quantizer.codebook
        state[INITTED] = state[INITTED].float().reshape(1)
        state |= zip(STALE, (torch.zeros_like(codebook[:, 0]), codebook.clone()), strict=True)
    return state


def _tokenizer_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a tokenizer's tensors our names.

    Its counts of codes are bookkeeping: missing in files that were cleaned, the model is the same.
    """
    num_codes = len(tensors["quantize.embedding.weight"])
    ours = to_ours({COUNTS: torch.zeros(num_codes)} | dict(tensors), VQKD_ROWS)
    if INITTED in tensors:
        ours["quantizer.initialised"] = tensors[INITTED].reshape(()) != 0
    return ours


def _about(what: str, vit: ViTConfig, left_out: list[str]) -> str:
    height, width = vit.image_size
    return (
        f"{what} ({vit.width} wide, {vit.depth} blocks, {vit.num_heads} heads, images of "
        f"{height} x {width}){''.join(f'; left out {entry}' for entry in left_out)}"
    )

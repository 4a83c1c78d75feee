"""OpenMMLab mmpretrain's BEiT: pretraining of versions 1 and 2, classification, backbone.

Names are translated to and from those of the published code by the tables below; the reader of the
published layouts does the rest. Facts are from mmpretrain 1.2.0.
"""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from beit.nn.heads import ImageClassifier
from beit.nn.mim import MaskedImageModel
from beit.nn.vit import VisionTransformer
from beit.run.settings import first
from beit.weights.formats.names import Architecture, Rows, to_published_names, translated
from beit.weights.formats.published import model_and_summary, to_published
from beit.weights.formats.published_names import INDEX, TABLE
from beit.wording import an

logger = logging.getLogger(__name__)


def _block_rows(published: str, theirs: str) -> Rows:
    """Return the rows of blocks with these prefixes."""
    return (
        (f"{published}gamma_#", f"{theirs}gamma_#"),
        (f"{published}norm#.*", f"{theirs}ln#.*"),
        (f"{published}attn.*", f"{theirs}attn.*"),
        (f"{published}mlp.fc1.*", f"{theirs}ffn.layers.0.0.*"),
        (f"{published}mlp.fc2.*", f"{theirs}ffn.layers.1.*"),
    )


# (published, mmpretrain's)
BACKBONE: Rows = (
    ("cls_token", "backbone.cls_token"),
    ("pos_embed", "backbone.pos_embed"),
    ("patch_embed.proj.*", "backbone.patch_embed.projection.*"),
    (f"rel_pos_bias.{TABLE}", f"backbone.rel_pos_bias.{TABLE}"),
    (f"rel_pos_bias.{INDEX}", f"backbone.rel_pos_bias.{INDEX}"),
    *_block_rows("blocks.#.", "backbone.layers.#."),
)
BARE: Rows = (*BACKBONE, ("norm.*", "backbone.ln1.*"))
CLASSIFIER: Rows = (*BARE, ("fc_norm.*", "backbone.ln2.*"), ("head.*", "head.fc.*"))
PRETRAINING = (("mask_token", "backbone.mask_token"), ("lm_head.*", "head.cls_head.*"))
MASKED: Rows = (*BARE, *PRETRAINING)
AGGREGATING: Rows = (  # version 2: the final norm is in the neck
    *BACKBONE,
    *PRETRAINING,
    ("norm.*", "neck.norm.*"),
    *_block_rows("cls_pt_layers.#.", "neck.patch_aggregation.#."),
)
ARCHITECTURES = {  # by a name that only this one has
    "neck.norm.weight": Architecture("BEiT of version 2, for pretraining", AGGREGATING),
    "head.cls_head.weight": Architecture("BEiT of version 1, for pretraining", MASKED),
    "head.fc.weight": Architecture("classifier with a BEiT", CLASSIFIER),
}
IGNORED = ("backbone.mask_token", "backbone.ln2.")  # ln2 norms the mean of the patches
BACKBONE_ALONE = Architecture("BEiT backbone", BARE, IGNORED)
# The tokenizer of pretraining, and the normalisation of its input.
TARGETS = ("target_generator.", "data_preprocessor.")
FIRST_LAYER = "layers.0.ffn.layers.0.0.weight"
TOKENIZER = f"encoder.{FIRST_LAYER}"
Q_BIAS = "layers.0.attn.q_bias"  # other ViTs of mmpretrain have one bias for all three


def recognises(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of mmpretrain's BEiT: alone, in a model, or of its tokenizer."""
    return any(
        {f"{prefix}{FIRST_LAYER}", f"{prefix}{Q_BIAS}"} <= tensors.keys()
        for prefix in ("backbone.", "", "encoder.")
    )


def from_mmpretrain(
    tensors: Mapping[str, Tensor], *, origin: str = "the state", **overrides: Any
) -> MaskedImageModel | ImageClassifier | VisionTransformer:
    """Build the model from the tensors of mmpretrain's BEiT, in eval mode.

    Args:
        tensors: by mmpretrain's names; the tokenizer in a pretraining checkpoint is left out, since
            it has no decoder
        overrides: as for the published layouts; mean and std default to ImageNet's (mmpretrain's
            classifiers of version 1 need 0.5 for both)
    """
    if TOKENIZER in tensors:
        raise ValueError(
            f"{origin} is mmpretrain's VQ-KD, which has the encoder and the codebook only; a "
            "tokenizer here needs the decoder, so load the published file it was converted from"
        )
    if FIRST_LAYER in tensors:
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    heads = (known for name, known in ARCHITECTURES.items() if name in tensors)
    architecture = next(heads, BACKBONE_ALONE)
    left_out = [name for name in tensors if name.startswith((*TARGETS, *architecture.ignored))]
    rest = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    published = to_published_names(rest, architecture, "mmpretrain", origin)
    where = f"{origin} (mmpretrain's {architecture.name}, by published names)"
    model, about = model_and_summary(published, where, overrides)
    # A tokenizer has hundreds of tensors.
    groups = {f"{name.split('.')[0]}.*" if name.startswith(TARGETS) else name for name in left_out}
    notes = [f"left out {', '.join(sorted(groups))}"] if groups else []
    logger.info("%s: mmpretrain's %s, %s", origin, architecture.name, "; ".join([about, *notes]))
    assert isinstance(model, MaskedImageModel | ImageClassifier | VisionTransformer)
    return model


def to_mmpretrain(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's tensors by mmpretrain's names: the inverse of `from_mmpretrain`.

    The position indices that strict loading needs are included. Tensors are shared with the model.
    """
    if isinstance(model, MaskedImageModel):
        rows = AGGREGATING if model.config.head_layers else MASKED
    elif isinstance(model, ImageClassifier):
        rows = CLASSIFIER
    elif isinstance(model, VisionTransformer):
        rows = BARE
    else:
        known = "a MaskedImageModel, an ImageClassifier or a VisionTransformer"
        kind = type(model).__name__
        raise ValueError(f"mmpretrain has no BEiT that is {an(kind)}; expected {known}")
    published = to_published(model)
    names = translated(published, rows)
    missing = [name for name in published if name not in names]
    if missing:
        raise ValueError(f"mmpretrain's BEiT has no place for {first(missing)}")
    return {names[name]: tensor for name, tensor in published.items()}

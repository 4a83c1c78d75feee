"""OpenMMLab mmpretrain's BEiT: pretraining of versions 1 and 2, classification, backbone.

Its names are translated by the tables below to those of the published code, in both directions, and
the rest is left to the reader of those. Facts were taken from mmpretrain 1.2.0.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from beit.nn.heads import ImageClassifier
from beit.nn.mim import MaskedImageModel
from beit.nn.vit import VisionTransformer
from beit.run.settings import first
from beit.weights.formats.names import Rows, translated, turned
from beit.weights.formats.published import model_and_about, to_published
from beit.weights.formats.published_names import INDEX, TABLE

logger = logging.getLogger(__name__)


def _block_rows(published: str, theirs: str) -> Rows:
    """Return the rows of blocks, whose names begin so."""
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
CLASSIFIER: Rows = (
    *BACKBONE,
    ("norm.*", "backbone.ln1.*"),
    ("fc_norm.*", "backbone.ln2.*"),
    ("head.*", "head.fc.*"),
)
MASKED: Rows = (
    *BACKBONE,
    ("mask_token", "backbone.mask_token"),
    ("norm.*", "backbone.ln1.*"),
    ("lm_head.*", "head.cls_head.*"),
)
AGGREGATING: Rows = (  # version 2: the norm is the neck's
    *BACKBONE,
    ("mask_token", "backbone.mask_token"),
    ("norm.*", "neck.norm.*"),
    *_block_rows("cls_pt_layers.#.", "neck.patch_aggregation.#."),
    ("lm_head.*", "head.cls_head.*"),
)
BARE: Rows = (*BACKBONE, ("norm.*", "backbone.ln1.*"))


class Kind(NamedTuple):
    """What a checkpoint holds: in words, the rows of its names, what ours has no place for."""

    name: str
    rows: Rows
    ignored: tuple[str, ...] = ()


KINDS = {
    "neck.norm.weight": Kind("BEiT of version 2, for pretraining", AGGREGATING),
    "head.cls_head.weight": Kind("BEiT of version 1, for pretraining", MASKED),
    "head.fc.weight": Kind("classifier with a BEiT", CLASSIFIER),
}
BACKBONE_ALONE = Kind(
    "BEiT backbone",
    BARE,
    ("backbone.mask_token", "backbone.ln2."),  # ln2 norms the mean of the patches
)
TARGETS = ("target_generator.", "data_preprocessor.")  # what pretraining predicts; of the input
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
    """Build the model that a checkpoint of mmpretrain's BEiT holds, in eval mode.

    Args:
        tensors: by mmpretrain's names; the tokenizer that a pretraining checkpoint carries along is
            left out, since there it has no decoder
        origin: what errors and the log call it, such as the file's name
        overrides: as for the published layouts; mean and std are ImageNet's unless given
            (mmpretrain's classifiers of version 1 want 0.5 for both)

    Raises:
        ValueError: names or shapes do not fit, or it is the tokenizer alone.
    """
    if TOKENIZER in tensors:
        raise ValueError(
            f"{origin} is mmpretrain's VQ-KD, which is the encoder and the codebook only, and a "
            "tokenizer here has a decoder; load the published file that it was made from"
        )
    if FIRST_LAYER in tensors:
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    kind = next((kind for key, kind in KINDS.items() if key in tensors), BACKBONE_ALONE)
    left_out = [name for name in tensors if name.startswith((*TARGETS, *kind.ignored))]
    rest = [name for name in tensors if name not in left_out]
    names = translated(rest, turned(kind.rows))
    unknown = [name for name in rest if name not in names]
    if unknown:
        raise ValueError(
            f"{origin} is taken for mmpretrain's {kind.name}, which has no {first(unknown)}"
        )
    published = {names[name]: tensors[name] for name in rest}
    where = f"{origin} (mmpretrain's {kind.name}, by published names)"
    model, about = model_and_about(published, where, overrides)
    groups = {_group(name) for name in left_out}
    notes = [f"left out {', '.join(sorted(groups))}"] if groups else []
    logger.info("%s: mmpretrain's %s, %s", origin, kind.name, "; ".join([about, *notes]))
    assert isinstance(model, MaskedImageModel | ImageClassifier | VisionTransformer)
    return model


def to_mmpretrain(model: nn.Module) -> dict[str, Tensor]:
    """Give a model's tensors by mmpretrain's names: the inverse of `from_mmpretrain`.

    With the position indices that its strict loader asks for. Tensors are shared with the model.

    Raises:
        ValueError: mmpretrain has no such model.
    """
    if isinstance(model, MaskedImageModel):
        rows = AGGREGATING if model.config.head_layers else MASKED
    elif isinstance(model, ImageClassifier):
        rows = CLASSIFIER
    elif isinstance(model, VisionTransformer):
        rows = BARE
    else:
        raise ValueError(
            f"mmpretrain has no BEiT that is a {type(model).__name__}; expected a "
            "MaskedImageModel, an ImageClassifier or a VisionTransformer"
        )
    published = to_published(model)
    names = translated(published, rows)
    missing = [name for name in published if name not in names]
    if missing:
        raise ValueError(f"mmpretrain's BEiT has no place for {first(missing)}")
    return {names[name]: tensor for name, tensor in published.items()}


def _group(name: str) -> str:
    """Sum up what is left out by the hundred: `target_generator.*`."""
    return f"{name.split('.')[0]}.*" if name.startswith(TARGETS) else name

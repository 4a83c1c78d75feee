"""Initialise a classifier or segmenter from another model: backbone, norm, head or decoder."""

import logging
from collections.abc import Sequence

import torch
from torch import nn

from beit.data.class_names import Match, match_classes, spelled
from beit.data.imagenet_names import in_one_language
from beit.nn.heads import ImageClassifier
from beit.nn.position import resized, with_bias_per_block
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.tokenizer import VQKD
from beit.nn.vit import VisionTransformer
from beit.weights.assemble import HEAD
from beit.weights.open import required_backbone
from beit.wording import an

logger = logging.getLogger(__name__)

READS = {"mean": "the mean patch", "cls": "[CLS]"}  # by the pooling of a classifier


def backbone_for_finetuning(
    source: nn.Module, origin: str, image_size: tuple[int, int] | None
) -> VisionTransformer:
    """Return the backbone of `source`, with a bias per block and positions for `image_size`."""
    backbone = required_backbone(source, origin)
    if backbone.config.relative_bias == "shared":
        backbone = with_bias_per_block(backbone)
    return backbone if image_size is None else resized(backbone, image_size)


def carry_backbone(source: VisionTransformer, target: VisionTransformer, origin: str) -> None:
    """Copy a backbone's weights; only the final norm may be missing in one of the two."""
    missing, unexpected = target.load_state_dict(source.state_dict(), strict=False)
    assert all(name.startswith("norm.") for name in [*missing, *unexpected])
    if unexpected:
        logger.info("%s: its final norm is left out, since the model does not use it", origin)
    if missing:
        logger.info("%s: it has no final norm; a new one is initialised", origin)


def carry_norm(source: nn.Module, target: ImageClassifier) -> None:
    """Copy the norm before the head, if the classifier pools the mean and the source has this norm.

    A classifier with mean pooling has it and, as in the published code, a VQ-KD tokenizer (the
    final norm of its encoder). The final norm of a pretrained model is not used
    (docs/reference/tokenizer.md, "Architecture"; docs/reference/finetuning.md, "Checkpoint keys").
    """
    norm = source.fc_norm if isinstance(source, ImageClassifier) else None
    if isinstance(source, VQKD) and isinstance(source.encoder.norm, nn.LayerNorm):
        norm = source.encoder.norm
    if norm is not None and target.fc_norm is not None:
        target.fc_norm.load_state_dict(norm.state_dict())


@torch.no_grad()
def carry_head(
    source: nn.Module,
    target: ImageClassifier,
    origin: str,
    names: Sequence[str] | None = None,
    by_name: bool = False,
) -> str:
    """Copy the head of a classifier with the same classes, or its rows of shared classes.

    The whole head is copied if the classes are the same: by name, in any order, or by number if
    the names of one side are unknown. Another head is left out (docs/reference/finetuning.md,
    "Checkpoint keys"). Names are compared as in `match_classes`.

    Args:
        names: class names of the source, if its file does not have them
        by_name: if the classes differ, copy the rows of the shared ones; published: no

    Returns: what was copied, in words; empty if the source is not a classifier
    """
    if not isinstance(source, ImageClassifier):
        if by_name or names is not None:
            raise ValueError(
                f"{origin} holds {an(type(source).__name__)}, which has no classes to carry over; "
                "leave out init_classes and carry_classes"
            )
        return ""
    count, source_names = source.config.num_classes, _names_of(source, origin, names)
    target_names, new = target.config.class_names, target.config.num_classes
    try:
        match = match_classes(range(new), target_names, source_names, count, "the data", origin)
    except ValueError as error:  # without names the numbers are not the same classes
        match = Match({}, str(error))
    shared, rows = list(match.numbers), list(match.numbers.values())
    reads, read = READS[target.config.pooling], READS[source.config.pooling]
    moved = "" if reads == read else f"; it reads {reads} now, and was trained on {read}"
    whole = len(shared) == new == count
    if not whole and not by_name:
        why = f" ({match.note})" if match.note else ""
        return f"its head for {count} classes was left out; that for {new} is new{why}"
    nameless = source_names is None or target_names is None
    if not whole and nameless:
        missing = f"{origin} (--init_classes FILE)" if source_names is None else "the data"
        lists = "needs both lists of class names"
        raise ValueError(f"carry_classes {lists}; that of {missing} is unknown")
    if not shared:
        assert source_names is not None
        classes = f"those of {origin}, such as {source_names[0]}"
        raise ValueError(f"carry_classes: no class of the data is one of {classes}")
    target.head.weight[shared] = source.head.weight[rows]
    target.head.bias[shared] = source.head.bias[rows]
    if whole:
        note = f", {match.note or 'class names unknown'}" if nameless else ""
        return f"its head for {count} classes was copied{note}{moved}"
    return f"{len(shared)} of {new} rows were copied from its head for {count} classes{moved}"


def _names_of(
    source: ImageClassifier, origin: str, names: Sequence[str] | None
) -> tuple[str, ...] | None:
    """Return the class names of a classifier: `names`, which its own must not contradict."""
    own, count = source.config.class_names, source.config.num_classes
    if names is None:
        return own
    if len(names) != count:
        head = f"the head of {origin} has {count}"
        raise ValueError(f"init_classes names {len(names)} classes, but {head}")
    known, given = in_one_language(names if own is None else own, names)
    if [*map(spelled, known)] != [*map(spelled, given)]:
        raise ValueError(f"init_classes contradicts the class names in {origin}")
    return tuple(names)


def carry_decoder(source: nn.Module, target: SemanticSegmenter) -> str:
    """Copy the decoder of another segmenter, and its last layers if the classes are the same.

    Returns: what was copied, in words; empty if the source is not a segmenter
    """
    if not isinstance(source, SemanticSegmenter):
        return ""
    shapes = {name: tensor.shape for name, tensor in target.state_dict().items()}
    left_out = ("backbone.",) if target.config.auxiliary else ("backbone.", "auxiliary.")
    state = source.state_dict()
    decoder = {name: state[name] for name in state if not name.startswith(left_out)}
    body = {name: tensor for name, tensor in decoder.items() if not name.endswith(HEAD)}
    if any(shapes.get(name) != tensor.shape for name, tensor in body.items()):
        return "its decoder is of another kind or size and was left out"
    # Published class names have blanks around them.
    source_names = [spelled(name) for name in source.config.class_names or ()]
    target_names = [spelled(name) for name in target.config.class_names or ()]
    old, new = source.config.num_classes, target.config.num_classes
    same = source_names == target_names and old == new
    target.load_state_dict(decoder if same else body, strict=False)
    if same:
        return f"its decoder was copied, with the layers for {new} classes"
    return f"its decoder was copied, but not its layers for {old} classes; those for {new} are new"

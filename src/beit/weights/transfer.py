"""What a classifier or a segmenter starts from: any model's backbone, and the head of its kind."""

import logging
from collections.abc import Sequence

import torch
from torch import nn

from beit.nn.heads import ImageClassifier
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.tokenizer import VQKD
from beit.nn.vit import VisionTransformer, resized, with_bias_per_block
from beit.weights.file import HEAD
from beit.weights.open import backbone_of

logger = logging.getLogger(__name__)


def backbone_for_finetuning(
    start: nn.Module, origin: str, image_size: tuple[int, int] | None
) -> VisionTransformer:
    """Return the backbone of `start`: a bias of its own in each block, positions for `image_size`.

    Raises:
        ValueError: the model has no backbone, or the size does not fit its patches.
    """
    backbone = backbone_of(start)
    if backbone is None:
        raise ValueError(f"{origin} holds a {type(start).__name__}, which has no backbone")
    if backbone.config.relative_bias == "shared":
        backbone = with_bias_per_block(backbone)
    return backbone if image_size is None else resized(backbone, image_size)


def carry_backbone(given: VisionTransformer, wanted: VisionTransformer, origin: str) -> None:
    """Copy a backbone's weights; only a final norm may be there too many or too few."""
    missing, strange = wanted.load_state_dict(given.state_dict(), strict=False)
    assert all(name.startswith("norm.") for name in [*missing, *strange])
    if strange:
        logger.info("%s: its final norm is left out, which nothing would read", origin)
    if missing:
        logger.info("%s: it has no final norm, which starts afresh", origin)


def carry_norm(start: nn.Module, wanted: ImageClassifier) -> None:
    """Copy the norm before the head where mean pooling has one and the start had one like it.

    That is the one of another classifier, and, as published, the last norm of a VQ-KD encoder. The
    last norm of a pretrained model is not one of these (FACTS 1.2, 3.1).
    """
    given = start.fc_norm if isinstance(start, ImageClassifier) else None
    if isinstance(start, VQKD) and isinstance(start.encoder.norm, nn.LayerNorm):
        given = start.encoder.norm
    if given is not None and wanted.fc_norm is not None:
        wanted.fc_norm.load_state_dict(given.state_dict())


@torch.no_grad()
def carry_head(
    start: nn.Module,
    wanted: ImageClassifier,
    origin: str,
    names: Sequence[str] | None = None,
    by_name: bool = False,
) -> str:
    """Copy the head of a classifier that tells the same classes apart, or its rows of shared ones.

    The whole head comes along where the class names are the same, or where names of one of the two
    are not known and there are as many classes (FACTS 3.1: a head of another shape is left out).

    Args:
        names: of the start's classes, where its file does not say them
        by_name: where the classes are others, copy the rows of those in both; published: no

    Returns: in words what became of the head; empty where the start is no classifier

    Raises:
        ValueError: names or by_name are given and cannot be used.
    """
    if not isinstance(start, ImageClassifier):
        if by_name or names is not None:
            raise ValueError(
                f"{origin} holds a {type(start).__name__}, which has no classes to carry over; "
                "leave out init_classes and carry_classes"
            )
        return ""
    count, known = start.config.num_classes, start.config.class_names
    if names is not None:
        if len(names) != count:
            raise ValueError(
                f"init_classes names {len(names)} classes, but the head of {origin} has {count}"
            )
        if known not in (None, tuple(names)):
            raise ValueError(f"init_classes contradicts {origin}, which names its classes itself")
        known = tuple(names)
    ours = wanted.config.class_names
    both = known is not None and ours is not None
    alike = known == ours if both else count == wanted.config.num_classes
    if alike:
        wanted.head.load_state_dict(start.head.state_dict())
        return f"the head for {count} classes came along" + ("" if both else ", names unknown")
    if not by_name:
        return (
            f"the head for {count} classes was left out, "
            f"that for {wanted.config.num_classes} started afresh"
        )
    if known is None or ours is None:
        whose = f"those of {origin} (--init_classes FILE)" if known is None else "those of the data"
        raise ValueError(f"carry_classes needs the names of all classes, but not {whose} are known")
    places = {name: place for place, name in enumerate(known)}
    shared = [place for place, name in enumerate(ours) if name in places]
    if not shared:
        raise ValueError(
            f"carry_classes: no class of the data is one of {origin}, such as {known[0]}"
        )
    theirs = [places[ours[place]] for place in shared]
    wanted.head.weight[shared] = start.head.weight[theirs]
    wanted.head.bias[shared] = start.head.bias[theirs]
    return f"of the head for {count} classes {len(shared)} rows of {len(ours)} came along"


def carry_decoder(start: nn.Module, wanted: SemanticSegmenter) -> str:
    """Copy what stands on the backbone of another segmenter, so far as it fits.

    Returns: in words what came along; empty where the start is no segmenter
    """
    if not isinstance(start, SemanticSegmenter):
        return ""
    shapes = {name: tensor.shape for name, tensor in wanted.state_dict().items()}
    given = {
        name: tensor
        for name, tensor in start.state_dict().items()
        if not name.startswith("backbone.")
        and (name in shapes or not name.startswith("auxiliary."))
    }
    body = {name: tensor for name, tensor in given.items() if not name.endswith(HEAD)}
    if any(shapes.get(name) != tensor.shape for name, tensor in body.items()):
        return "its decoder is of another kind or size and was left out"
    ours, theirs = (
        [name.strip() for name in model.config.class_names or ()] for model in (wanted, start)
    )  # published names have blanks around them
    alike = ours == theirs and start.config.num_classes == wanted.config.num_classes
    wanted.load_state_dict(given if alike else body, strict=False)
    if alike:
        return f"its decoder came along, with the layers for {wanted.config.num_classes} classes"
    return (
        f"its decoder came along, but not its layers for {start.config.num_classes} classes; "
        f"those for {wanted.config.num_classes} start afresh"
    )

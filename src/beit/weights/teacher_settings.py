"""What shapes do not determine of a CLIP or ViT in a file: heads, activation, normalisation."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from beit.nn.patches import IMAGENET_MEAN, IMAGENET_STD
from beit.run.settings import from_plain
from beit.weights.formats.clip import CLIP_MEAN, CLIP_STD
from beit.weights.formats.transformers_config import normalisation_of, processor_notes
from beit.weights.hub import SETTINGS
from beit.weights.shards import read_json

logger = logging.getLogger(__name__)

ACTIVATIONS = ("gelu", "quick_gelu")  # by the names of transformers, which are timm's
OF_TRANSFORMERS = "embeddings.patch_embedding"  # in names of tensors
OF_OPENAI = "input_resolution"  # an entry of OpenAI's own files, beside the tensors
Colour = tuple[float, float, float]


class TeacherSettings(NamedTuple):
    """The settings of a teacher; without a number of heads, one per 64 channels."""

    num_heads: int | None
    activation: str
    mean: Colour
    std: Colour


def settings_of(
    file: Path, names: Collection[str], clip: bool, num_heads: int | None
) -> TeacherSettings:
    """Read what the JSON files of transformers beside a teacher say; the rest is as published.

    Args:
        file: of the weights
        names: of its tensors
        clip: the published settings are OpenAI's CLIP's, else DINO's
        num_heads: given by the user

    Raises:
        ValueError: a value is not one of ours, or contradicts `num_heads`.
    """
    known = SETTINGS if any(OF_TRANSFORMERS in name for name in names) else ()
    places = [path for name in known if (path := file.with_name(name)).is_file()]
    content = {path.name: read_json(path) for path in places}
    config, processor = (content.get(name, {}) for name in SETTINGS)
    inner = config.get("vision_config")
    vision = inner if isinstance(inner, Mapping) else config
    where = file.with_name(SETTINGS[0])
    heads = _value(vision, "num_attention_heads", int, where)
    if num_heads not in (None, heads) and heads is not None:
        raise ValueError(f"num_heads={num_heads}, but {where.name} beside it says {heads}")
    activation = _value(vision, "hidden_act", str, where)
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(f"its hidden_act is {activation}, expected {' or '.join(ACTIVATIONS)}")
    if clip and not config and OF_OPENAI not in names:
        logger.warning(
            "%s does not say its activation: taken as OpenAI's CLIP, with QuickGELU and heads of "
            "64 channels. Others need the config.json of transformers beside it, or timm:NAME@FILE",
            file,
        )
    mean, std = (CLIP_MEAN, CLIP_STD) if clip else (IMAGENET_MEAN, IMAGENET_STD)
    says = processor.get("image_mean") and processor.get("image_std")
    if says or not processor.get("do_normalize", True):
        read = normalisation_of(processor, str(file.with_name(SETTINGS[1])), Colour)
        mean, std = read["mean"] or (0.0, 0.0, 0.0), read["std"] or (1.0, 1.0, 1.0)
    elif known and not clip:
        logger.warning(
            "%s does not say how its images were normalised: there is no preprocessor_config.json "
            "beside it. Taken as by ImageNet's mean and std, as for DINO and DINOv2",
            file,
        )
    for note in processor_notes(processor):
        logger.info("%s: %s", file, note)
    usual = "quick_gelu" if clip else "gelu"
    return TeacherSettings(num_heads or heads, activation or usual, mean, std)


def _value(settings: Mapping[str, Any], name: str, hint: Any, file: Path) -> Any:
    """Read a value of a JSON file and check its type; None if it is not there."""
    if (value := settings.get(name)) is None:
        return None
    try:
        return from_plain(hint, value, name)
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error

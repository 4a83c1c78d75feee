"""DALL-E's image tokenizer in its published layout."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from beit.nn.dalle import GROUPS, DalleConfig, DalleTokenizer
from beit.run.settings import first
from beit.weights.file import assemble, size_pair
from beit.weights.formats.dalle_files import (
    DECODER,
    ENCODER,
    FILES,
    SEPARATORS,
    STEM,
    by_part,
    with_decoder,
)
from beit.weights.formats.published_config import check_overrides, count_blocks, shape_of

logger = logging.getLogger(__name__)

HEAD, FIRST_GROUP = "blocks.output.conv.w", "blocks.group_1."
OVERRIDES = ("image_size", "decoder")


def recognises(tensors: Mapping[str, Any]) -> bool:
    """Whether the names are those of DALL-E's encoder, its decoder, or both."""
    prefixes = [f"{part}{mark}" for part in (ENCODER, DECODER) for mark in SEPARATORS]
    return any(f"{prefix}{STEM}" in tensors for prefix in ("", *prefixes))


def from_dalle(
    state: Mapping[str, Tensor], *, origin: str = "the state", **overrides: Any
) -> DalleTokenizer:
    """Build the tokenizer from DALL-E's published tensors, in eval mode.

    Args:
        state: the encoder's tensors by published name, or those of both parts under `encoder.` and
            `decoder.`; without the decoder the tokenizer only encodes
        origin: name of the file in errors and the log
        overrides: `image_size` (default: 112 x 112, as in BEiT v1; images of every size that fits
            can be encoded), and `decoder`, the path of the decoder if it is in another file
    """
    check_overrides(overrides, OVERRIDES, origin)
    tensors = by_part(state)
    decoder = overrides.get("decoder")
    if decoder is not None:
        tensors = with_decoder(tensors, Path(decoder), origin)
    if f"{ENCODER}.{STEM}" not in tensors:
        found = "its decoder alone" if recognises(state) else first(list(state)) or "nothing"
        raise ValueError(
            f"{origin} does not hold DALL-E's encoder, which a tokenizer needs, but {found}; give "
            f"{FILES[0]}, or the folder with {' and '.join(FILES)}"
        )
    has_decoder = f"{DECODER}.{STEM}" in tensors
    if not has_decoder:
        logger.info("%s: DALL-E's encoder alone, which cannot decode images", origin)
    blocks_per_group = count_blocks(tensors, f"{ENCODER}.{FIRST_GROUP}")
    num_codes = shape_of(tensors, f"{ENCODER}.{HEAD}", 4, origin)[0]
    width = shape_of(tensors, f"{ENCODER}.{STEM}", 4, origin)[0]
    code_width = DalleConfig.code_width
    if has_decoder:
        code_width = shape_of(tensors, f"{DECODER}.{STEM}", 4, origin)[0]
    size = size_pair(overrides.get("image_size", DalleConfig.image_size))
    try:
        config = DalleConfig(size, num_codes, width, blocks_per_group, code_width, has_decoder)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    ours = {theirs: ours for ours, theirs in names(blocks_per_group).items()}
    renamed = {
        ours.get(name, f"{name} (published name)"): tensor for name, tensor in tensors.items()
    }
    return assemble(DalleTokenizer, config, renamed, origin)


def to_dalle(model: DalleTokenizer) -> dict[str, Tensor]:
    """Return the model's tensors by published name, under `encoder.` and `decoder.`.

    The inverse of `from_dalle`. Tensors are shared with the model.
    """
    published = names(model.config.blocks_per_group)
    return {published[name]: tensor for name, tensor in model.state_dict().items()}


def names(blocks_per_group: int) -> dict[str, str]:
    """Return the table of names, ours to published; not every block has the shortcut."""
    rows = {"stem": "blocks.input", "head": "blocks.output.conv"}
    for group in range(len(GROUPS)):
        for block in range(blocks_per_group):
            ours, theirs = f"groups.{group}.{block}", f"blocks.group_{group + 1}.block_{block + 1}"
            rows[f"{ours}.shortcut"] = f"{theirs}.id_path"
            for conv in range(4):
                rows[f"{ours}.convs.{conv}"] = f"{theirs}.res_path.conv_{conv + 1}"
    return {
        f"{part}.{ours}.{kind}": f"{part}.{theirs}.{kind[0]}"
        for part in (ENCODER, DECODER)
        for ours, theirs in rows.items()
        for kind in ("weight", "bias")
    }

"""mmsegmentation's own BEiT with UPerNet, in versions 0.22 and later, 1.x among them.

Names of the published models, trained with version 0.11, differ (docs/reference/segmentation.md).
"""

import logging
from collections.abc import Mapping
from typing import Any

from beit.nn.segmenter import SemanticSegmenter
from beit.weights.formats import mmpretrain
from beit.weights.formats.containers import named_tensors
from beit.weights.formats.names import Architecture, Rows, to_published_names
from beit.weights.formats.published_segmentation import CLASSIFIER, segmenter_and_summary

logger = logging.getLogger(__name__)

ROWS: Rows = (  # (published, mmsegmentation's)
    *((f"backbone.{published}", theirs) for published, theirs in mmpretrain.BACKBONE),
    ("backbone.fpn1.#.*", "neck.upsample_4x.#.*"),
    ("backbone.fpn2.0.*", "neck.upsample_2x.0.*"),
    ("decode_head.*", "decode_head.*"),
    ("auxiliary_head.*", "auxiliary_head.*"),
)
UPERNET = Architecture("BEiT with UPerNet", ROWS)
NEEDED = {CLASSIFIER, f"backbone.{mmpretrain.FIRST_LAYER}", f"backbone.{mmpretrain.Q_BIAS}"}


def recognises(tensors: Mapping[str, Any]) -> bool:
    """Whether the names are those of mmsegmentation's BEiT with a decoder."""
    return tensors.keys() >= NEEDED


def from_mmsegmentation(
    state: Mapping[str, Any], *, origin: str = "the state", **overrides: Any
) -> SemanticSegmenter:
    """Build the model in a checkpoint of mmsegmentation, in eval mode.

    Args:
        state: tensors by mmsegmentation's names, or a checkpoint with them under `state_dict`, and
            names and colours of the classes under `meta`
        overrides: as for a published segmentation model
    """
    tensors = named_tensors(state, origin)
    published = to_published_names(tensors, UPERNET, "mmsegmentation", origin)
    where = f"{origin} (mmsegmentation's {UPERNET.name}, by published names)"
    meta = state.get("meta")
    if isinstance(meta, Mapping) and isinstance(meta.get("dataset_meta"), Mapping):  # of version 1
        meta = {str(name).upper(): value for name, value in meta["dataset_meta"].items()}
    model, about = segmenter_and_summary(published, where, overrides, meta)
    logger.info("%s: mmsegmentation's %s, %s", origin, UPERNET.name, about)
    return model

"""BEiT v1's trainable discrete VAE in the layout of its published class, whose names are ours."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig
from beit.run.settings import first
from beit.weights.assemble import assemble
from beit.weights.file import size_pair
from beit.weights.formats.containers import named_tensors
from beit.weights.formats.published_config import check_overrides, shape_of

logger = logging.getLogger(__name__)

CODEBOOK, STEM = "codebook.weight", "encoder.0.0.weight"
NEEDED = {CODEBOOK, STEM, "decoder.0.0.weight"}
OVERRIDES = ("image_size", "mean", "std")
GRID_SIDE = 14  # of the codes that BEiT v1 predicts


def recognises(tensors: Mapping[str, Any]) -> bool:
    """Whether the names are those of a discrete VAE."""
    return tensors.keys() >= NEEDED


def from_dvae(
    state: Mapping[str, Any], *, origin: str = "the state", **overrides: Any
) -> DiscreteVAE:
    """Build the discrete VAE in a published state, in eval mode.

    Args:
        state: tensors by published name, or a checkpoint with them under `weights`, such as the
            pytorch_model.bin that BEiT v1's pretraining reads
        overrides: `image_size` (default: that of 14 x 14 codes; images of every size that fits can
            be encoded), `mean` and `std` (default: no normalisation, as in the published class;
            BEiT v1's own script gave it images in [-1, 1]: mean 0.5, std 0.5)
    """
    tensors = named_tensors(state, origin)
    if not recognises(tensors):
        names, got = ", ".join(sorted(NEEDED)), first(list(tensors)) or "nothing"
        raise ValueError(f"{origin} is not a discrete VAE: expected {names}, got {got}")
    check_overrides(overrides, OVERRIDES, origin)
    num_codes, code_width = shape_of(tensors, CODEBOOK, 2, origin)
    hidden_width, in_channels = shape_of(tensors, STEM, 4, origin)[:2]
    num_layers = sum(re.fullmatch(r"encoder\.\d+\.0\.weight", name) is not None for name in tensors)
    if "mean" not in overrides:
        advice = "if it was trained on normalised images, give mean and std"
        logger.info("%s: images in [0, 1] are not normalised; %s", origin, advice)
    mean, std = overrides.get("mean"), overrides.get("std")
    try:
        config = DiscreteVAEConfig(
            image_size=size_pair(overrides.get("image_size", GRID_SIDE << num_layers)),
            num_codes=num_codes,
            code_width=code_width,
            num_layers=num_layers,
            hidden_width=hidden_width,
            mean=None if mean is None else tuple(mean),
            std=None if std is None else tuple(std),
            in_channels=in_channels,
        )
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    return assemble(DiscreteVAE, config, tensors, origin)


def to_dvae(model: DiscreteVAE) -> dict[str, Tensor]:
    """Return the tensors by published name; pytorch_model.bin has them under `weights`."""
    return dict(model.state_dict())

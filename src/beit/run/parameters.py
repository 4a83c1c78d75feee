"""The optimiser over parameter groups: weight decay, and the learning rate of each layer."""

import logging
import re
from collections.abc import Iterable
from itertools import compress
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.optim import AdamW

from beit.run.muon import Muon
from beit.run.optim import set_learning_rate
from beit.run.precision import bfloat16_unit

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)

# Mask token and bias tables do decay (docs/reference/pretraining.md, "Recipe").
UNDECAYED = ("bias", "pos_embed", "cls_token")
STEM = ("cls_token", "mask_token", "pos_embed")  # with patch_embed: the layer before block 0
_MATRIX = re.compile(r"\.(?:attn|mlp)\.\w+\.weight$")
_BLOCK = re.compile(r"(?:^|(?P<trunk>.*)\.)blocks\.(?P<number>\d+)\.")


class OptimizerConfig(Protocol):
    """What an optimiser is built of; the attributes are those of `OptimConfig`."""

    @property
    def kind(self) -> str: ...
    @property
    def muon_rate(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Group the trainable parameters by weight decay and learning rate scale.

    Biases, parameters of at most one dimension, absolute positions and [CLS] are not decayed; the
    tables of the relative position bias and the mask token are, as in the published code. With
    layer decay, layer 0 is the stem, layer i + 1 is block i with its own table, and layer depth + 1
    is the rest, with a table that all blocks share; a layer's scale is
    layer_decay ** (depth + 1 - layer), as in BEiT's fine-tuning.

    Args:
        model: the unwrapped module; frozen parameters are skipped
        weight_decay: of the decayed parameters
        layer_decay: in (0, 1]; None gives every parameter the scale 1

    Returns: dicts of `params`, their `names`, `weight_decay` and `lr_scale`

    Raises:
        ValueError: layer_decay is out of range, or the model has not one trunk of blocks.
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}; expected above 0 and at most 1")
    depth = 0 if layer_decay is None else _trunk_depth(model)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and not name.endswith(UNDECAYED)
        decay = weight_decay if decayed else 0.0
        scale = 1.0
        if layer_decay is not None:
            scale = layer_decay ** (depth + 1 - _layer(name, depth))
        fresh = {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale}
        group = groups.setdefault((decay, scale), fresh)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def can_fuse(fabric: "Fabric") -> bool:
    """Tell whether to use the fused optimiser, which updates all weights in one kernel.

    With float16 loss scaling it would unscale the gradients itself, after they are clipped.
    """
    scaled = fabric.strategy.precision.precision == "16-mixed"
    return fabric.device.type in ("cpu", "cuda") and not scaled


def build_optimizer(
    groups: Iterable[dict[str, Any]], config: OptimizerConfig, fused: bool = False
) -> AdamW:
    """Build the optimiser for `parameter_groups`; `fused` updates all weights in one kernel.

    Raises:
        ValueError: optim.kind is muon and no block has a weight matrix.
    """
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": 0.0,  # each group has its own
        "fused": fused,
    }
    if config.kind == "muon":
        optimizer: AdamW = _muon(groups, config, settings)
    else:
        optimizer = AdamW(groups, **settings)
    set_learning_rate(optimizer, config.learning_rate)
    return optimizer


def _muon(
    groups: Iterable[dict[str, Any]], config: OptimizerConfig, settings: dict[str, Any]
) -> Muon:
    """Build Muon, with the matrices of blocks in groups of their own, and log what it takes."""
    parts = [part for group in groups for part in _matrices_apart(group, config.muon_rate)]
    matrices = [matrix for part in parts if part["orthogonal"] for matrix in part["params"]]
    if not matrices:
        raise ValueError(
            "optim.kind is muon, which is for the weight matrices of Transformer blocks, and this "
            "model has none to train; use adamw"
        )
    taken = sum(matrix.numel() for matrix in matrices) / 1e6
    total = sum(weight.numel() for part in parts for weight in part["params"]) / 1e6
    device = matrices[0].device.type
    dtype = torch.bfloat16 if bfloat16_unit(device) else torch.float32
    logger.info(
        "Muon, in %s, for %d matrices of blocks, %.1f of %.1f million weights; AdamW for the rest",
        *(str(dtype).removeprefix("torch."), len(matrices), taken, total),
    )
    return Muon(parts, dtype, **settings)


def _matrices_apart(group: dict[str, Any], muon_rate: float) -> list[dict[str, Any]]:
    """Split a parameter group into that of Muon's matrices and that of the rest."""
    parts = []
    for orthogonal in (True, False):
        chosen = [orthogonal == (_MATRIX.search(name) is not None) for name in group["names"]]
        if any(chosen):
            changed = {key: list(compress(group[key], chosen)) for key in ("names", "params")}
            scale = group["lr_scale"] * (muon_rate if orthogonal else 1)
            parts.append(group | changed | {"lr_scale": scale, "orthogonal": orthogonal})
    return parts


def _trunk_depth(model: nn.Module) -> int:
    """Count the blocks of the model's one trunk."""
    matches = [match for name, _ in model.named_parameters() if (match := _BLOCK.match(name))]
    trunks = sorted({match["trunk"] or "" for match in matches})
    if len(trunks) != 1:
        raise ValueError(
            f"layer decay needs a model with one trunk of blocks, found {len(trunks)}"
            + (f": {', '.join(trunks)}" if trunks else "")
        )
    return 1 + max(int(match["number"]) for match in matches)


def _layer(name: str, depth: int) -> int:
    """Return the layer of a parameter: 0 for the stem, i + 1 for block i, else depth + 1."""
    if block := _BLOCK.match(name):
        return int(block["number"]) + 1
    if name.endswith(STEM) or "patch_embed" in name.split("."):
        return 0
    return depth + 1

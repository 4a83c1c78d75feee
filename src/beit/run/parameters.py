"""AdamW over parameter groups: weight decay, and the learning rate of each layer."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import AdamW

from beit.run.optim import OptimConfig, StepOptimConfig, set_learning_rate

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Mask token and bias tables do decay (docs/reference/pretraining.md, "Recipe").
UNDECAYED = ("bias", "pos_embed", "cls_token")
STEM = ("cls_token", "mask_token", "pos_embed")  # with patch_embed: the layer before block 0
_BLOCK = re.compile(r"(?:^|(?P<trunk>.*)\.)blocks\.(?P<number>\d+)\.")


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Group the trainable parameters by weight decay and learning rate scale.

    Biases, parameters of at most one dimension, positions and [CLS] are not decayed. With layer
    decay, layer 0 is the stem, layer i + 1 is block i, and layer depth + 1 is the rest; a layer's
    scale is layer_decay ** (depth + 1 - layer), as in BEiT's fine-tuning.

    Args:
        model: the unwrapped module; frozen parameters are skipped
        weight_decay: of the decayed parameters
        layer_decay: in (0, 1]; None gives every parameter the scale 1

    Returns: dicts of `params`, their `names`, `weight_decay` and `lr_scale`
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
    groups: Iterable[dict[str, Any]], config: OptimConfig | StepOptimConfig, fused: bool = False
) -> AdamW:
    """Build AdamW for `parameter_groups`; `fused` updates all weights in one kernel."""
    optimizer = AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=0.0,  # each group has its own
        fused=fused,
    )
    set_learning_rate(optimizer, config.learning_rate)
    return optimizer


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

"""AdamW over parameter groups: which weights decay, and how fast each layer learns."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from beit.run.schedules import warmup_cosine, warmup_poly

UNDECAYED = ("bias", "pos_embed", "cls_token")  # FACTS 2.7; mask token and bias tables do decay
STEM = (
    "cls_token",
    "mask_token",
    "pos_embed",
)  # with patch_embed, the layer before the first block
_BLOCK = re.compile(r"(?:^|(?P<trunk>.*)\.)blocks\.(?P<number>\d+)\.")


class Schedule(NamedTuple):
    """The steps of a run: how many an epoch has, how many there are, on how many images."""

    steps_per_epoch: int
    total_steps: int
    num_images: int


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights are updated, and for how long.

    Args:
        batch_size: images a step, over all processes and micro-steps together.
        accumulate: micro-steps a step; memory falls, the result stays.
        epochs: passes over the training set.
        learning_rate: between warm-up and decay, not scaled by anything.
        final_rate: at the end of the cosine.
        warmup_epochs: of linear warm-up; fractions are fine.
        warmup_start: learning rate of the first step.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of matrices; vectors, positions and the [CLS] token have none.
        clip: largest norm of the whole gradient; none when null.
    """

    batch_size: int = 2048
    accumulate: int = 1
    epochs: int
    learning_rate: float
    final_rate: float = 1e-5
    warmup_epochs: float
    warmup_start: float = 0.0
    betas: tuple[float, float]
    eps: float = 1e-8
    weight_decay: float
    clip: float | None = None

    def __post_init__(self) -> None:
        _check_settings(
            self,
            ("batch_size", "accumulate", "epochs"),
            ("learning_rate", "final_rate", "warmup_start", "weight_decay", "eps"),
        )
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(
                f"optim.warmup_epochs is {self.warmup_epochs}; "
                f"expected 0 to optim.epochs, {self.epochs}"
            )

    def micro_batch_size(self, world_size: int) -> int:
        """Return the images of one process in one micro-step."""
        return micro_batch_size(self.batch_size, self.accumulate, world_size)

    def schedule(self, num_images: int) -> Schedule:
        """Return the steps that the epochs over so many images have."""
        steps_per_epoch = max(1, num_images // self.batch_size)
        return Schedule(steps_per_epoch, self.epochs * steps_per_epoch, num_images)

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        return warmup_cosine(
            step - 1,
            base=self.learning_rate,
            final=self.final_rate,
            total_steps=self.epochs * steps_per_epoch,
            warmup_steps=round(self.warmup_epochs * steps_per_epoch),
            start=self.warmup_start,
        )


@dataclass(frozen=True, kw_only=True)
class StepOptimConfig:
    """How the weights are updated, for a number of steps; the defaults are those for ADE20K.

    Args:
        batch_size: images a step, over all processes and micro-steps together.
        accumulate: micro-steps a step; memory falls. Batch statistics are of a micro-step.
        steps: of the whole run.
        learning_rate: at the start of the decay, before the warm-up lowers it.
        final_rate: at the end.
        power: of the decay; 1 is a straight line.
        warmup_steps: of linear warm-up.
        warmup_ratio: share of the rate that the first step has.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of matrices; vectors, positions and the [CLS] token have none.
        clip: largest norm of the whole gradient; none when null.
    """

    batch_size: int = 16
    accumulate: int = 1
    steps: int = 160_000
    learning_rate: float = 5e-5
    final_rate: float = 0.0
    power: float = 1.0
    warmup_steps: int = 1500
    warmup_ratio: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip: float | None = None

    def __post_init__(self) -> None:
        _check_settings(
            self,
            ("batch_size", "accumulate", "steps"),
            ("learning_rate", "final_rate", "power", "weight_decay", "eps"),
        )
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(
                f"optim.warmup_steps is {self.warmup_steps}; expected 0 to optim.steps, "
                f"{self.steps}"
            )
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"optim.warmup_ratio is {self.warmup_ratio}; expected 0 to 1")

    def micro_batch_size(self, world_size: int) -> int:
        """Return the images of one process in one micro-step."""
        return micro_batch_size(self.batch_size, self.accumulate, world_size)

    def schedule(self, num_images: int) -> Schedule:
        """Return the steps, of which epochs over so many images have a part each."""
        return Schedule(max(1, num_images // self.batch_size), self.steps, num_images)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        return warmup_poly(
            step - 1,
            base=self.learning_rate,
            total_steps=self.steps,
            final=self.final_rate,
            power=self.power,
            warmup_steps=self.warmup_steps,
            warmup_ratio=self.warmup_ratio,
        )


def _check_settings(
    config: OptimConfig | StepOptimConfig, counts: tuple[str, ...], rates: tuple[str, ...]
) -> None:
    """Refuse counts below 1, negative rates, and betas and clipping that cannot be."""
    for name in counts:
        if getattr(config, name) < 1:
            raise ValueError(f"optim.{name} is {getattr(config, name)}; expected 1 or more")
    for name in rates:
        if not getattr(config, name) >= 0:
            raise ValueError(f"optim.{name} is {getattr(config, name)}; expected 0 or more")
    if config.batch_size % config.accumulate:
        raise ValueError(
            f"optim.batch_size {config.batch_size} does not divide into "
            f"optim.accumulate {config.accumulate} micro-steps"
        )
    if not all(0 <= beta < 1 for beta in config.betas):
        raise ValueError(f"optim.betas are {config.betas}; expected two numbers in [0, 1)")
    if config.clip is not None and not config.clip > 0:
        raise ValueError(f"optim.clip is {config.clip}; expected above 0, or null for none")


def micro_batch_size(batch_size: int, accumulate: int, world_size: int) -> int:
    """Return the images of one process in one micro-step."""
    parts = world_size * accumulate
    if batch_size % parts:
        raise ValueError(
            f"optim.batch_size {batch_size} does not divide into {world_size} processes "
            f"x {accumulate} micro-steps; use a multiple of {parts}"
        )
    return batch_size // parts


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups that share weight decay and rate scale.

    Not decayed: biases, everything of at most one dimension, positions, [CLS]. With layer decay the
    layers from the stem (0) over the blocks to whatever follows them (depth + 1) have the scales
    layer_decay ** (depth + 1 - layer), as in BEiT's fine-tuning.

    Args:
        model: the bare module; frozen parameters are left out
        weight_decay: of what decays
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


def build_optimizer(
    groups: Iterable[dict[str, Any]], config: OptimConfig | StepOptimConfig, fused: bool = False
) -> AdamW:
    """Make AdamW over `parameter_groups`; `fused` updates all weights in one kernel."""
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


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group the rate times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def clip_gradients(
    fabric: Fabric, model: nn.Module, optimizer: Optimizer, max_norm: float | None
) -> dict[str, Tensor]:
    """Clip the norm of the whole gradient. Returns: `grad_norm` before; empty without a limit."""
    if max_norm is None:
        return {}
    norm = fabric.clip_gradients(model, optimizer, max_norm=max_norm, error_if_nonfinite=False)
    return {"grad_norm": cast(Tensor, norm)}


def _trunk_depth(model: nn.Module) -> int:
    """Count the blocks of the one trunk that layer decay goes through."""
    found = [match for name, _ in model.named_parameters() if (match := _BLOCK.match(name))]
    trunks = sorted({match["trunk"] or "" for match in found})
    if len(trunks) != 1:
        raise ValueError(
            f"layer decay needs a model with one trunk of blocks, found {len(trunks)}"
            + (f": {', '.join(trunks)}" if trunks else "")
        )
    return 1 + max(int(match["number"]) for match in found)


def _layer(name: str, depth: int) -> int:
    """Number the layer a parameter belongs to: stem 0, block i is i + 1, the rest depth + 1."""
    if block := _BLOCK.match(name):
        return int(block["number"]) + 1
    if name.endswith(STEM) or "patch_embed" in name.split("."):
        return 0
    return depth + 1

"""Settings of the optimiser and its schedule, and the parts of a step that use them."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, cast

from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from beit.run.schedules import warmup_cosine


class Schedule(NamedTuple):
    """The number of steps per epoch and of the whole run, and of training images."""

    steps_per_epoch: int
    total_steps: int
    num_images: int


class AnyOptimConfig(Protocol):
    """What the settings of all optimisers share; the attributes are those of `OptimConfig`."""

    @property
    def batch_size(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def clip(self) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule: cosine decay with linear warm-up.

    Args:
        kind: adamw; or muon for the weight matrices of blocks and adamw for all other weights.
        muon_rate: learning rate of muon's matrices, as a multiple of that of the other weights.
        batch_size: images per step, over all processes and micro-steps together.
        accumulate: micro-steps per step; more micro-steps use less memory and give the same result.
        epochs: passes over the training set; may be fractions.
        learning_rate: learning rate after the warm-up; it is not scaled by the batch size.
        final_rate: learning rate at the end of the decay.
        warmup_epochs: epochs of linear warm-up; may be fractions.
        warmup_start: learning rate of the first step.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: weight decay of matrices; vectors, positions and the [CLS] token have none.
        clip: maximum norm of the whole gradient; null for no clipping.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    muon_rate: float = 1.0
    batch_size: int = 2048
    accumulate: int = 1
    epochs: int | float
    learning_rate: float
    final_rate: float = 1e-5
    warmup_epochs: float
    warmup_start: float = 0.0
    betas: tuple[float, float]
    eps: float = 1e-8
    weight_decay: float
    clip: float | None = None

    def __post_init__(self) -> None:
        check_settings(
            self,
            ("batch_size", "accumulate"),
            ("learning_rate", "final_rate", "warmup_start", "weight_decay", "eps", "muon_rate"),
        )
        if not self.epochs > 0:
            raise ValueError(f"optim.epochs is {self.epochs}; expected more than 0")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(
                f"optim.warmup_epochs is {self.warmup_epochs}; "
                f"expected 0 to optim.epochs, {self.epochs}"
            )

    def schedule(self, num_images: int) -> Schedule:
        """Return the schedule for a training set of `num_images`."""
        steps_per_epoch = max(1, num_images // self.batch_size)
        total_steps = max(1, round(self.epochs * steps_per_epoch))
        return Schedule(steps_per_epoch, total_steps, num_images)

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step; steps count from 1."""
        return warmup_cosine(
            step - 1,
            base=self.learning_rate,
            final=self.final_rate,
            total_steps=max(1, round(self.epochs * steps_per_epoch)),
            warmup_steps=round(self.warmup_epochs * steps_per_epoch),
            start=self.warmup_start,
        )


def check_settings(config: AnyOptimConfig, counts: tuple[str, ...], rates: tuple[str, ...]) -> None:
    """Refuse counts below 1, negative rates, and invalid betas and clipping."""
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


def micro_batch_size(config: AnyOptimConfig, world_size: int) -> int:
    """Return the number of images per process and micro-step."""
    parts = world_size * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"optim.batch_size {config.batch_size} does not divide into {world_size} processes "
            f"x {config.accumulate} micro-steps; use a multiple of {parts}"
        )
    return config.batch_size // parts


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of each group to the rate times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def clip_gradients(
    fabric: Fabric, model: nn.Module, optimizer: Optimizer, max_norm: float | None
) -> Tensor:
    """Clip the whole gradient, unless `max_norm` is None. Returns: its norm before that, ()."""
    limit = float("inf") if max_norm is None else max_norm
    norm = fabric.clip_gradients(model, optimizer, max_norm=limit, error_if_nonfinite=False)
    return cast(Tensor, norm)


def step_only_if(kept: Tensor, optimizer: Optimizer) -> None:
    """Make the next `optimizer.step` do nothing unless `kept`, () bool.

    The fused kernel of AdamW reads `kept` on the device. For other optimisers and sharded weights
    this waits for it, and takes the gradients away. With float16 loss scaling the scaler has seen
    them by then, and lowers its scale.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    groups = inner.param_groups  # `fused` is that of a resumed run
    sharded = hasattr(groups[0]["params"][0], "full_tensor")
    if type(inner) is AdamW and all(group["fused"] for group in groups) and not sharded:
        inner.found_inf = (~kept).float()  # type: ignore[attr-defined]
    elif not kept:
        optimizer.zero_grad()

"""Settings of the optimiser of segmentation, whose schedule counts steps."""

from dataclasses import dataclass
from typing import Literal

from beit.run.optim import Schedule, check_settings


@dataclass(frozen=True, kw_only=True)
class StepOptimConfig:
    """The optimiser and its schedule: polynomial decay with linear warm-up.

    The defaults are those for ADE20K.

    Args:
        kind: adamw; or muon for the weight matrices of blocks and adamw for all other weights.
        muon_rate: learning rate of muon's matrices, as a multiple of the learning rate of the other
            weights.
        batch_size: images per step, over all processes and micro-steps together.
        accumulate: micro-steps per step; more micro-steps use less memory. Batch normalisation sees
            one micro-step.
        steps: of the whole run.
        learning_rate: learning rate at the start of the decay, as if there were no warm-up.
        final_rate: learning rate at the end of the decay.
        power: power of the decay; 1 for linear.
        warmup_steps: steps of linear warm-up.
        warmup_ratio: learning rate of the first step, as a factor of the full learning rate.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: weight decay of matrices; vectors, positions and the [CLS] token have none.
        clip: maximum norm of the whole gradient; null for no clipping.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    muon_rate: float = 1.0
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
        check_settings(
            self,
            ("batch_size", "accumulate", "steps"),
            ("learning_rate", "final_rate", "power", "weight_decay", "eps", "muon_rate"),
        )
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(
                f"optim.warmup_steps is {self.warmup_steps}; expected 0 to optim.steps, "
                f"{self.steps}"
            )
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"optim.warmup_ratio is {self.warmup_ratio}; expected 0 to 1")

    def schedule(self, num_images: int) -> Schedule:
        """Return the schedule for a training set of `num_images`."""
        return Schedule(max(1, num_images // self.batch_size), self.steps, num_images)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step; steps count from 1."""
        return warmup_poly(
            step - 1,
            base=self.learning_rate,
            total_steps=self.steps,
            final=self.final_rate,
            power=self.power,
            warmup_steps=self.warmup_steps,
            warmup_ratio=self.warmup_ratio,
        )


def warmup_poly(
    step: int,
    *,
    base: float,
    total_steps: int,
    final: float = 0.0,
    power: float = 1.0,
    warmup_steps: int = 0,
    warmup_ratio: float = 1e-6,
) -> float:
    """Return the learning rate of a step: polynomial decay with linear warm-up.

    As in mmcv, which trained the published segmentation models, the decay starts at step 0 and the
    warm-up multiplies it by a factor that rises linearly from `warmup_ratio` to 1.

    Args:
        step: counted from 0; from total_steps on the rate is `final`
        base: rate of step 0 without warm-up
        total_steps: of the whole run, including the warm-up
        final: rate at the end
        power: 1 for linear decay
        warmup_steps: 0 for none
        warmup_ratio: factor of step 0
    """
    assert step >= 0 and 0 <= warmup_steps <= total_steps  # checked by the settings
    if step >= total_steps:
        return final
    left = (1 - step / total_steps) ** power
    rate = final + (base - final) * float(left)
    if step < warmup_steps:
        rate *= 1 - (1 - step / warmup_steps) * (1 - warmup_ratio)
    return rate

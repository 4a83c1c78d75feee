"""The learning rate of each step."""

import math


def warmup_cosine(
    step: int,
    *,
    base: float,
    final: float,
    total_steps: int,
    warmup_steps: int = 0,
    start: float = 0.0,
) -> float:
    """Return the rate of one step: a straight line up from `start`, then half a cosine down.

    As in the published code the line reaches `base` with the last warm-up step, the first step
    after it has `base` again, and `final` would be reached with the step after the last.

    Args:
        step: counted from 0; from total_steps on the rate is `final`
        base: rate between warm-up and decay
        final: rate at the end
        total_steps: of the whole run, warm-up included
        warmup_steps: 0 for none
        start: rate of step 0 where there is a warm-up
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"warm-up of {warmup_steps} steps in a run of {total_steps}; "
            f"expected 0 to {total_steps}; give fewer warm-up epochs"
        )
    if step < 0:
        raise ValueError(f"step {step} has no learning rate; steps count from 0")
    if step >= total_steps:
        return final
    if step < warmup_steps:
        return start + (base - start) * step / max(warmup_steps - 1, 1)
    done = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + (base - final) * (1 + math.cos(math.pi * done)) / 2


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
    """Return the rate of one step: a power of what is left to do, less during the warm-up.

    As in mmcv, which trained the published segmentation models, the warm-up multiplies the decay,
    which begins with it: a straight line from `warmup_ratio` to 1.

    Args:
        step: counted from 0; from total_steps on the rate is `final`
        base: rate of step 0, were there no warm-up
        total_steps: of the whole run, warm-up included
        final: rate at the end
        power: 1 for a straight line
        warmup_steps: 0 for none
        warmup_ratio: share of the rate that step 0 has
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"warm-up of {warmup_steps} steps in a run of {total_steps}; "
            f"expected 0 to {total_steps}; give fewer warm-up steps"
        )
    if step < 0:
        raise ValueError(f"step {step} has no learning rate; steps count from 0")
    if step >= total_steps:
        return final
    left = (1 - step / total_steps) ** power
    rate = final + (base - final) * float(left)
    if step < warmup_steps:
        rate *= 1 - (1 - step / warmup_steps) * (1 - warmup_ratio)
    return rate

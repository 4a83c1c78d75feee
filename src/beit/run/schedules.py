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
    """Return the learning rate of a step: cosine decay with linear warm-up.

    As in the published code, the last warm-up step and the step after it both have `base`, and the
    step after the last one would have `final`.

    Args:
        step: counted from 0; from total_steps on the rate is `final`
        base: rate between warm-up and decay
        final: rate at the end
        total_steps: of the whole run, including the warm-up
        warmup_steps: 0 for none
        start: rate of step 0 if there is a warm-up
    """
    assert step >= 0 and 0 <= warmup_steps <= total_steps  # the settings see to it
    if step >= total_steps:
        return final
    if step < warmup_steps:
        return start + (base - start) * step / max(warmup_steps - 1, 1)
    done = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + (base - final) * (1 + math.cos(math.pi * done)) / 2

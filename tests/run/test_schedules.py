import json
from pathlib import Path

import pytest

from beit.run.schedules import warmup_cosine
from beit.segmentation.optim import warmup_poly

GOLDENS = Path(__file__).parents[1] / "goldens"


def test_the_published_schedule_step_by_step() -> None:
    golden = json.loads((GOLDENS / "cosine_schedule.json").read_text())
    per_epoch = golden["steps_per_epoch"]
    rates = [
        warmup_cosine(
            step,
            base=golden["base"],
            final=golden["final"],
            total_steps=golden["epochs"] * per_epoch,
            warmup_steps=golden["warmup_epochs"] * per_epoch,
            start=golden["start"],
        )
        for step in range(len(golden["values"]))
    ]
    assert rates == pytest.approx(golden["values"], rel=0, abs=1e-9)


def test_without_warm_up_it_is_half_a_cosine() -> None:
    rates = [warmup_cosine(step, base=3.0, final=1.0, total_steps=4) for step in range(6)]
    root = 2**-0.5
    assert rates == pytest.approx([3, 2 + root, 2, 2 - root, 1, 1])


@pytest.mark.parametrize(("warmup_steps", "expected"), [(1, [0, 2, 1]), (3, [0, 1, 2, 1])])
def test_short_runs(warmup_steps: int, expected: list[float]) -> None:
    total = 2 if warmup_steps == 1 else 3
    rates = [
        warmup_cosine(step, base=2.0, final=1.0, total_steps=total, warmup_steps=warmup_steps)
        for step in range(total + 1)
    ]
    assert rates == pytest.approx(expected)


def test_polynomial_decay_with_its_warm_up_by_hand() -> None:
    rates = [
        warmup_poly(step, base=2.0, total_steps=10, warmup_steps=4, warmup_ratio=0.2)
        for step in range(12)
    ]
    decay = [2 * (10 - step) / 10 for step in range(10)] + [0, 0]
    warm = [0.2, 0.4, 0.6, 0.8] + [1.0] * 8
    assert rates == pytest.approx([d * w for d, w in zip(decay, warm, strict=True)])
    squared = [warmup_poly(s, base=2.0, total_steps=4, final=1.0, power=2) for s in range(6)]
    assert squared == pytest.approx([2, 25 / 16, 5 / 4, 17 / 16, 1, 1])


def test_the_published_segmentation_schedule() -> None:
    """160,000 steps, warm-up 1500 from a millionth, to 0.

    docs/reference/segmentation.md, "Recipes".
    """
    settings = {"base": 5e-5, "total_steps": 160_000, "warmup_steps": 1500}
    assert warmup_poly(0, **settings) == pytest.approx(5e-11)
    assert warmup_poly(750, **settings) == pytest.approx(5e-5 * 0.5000005 * (1 - 750 / 160_000))
    assert warmup_poly(1500, **settings) == pytest.approx(5e-5 * 158_500 / 160_000)
    assert warmup_poly(159_999, **settings) == pytest.approx(5e-5 / 160_000)

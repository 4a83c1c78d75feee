from typing import Any

import pytest

from beit.run.optim import OptimConfig
from beit.segmentation.optim import StepOptimConfig


def config(**changes: Any) -> OptimConfig:
    plain: dict[str, Any] = {
        "batch_size": 6,
        "epochs": 3,
        "learning_rate": 0.5,
        "warmup_epochs": 1,
        "betas": (0.9, 0.98),
        "weight_decay": 0.05,
    }
    return OptimConfig(**{**plain, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, r"optim.epochs is 0; expected more than 0"),
        ({"learning_rate": -1.0}, r"optim.learning_rate is -1.0"),
        ({"accumulate": 4}, r"batch_size 6 does not divide into optim.accumulate 4"),
        ({"warmup_epochs": 4}, r"warmup_epochs is 4; expected 0 to optim.epochs, 3"),
        ({"betas": (0.9, 1.0)}, r"optim.betas"),
        ({"clip": 0.0}, r"optim.clip is 0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**change)


def test_a_run_by_steps_has_the_published_schedule_and_its_refusals() -> None:
    config = StepOptimConfig()
    assert config.rate(1) == pytest.approx(5e-5 * 1e-6)
    assert config.rate(1501) == pytest.approx(5e-5 * 158_500 / 160_000)
    assert config.micro_batch_size(8) == 2
    with pytest.raises(ValueError, match="16 does not divide into 3 processes x 1 micro-steps"):
        config.micro_batch_size(3)
    for change, message in (
        ({"steps": 0}, "optim.steps is 0; expected 1 or more"),
        ({"power": -1.0}, "optim.power is -1.0"),
        ({"steps": 100}, "optim.warmup_steps is 1500; expected 0 to optim.steps, 100"),
        ({"warmup_ratio": 2.0}, "optim.warmup_ratio is 2.0"),
        ({"accumulate": 3}, "16 does not divide into optim.accumulate 3"),
        ({"betas": (0.9, 1.0)}, "optim.betas are"),
    ):
        with pytest.raises(ValueError, match=message):
            StepOptimConfig(**change)  # type: ignore[arg-type]

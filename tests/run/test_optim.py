from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from beit.run.optim import (
    OptimConfig,
    Schedule,
    clip_gradients,
    micro_batch_size,
    set_learning_rate,
    step_only_if,
)
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
        ({"batch_size": 0}, r"optim.batch_size is 0; expected 1 or more"),
        ({"accumulate": 0}, r"optim.accumulate is 0; expected 1 or more"),
        ({"warmup_epochs": -0.1}, r"warmup_epochs is -0.1"),
        ({"betas": (-0.1, 0.9)}, r"optim.betas"),
        *[
            ({name: -0.1}, f"optim.{name} is -0.1; expected 0 or more")
            for name in ("final_rate", "warmup_start", "weight_decay", "eps", "muon_rate")
        ],
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**change)


def test_settings_at_their_limits_are_taken() -> None:
    rates = dict.fromkeys(("learning_rate", "final_rate", "weight_decay", "eps", "muon_rate"), 0)
    config(epochs=0.5, warmup_epochs=0.5, batch_size=1, betas=(0, 0), clip=0.1, **rates)
    config(warmup_epochs=0)


def test_the_schedule_rounds_epochs_to_steps_of_whole_batches() -> None:
    assert config(epochs=2.5).schedule(20) == Schedule(3, 8, 20)
    few = config(epochs=0.1, warmup_epochs=0)
    assert few.schedule(4) == Schedule(1, 1, 4)  # fewer images than a batch has


def test_the_rate_rises_to_its_base_and_falls_to_the_end() -> None:
    run = config(epochs=2.5, final_rate=0.1, warmup_start=0.2)
    rates = [run.rate(step, steps_per_epoch=3) for step in range(1, 10)]
    expected = [0.2, 0.35, 0.5, 0.5, 0.461803, 0.361803, 0.238197, 0.138197, 0.1]
    assert rates == pytest.approx(expected, abs=1e-6)
    one_step = config(epochs=0.1, warmup_epochs=0)
    assert [one_step.rate(step, steps_per_epoch=3) for step in (1, 2)] == [0.5, 1e-5]


def test_a_step_is_shared_by_processes_and_micro_steps() -> None:
    images = micro_batch_size(config(batch_size=24, accumulate=3), 2)
    assert images == 4 and type(images) is int
    with pytest.raises(ValueError, match=r"24 .* into 5 processes x 3 micro-steps; .* of 15"):
        micro_batch_size(config(batch_size=24, accumulate=3), 5)


@pytest.fixture
def model() -> nn.Module:
    """One weight of two numbers, with a gradient of length 5."""
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, -4.0]])
    return model


def test_each_group_has_the_rate_times_its_scale() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr_scale": s} for s in (1.0, 0.25)]
    optimizer = torch.optim.SGD(groups, lr=7.0)
    set_learning_rate(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.05]


@pytest.mark.parametrize(("limit", "left"), [(None, 5.0), (9.0, 5.0), (2.0, 2.0)])
def test_the_whole_gradient_is_clipped(model: nn.Module, limit: float | None, left: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norm = clip_gradients(Fabric(accelerator="cpu", devices=1), model, optimizer, limit)
    assert norm.item() == pytest.approx(5.0)
    assert float(model.weight.grad.norm()) == pytest.approx(left, rel=1e-5)
    model.weight.grad.fill_(float("nan"))
    clip_gradients(Fabric(accelerator="cpu", devices=1), model, optimizer, limit)  # no error


@pytest.mark.parametrize("kind", ["fused", "fused and wrapped", "sharded", "AdamW", "SGD"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_step_that_is_not_kept_changes_nothing(model: nn.Module, kind: str, kept: bool) -> None:
    if kind == "sharded":
        model.weight.full_tensor = None  # what tells weights of FSDP2
    if kind == "SGD":
        inner: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    else:
        inner = torch.optim.AdamW(model.parameters(), lr=0.1, fused=kind != "AdamW")
    wrapped = "wrapped" in kind
    optimizer = Fabric(accelerator="cpu", devices=1).setup_optimizers(inner) if wrapped else inner
    before = model.weight.detach().clone()
    step_only_if(torch.tensor(kept), optimizer)
    optimizer.step()
    assert torch.equal(model.weight, before) is not kept
    assert hasattr(inner, "found_inf") == kind.startswith("fused")  # else it waits for `kept`


def test_a_run_by_steps_has_the_published_schedule_and_its_refusals() -> None:
    config = StepOptimConfig()
    assert config.rate(1) == pytest.approx(5e-5 * 1e-6)
    assert config.rate(1501) == pytest.approx(5e-5 * 158_500 / 160_000)
    assert micro_batch_size(config, 8) == 2
    with pytest.raises(ValueError, match="16 does not divide into 3 processes x 1 micro-steps"):
        micro_batch_size(config, 3)
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

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.run.test_parameters import pretraining_model
from torch import Tensor, nn
from torch.optim import AdamW

from beit.run import parameters
from beit.run.muon import Muon, orthogonal
from beit.run.optim import OptimConfig
from beit.run.parameters import build_optimizer, parameter_groups

CONFIG = OptimConfig(
    kind="muon",
    muon_rate=2.0,
    batch_size=6,
    epochs=3,
    learning_rate=0.01,
    warmup_epochs=1,
    betas=(0.9, 0.98),
    weight_decay=0.05,
)


def with_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (24, 24)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    brought = left.T @ orthogonal(matrix) @ right.T
    large = values > 0.02 * values.norm()
    assert ((brought.diagonal()[large] > 0.65) & (brought.diagonal()[large] < 1.25)).all()
    torch.testing.assert_close(brought, brought.diagonal().diag(), rtol=0, atol=2e-5)
    torch.testing.assert_close(orthogonal(1000 * matrix), orthogonal(matrix))
    torch.testing.assert_close(orthogonal(matrix.T), orthogonal(matrix).T)


def test_no_gradient_no_step() -> None:
    assert (orthogonal(torch.zeros(3, 5)) == 0).all()


def test_its_matrices_are_those_of_blocks() -> None:
    model = pretraining_model()
    optimizer = build_optimizer(parameter_groups(model, 0.05), CONFIG)
    linear = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = ("backbone.blocks.0", "backbone.blocks.1", "aggregation.0")
    expected = {f"{block}.{name}.weight" for block in blocks for name in linear}
    for group in optimizer.param_groups:
        assert group["orthogonal"] == (set(group["names"]) <= expected)
        assert group["lr"] == (0.02 if group["orthogonal"] else 0.01)
    listed = [name for group in optimizer.param_groups for name in group["names"]]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())


def test_steps_are_those_of_pytorch_s_muon_and_adamw() -> None:
    ours, theirs = pretraining_model(), pretraining_model()
    theirs.load_state_dict(ours.state_dict())
    optimizer = Muon(
        [group | {"orthogonal": True} for group in matrices(ours)]
        + [group | {"orthogonal": False} for group in rest(ours)],
        torch.bfloat16,
        lr=0.02,
    )
    muon = torch.optim.Muon(matrices(theirs), lr=0.02, adjust_lr_fn="match_rms_adamw")
    adamw = AdamW(rest(theirs), lr=0.02)
    for seed in range(3):
        for model in (ours, theirs):
            with_gradients(model, seed)
        optimizer.step()
        muon.step()
        adamw.step()
    for (name, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6, msg=name)


def matrices(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [p for n, p in model.named_parameters() if is_matrix(n)], "weight_decay": 0.1}
    ]


def rest(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [p for n, p in model.named_parameters() if not is_matrix(n)]}]


def is_matrix(name: str) -> bool:
    return name.endswith("weight") and (".attn." in name or ".mlp." in name)


def test_the_first_step_by_hand() -> None:
    model = nn.ModuleDict({"mlp": nn.ModuleDict({"fc1": nn.Linear(4, 4, bias=False)})})
    wrapped = nn.ModuleList([model])
    weight: Tensor = model["mlp"]["fc1"].weight  # type: ignore[index,assignment]
    before = weight.detach().clone()
    optimizer = build_optimizer(parameter_groups(wrapped, 0.05), CONFIG)
    weight.grad = 3 * torch.eye(4)
    optimizer.step()
    # Equal singular values stay equal: the update is a multiple s of the unit matrix.
    update = (before * (1 - 0.02 * 0.05) - weight) / (0.02 * 0.2 * 4**0.5)
    size = update.diagonal().mean().item()
    torch.testing.assert_close(update, size * torch.eye(4), rtol=0, atol=2e-3)
    assert 0.65 < size < 1.25
    assert weight.grad is None


def test_a_resumed_optimiser_goes_on_as_before() -> None:
    whole = pretraining_model()
    optimizer = build_optimizer(parameter_groups(whole, 0.05), CONFIG)
    with_gradients(whole, 0)
    optimizer.step()
    resumed = deepcopy(whole)
    other = build_optimizer(parameter_groups(resumed, 0.05), CONFIG)
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    for model, its in ((whole, optimizer), (resumed, other)):
        with_gradients(model, 1)
        its.step()
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_float32_where_the_machine_is_slow_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for unit, dtype in (("avx512_bf16", torch.bfloat16), ("", torch.float32)):
        monkeypatch.setattr(parameters, "bfloat16_unit", lambda _, unit=unit: unit)
        optimizer = build_optimizer(parameter_groups(pretraining_model(), 0.05), CONFIG)
        assert isinstance(optimizer, Muon)
        assert optimizer.dtype == dtype


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim.kind is muon.* this model has none.*use adamw"):
        build_optimizer(parameter_groups(nn.Conv2d(3, 4, 3), 0.0), CONFIG)


def test_its_rate_follows_the_layer() -> None:
    groups = parameter_groups(pretraining_model().backbone, 0.05, layer_decay=0.5)
    optimizer = build_optimizer(groups, replace(CONFIG, muon_rate=3.0))
    scales = {group["lr_scale"] for group in optimizer.param_groups if group["orthogonal"]}
    assert scales == {3 * 0.5, 3 * 0.25}

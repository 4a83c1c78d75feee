from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from beit.run.means import Means


def test_weighted_means_by_hand() -> None:
    means = Means()
    means.add({"loss": torch.tensor(1.0, requires_grad=True), "rate": 0.1}, weight=2)
    means.add({"loss": torch.tensor([4.0], dtype=torch.bfloat16)}, weight=1)
    assert means.read() == {"loss": 2.0, "rate": 0.1}
    assert means.read() == {}  # reading starts anew


def test_no_weight_is_no_mean() -> None:
    means = Means()
    means.add({"loss": 1.0}, weight=0)
    assert means.read() == {}


def test_processes_together_see_what_one_would() -> None:
    def run(parts: list[tuple[float, float]], fabric: Any = None) -> Means:
        means = Means(fabric)
        for value, weight in parts:
            means.add({"loss": torch.tensor(value)}, weight)
        return means

    def all_reduce(table: Tensor, reduce_op: str) -> Tensor:
        return table + torch.tensor([[5.0 * 3], [3.0]])  # what the other process has added

    alone = run([(1.0, 2), (2.0, 1), (5.0, 3)]).read()
    assert run([(1.0, 2), (2.0, 1)], SimpleNamespace(all_reduce=all_reduce)).read() == alone


def test_restored_sums_go_on_to_the_same_bits() -> None:
    whole, first, second = Means(), Means(), Means()
    for means in (whole, first):
        means.add({"loss": torch.tensor(0.1), "rate": 0.3}, weight=3)
    assert first.peek("rate") == {"rate": pytest.approx(0.3)}
    assert first.peek("other") == {}
    second.load_state_dict(first.state_dict())
    for means in (whole, second):
        means.add({"loss": torch.tensor(0.7), "rate": 0.9}, weight=7)
    assert second.read() == whole.read()
    assert second.state_dict() == {}


def test_a_vector_is_refused() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        Means().add({"loss": torch.zeros(2)})

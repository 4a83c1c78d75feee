"""Weights drawn alike in every test, and none left at the zeros and ones they start from."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def seeded_weights() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def shaken() -> Callable[[nn.Module], nn.Module]:
    """Move every parameter, so that biases, tables and scales take part in what is compared."""

    def shake(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return module.eval()

    return shake


@pytest.fixture
def saved_tensors() -> Callable[[], AbstractContextManager[list[Tensor]]]:
    """Collect, in a ``with`` block, the tensors that autograd keeps for the gradients."""

    @contextmanager
    def collect() -> Iterator[list[Tensor]]:
        saved: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield saved

    return collect

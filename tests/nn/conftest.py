"""Weights drawn alike in every test, and none left at the zeros and ones they start from."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn


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

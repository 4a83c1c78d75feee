"""Random weights for models of any library, large enough that every tensor changes the output.

Position tables start at zero and layer scales near zero: with those values, exchanging or losing
them would not change the output.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

ONES = ("norm", "ln", "bn", "fpn1.1.")  # what scales in a normalisation is called


@pytest.fixture
def filled() -> Callable[[nn.Module], nn.Module]:
    """Give every tensor values of its own and set eval mode."""

    def fill(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(7)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(_values(name, tensor, generator))
        return model.eval()

    return fill


@pytest.fixture
def same() -> Callable[[nn.Module, nn.Module], bool]:
    """Whether two models have the same tensors by the same names."""

    def compare(one: nn.Module, other: nn.Module) -> bool:
        first, second = one.state_dict(), other.state_dict()
        return first.keys() == second.keys() and all(
            torch.equal(tensor, second[name]) for name, tensor in first.items()
        )

    return compare


def _values(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator)
    if name.endswith("running_var"):
        return 1 + noise.abs()
    if tensor.ndim < 2:
        scales = name.endswith("weight") and any(part in name for part in ONES)
        return 0.3 * noise + float(scales)
    if (tensor.ndim == 2 and "table" not in name) or tensor.ndim == 4:
        return noise * tensor[0].numel() ** -0.5  # sums keep their size
    return 0.5 * noise

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from beit.weights.frozen import open_frozen_model
from beit.weights.teachers import load_teacher


class Pooled(nn.Module):
    """Means of cells of 4 x 4 pixels, times a random weight."""

    image_size = (8, 12)

    def __init__(self, tokens: bool = False) -> None:
        super().__init__()
        self.weight, self.tokens = nn.Parameter(torch.rand(())), tokens

    def forward(self, images: Tensor) -> Tensor:
        maps = nn.functional.avg_pool2d(images, 4) * self.weight  # (B, 3, 2, 3)
        return maps.flatten(2).transpose(1, 2) if self.tokens else maps


class Tokens(Pooled):
    grid = (2, 3)

    def __init__(self) -> None:
        super().__init__(tokens=True)


class Last(nn.Module):
    """A map with its channels last, as of timm's Swin, or a square map of one number."""

    image_size = (16, 16)

    def __init__(self, number: float = 0) -> None:
        super().__init__()
        self.number = number

    def forward(self, images: Tensor) -> Tensor:
        maps = nn.functional.avg_pool2d(images, 4)
        return maps + self.number if self.number else maps.permute(0, 2, 3, 1)


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"pooled": Pooled, "tokens": Tokens, "flat": lambda: Pooled(tokens=True)}
    made |= {"convolution": lambda: nn.Conv2d(3, 5, 2, 2), "linear": lambda: nn.Flatten()}
    made |= {"last": lambda: Last(), "nan": lambda: Last(torch.nan)}
    module = SimpleNamespace(__file__="own_net.py", seven=lambda: 7, **made)
    monkeypatch.setitem(sys.modules, "own_net", module)


@pytest.mark.parametrize("name", ["pooled", "tokens"])
def test_a_module_of_ones_own_is_a_teacher(name: str) -> None:
    state = torch.get_rng_state()
    teacher = load_teacher(f"python:own_net:{name}")
    assert torch.equal(torch.get_rng_state(), state)
    assert (teacher.width, teacher.grid, teacher.image_size) == (3, (2, 3), (8, 12))
    images = torch.randint(256, (2, 3, 8, 12), dtype=torch.uint8)
    out = teacher.features(images, (2, 3))
    expected = nn.functional.avg_pool2d(images / 255, 4) * teacher.network.weight
    torch.testing.assert_close(out, expected.flatten(2).transpose(1, 2).detach())
    assert not any(weight.requires_grad for weight in teacher.parameters())
    again = load_teacher(f"python:own_net:{name}")  # a run that resumes has the same weights
    assert torch.equal(again.network.weight, teacher.network.weight)


def test_it_gives_features_to_tables_and_searches() -> None:
    model = open_frozen_model("teacher:python:own_net:pooled", image_size=(16, 16))
    assert (model.image_size, model.grid, model.width) == ((16, 16), (4, 4), 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("seven", {}, "gives an int; expected a torch.nn.Module"),
        ("convolution", {}, "give image_size, or its module an attribute image_size"),
        ("flat", {}, r"gives \(1, 6, 3\) for 1 images of \(8, 12\); .* attribute grid"),
        ("last", {}, r"gives \(1, 4, 4, 3\) .* Channels that come last .*permute"),
        ("nan", {}, "a Last: its features of a random image are not finite"),
        (
            "linear",
            {"image_size": 8},
            r"gives \(1, 192\) for 1 images of \(8, 8\); expected features",
        ),
        ("pooled", {"pretrained": False}, "makes its own network and weights; leave .* out"),
        ("pooled", {"num_heads": 3}, "makes its own network and weights"),
    ],
)
def test_mistakes_are_refused(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_teacher(f"python:own_net:{name}", **options)


def test_a_file_of_code_is_answered_with_the_name_to_give() -> None:
    with pytest.raises(ValueError, match="as in python:own_net:NAME"):
        load_teacher("own_net.py")

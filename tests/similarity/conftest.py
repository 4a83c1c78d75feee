"""A folder of photos in two classes, and a backbone that tells them apart."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beit.nn.vit import VisionTransformer, ViTConfig
from beit.weights.file import save_weights


def draw(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    """Draw noise around a colour; lossless, so that copies are equal."""
    noise = np.random.default_rng(seed).integers(-40, 41, (24, 30, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number in range(6):
        draw(folder / "red" / f"{number}.png", (200, 60, 60), number)
        draw(folder / "blue" / f"{number}.png", (60, 60, 200), 100 + number)
    return folder


@pytest.fixture
def model(tmp_path: Path, vit: Callable[..., ViTConfig]) -> str:
    torch.manual_seed(0)
    backbone = VisionTransformer(vit(layer_scale=1.0))
    for parameter in backbone.parameters():  # as drawn, all images would look nearly alike
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path / "backbone.safetensors"
    save_weights(path, backbone)
    return str(path)


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))

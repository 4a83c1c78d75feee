"""Settings and weights of small probes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from beit.nn.vit import VisionTransformer, ViTConfig
from beit.probing.probe import Config
from beit.run.device import DeviceConfig
from beit.weights.file import save_weights


@pytest.fixture
def config() -> Callable[..., Config]:
    """Configures a probe of three rates."""

    def configure(**changes: object) -> Config:
        settings: dict[str, object] = {
            "model": "none",
            "train": "none",
            "test": "none",
            "rates": (0.3, 0.003, 0.03),
            "epochs": 4,
            "batch_size": 16,
            "num_workers": 0,
            "device": DeviceConfig(accelerator="cpu"),
        }
        return Config(**(settings | changes))  # type: ignore[arg-type]

    return configure


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    vit = ViTConfig(image_size=(8, 16), patch_size=4, width=12, depth=2, num_heads=3)
    path = tmp_path / "weights.safetensors"
    save_weights(path, VisionTransformer(vit))
    return str(path)

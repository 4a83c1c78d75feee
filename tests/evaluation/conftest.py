"""Small classifiers, folders of images, and settings of an evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beit.evaluation.evaluate import Config
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.vit import ViTConfig
from beit.run.device import DeviceConfig
from beit.weights.file import save_weights

Vit = Callable[..., ViTConfig]


@pytest.fixture(scope="session")
def classifier(vit: Vit) -> ImageClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ImageClassifier(ImageClassifierConfig(vit(), 10))
        for parameter in model.parameters():  # as drawn, all images would look nearly alike
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, classifier: ImageClassifier) -> str:
    path = tmp_path_factory.mktemp("evaluate") / "classifier.safetensors"
    save_weights(path, classifier)
    return str(path)


@pytest.fixture(scope="session")
def config() -> Callable[..., Config]:
    """Configures batches of 5, 5, 5, 5 and 3 images of ten classes."""

    def configure(model: str, data: str = "shapes://23?size=24", **changes: Any) -> Config:
        settings = {"batch_size": 5, "num_workers": 0, "device": DeviceConfig(accelerator="cpu")}
        return Config(model=model, data=data, **(settings | changes))

    return configure


@pytest.fixture(scope="session")
def always(vit: Vit) -> Callable[..., str]:
    """Saves a classifier that ignores its input: its logits are 0 except for the given biases."""

    def save(path: Path, biases: dict[int, float], num_classes: int = 1000, **more: Any) -> str:
        model = ImageClassifier(ImageClassifierConfig(vit(), num_classes, **more))
        torch.nn.init.zeros_(model.head.weight)
        torch.nn.init.zeros_(model.head.bias)
        with torch.no_grad():
            for place, bias in biases.items():
                model.head.bias[place] = bias
        save_weights(path, model)
        return str(path)

    return save


@pytest.fixture(scope="session")
def folder() -> Callable[..., str]:
    """Writes images of noise under the given names; their folder."""

    def write(root: Path, *names: str) -> str:
        for number, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(256, size=(16, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name, "PNG")
        return str(root)

    return write


@pytest.fixture
def layout(tmp_path: Path) -> Callable[..., str]:
    """Writes black images under the given names; their folder."""

    def make(*names: str, root: Path = tmp_path / "set") -> str:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(root / name, "PNG")
        return str(root)

    return make

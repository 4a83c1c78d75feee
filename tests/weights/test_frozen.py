from pathlib import Path

import pytest
import torch
from torch import Tensor

from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.pooling import Kind
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.weights.file import save_weights
from beit.weights.frozen import open_frozen_model
from beit.weights.open import load_backbone

CLS, MEAN = Kind(None, "cls"), Kind(None, "mean")
VIT = ViTConfig(image_size=(8, 16), patch_size=4, width=12, depth=2, num_heads=3)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_weights(path, VisionTransformer(VIT))
    return str(path)


def test_features_are_those_of_the_backbone_in_eval_mode(weights: str) -> None:
    frozen = open_frozen_model(weights)
    assert (frozen.image_size, frozen.width, frozen.depth) == ((8, 16), 12, 2)
    images = torch.randint(256, (2, 3, 8, 16), dtype=torch.uint8)
    kinds = [CLS, MEAN, Kind(1, "cls"), Kind(2, "attentive")]
    with torch.no_grad():
        read = frozen.read(images, kinds)
        features = load_backbone(weights)(images, layers=(1, 2))
    assert list(read) == kinds
    assert torch.equal(read[CLS], features.cls)
    assert torch.equal(read[MEAN], features.patches.mean(dim=1))
    assert torch.equal(read[Kind(1, "cls")], features.layers[1][:, 0])
    assert torch.equal(read[Kind(2, "attentive")], features.layers[2][:, 1:])


def test_untrained_weights_come_from_the_seed_alone(weights: str) -> None:
    images = torch.randint(256, (2, 3, 8, 16), dtype=torch.uint8)

    def embedded(untrained: int | None) -> Tensor:
        before = torch.random.get_rng_state()
        frozen = open_frozen_model(weights, untrained=untrained)
        assert torch.equal(torch.random.get_rng_state(), before)
        with torch.no_grad():
            return frozen.read(images, [MEAN])[MEAN]

    assert torch.equal(embedded(4), embedded(4))
    assert not torch.allclose(embedded(4), embedded(5))
    assert not torch.allclose(embedded(4), embedded(None))


def test_positions_are_carried_to_another_size(weights: str) -> None:
    frozen = open_frozen_model(weights, image_size=16)
    assert frozen.image_size == (16, 16)
    with torch.no_grad():
        read = frozen.read(torch.zeros(1, 3, 16, 16), [Kind(None, "attentive")])
    assert read[Kind(None, "attentive")].shape == (1, 16, 12)
    with pytest.raises(ValueError, match=r"weights.safetensors: .*patch"):
        open_frozen_model(weights, image_size=15)


def test_a_teacher_has_the_mean_of_its_patches_only() -> None:
    frozen = open_frozen_model("teacher:timm:test_vit.r160_in1k", 32, untrained=0)
    assert (frozen.image_size, frozen.width, frozen.depth) == ((32, 32), 64, 0)
    assert not frozen.has_cls
    assert frozen.paper is None
    read = frozen.read(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), [MEAN])
    assert read[MEAN].shape == (2, 64)


@pytest.mark.parametrize(("head_layers", "expected"), [(0, "mean"), (1, "cls")])
def test_the_paper_reads_cls_after_patch_aggregation(
    tmp_path: Path, head_layers: int, expected: str
) -> None:
    numbers = MaskedImageModelConfig(VIT, 5, early_layers=1, head_layers=head_layers)
    save_weights(tmp_path / "pretrained.safetensors", MaskedImageModel(numbers))
    assert open_frozen_model(str(tmp_path / "pretrained.safetensors")).paper == expected

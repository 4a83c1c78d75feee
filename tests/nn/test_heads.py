from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.vit import ViTConfig

BACKBONE = ViTConfig(image_size=(6, 10), patch_size=2, width=12, depth=2, num_heads=3)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@torch.no_grad()
def test_logits_are_a_linear_function_of_the_pooled_tokens(
    shaken: Callable[[nn.Module], nn.Module], pooling: str
) -> None:
    model = ImageClassifier(ImageClassifierConfig(BACKBONE, num_classes=7, pooling=pooling))
    shaken(model)
    images = torch.rand(2, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    tokens = model.backbone(images, layers=(2,)).layers[2]  # (B, 1+N, D), before any norm
    if pooling == "mean":
        norm, pooled = model.fc_norm, sum(tokens[:, 1 + i] for i in range(15)) / 15
    else:
        norm, pooled = model.backbone.norm, tokens[:, 0]
    normed = F.layer_norm(pooled, (12,), norm.weight, norm.bias, eps=1e-6)
    expected = normed @ model.head.weight.T + model.head.bias
    assert model(images).shape == (2, 7)
    torch.testing.assert_close(model(images), expected)


def test_the_pooling_decides_where_the_norm_is() -> None:
    mean = ImageClassifier(ImageClassifierConfig(BACKBONE, num_classes=7))
    assert mean.config.backbone == mean.backbone.config == replace(BACKBONE, final_norm=False)
    assert "backbone.norm.weight" not in mean.state_dict()
    cls = ImageClassifier(ImageClassifierConfig(BACKBONE, num_classes=7, pooling="cls"))
    assert cls.config.backbone == BACKBONE
    assert "fc_norm.weight" not in cls.state_dict()


def test_classes_are_the_names_or_none() -> None:
    config = ImageClassifierConfig(BACKBONE, num_classes=2, class_names=("cat", "dog"))
    assert ImageClassifier(config).classes == ("cat", "dog")
    assert ImageClassifier(replace(config, class_names=None)).classes is None


def test_the_head_starts_near_zero() -> None:
    model = ImageClassifier(ImageClassifierConfig(BACKBONE, num_classes=400))
    assert 0.9 * 2e-5 < model.head.weight.abs().max() <= 2.001e-5  # 0.02 cut at itself, times 0.001
    assert not model.head.bias.any()
    model = ImageClassifier(model.config, init_scale=1.0)
    assert 0.9 * 2e-2 < model.head.weight.abs().max() <= 2.001e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "num_classes must be an integer from 1 on, got 0"),
        ({"num_classes": "3"}, "num_classes must be an integer from 1 on, got '3'"),
        ({"num_classes": 2.5}, "num_classes must be an integer from 1 on, got 2.5"),
        ({"pooling": "max"}, "pooling must be mean or cls, got 'max'"),
        ({"class_names": ("cat", "dog")}, "2 class_names for 3 classes"),
    ],
)
def test_a_classifier_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ImageClassifierConfig(BACKBONE, num_classes=3), **changes)

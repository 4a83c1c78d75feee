from dataclasses import replace

import pytest
import torch

from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.targets import FeatureTarget, PixelTarget
from beit.nn.vit import ViTConfig
from beit.pretraining.targets import TargetConfig, load_target, match_target
from beit.weights.file import save_weights
from beit.weights.formats.published import to_published
from beit.weights.formats.transformers_beit import to_transformers
from beit.weights.open import load, load_backbone

VIT = ViTConfig((16, 24), 8, width=12, depth=2, num_heads=3)
MODEL = MaskedImageModelConfig(VIT, early_layers=1, head_layers=1)
CPU = torch.device("cpu")
FEATURES = {"kind": "features", "source": "timm:test_efficientnet", "pretrained": False}


def test_pixels_are_normalised_and_squared_unless_told_otherwise():
    target = load_target(TargetConfig("pixels"), "", VIT, CPU)
    assert isinstance(target, PixelTarget)
    assert (target.normalised, target.loss, target.width) == (True, "mse", 192)
    raw = TargetConfig("pixels", loss="smooth-l1", normalised=False)
    target = load_target(raw, "", VIT, CPU)
    assert (target.normalised, target.loss) == (False, "smooth-l1")


def test_features_of_a_teacher():
    target = load_target(TargetConfig(**FEATURES, image_size=32), "", VIT, CPU)
    assert isinstance(target, FeatureTarget)
    assert (target.normalised, target.loss) == (False, "cosine")
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    assert target.of(images).shape == (2, 6, target.width)


def test_the_head_follows_the_target():
    target = load_target(TargetConfig("pixels"), "", VIT, CPU)
    fitted = match_target(MODEL, target)  # whatever num_codes says
    assert fitted == replace(
        MODEL, num_codes=0, predicts="pixels", target_width=192, normalised=True
    )
    assert match_target(fitted, target) == fitted
    with pytest.raises(ValueError, match=r"target_width is 5, but the pixels .* are 192 numbers"):
        match_target(replace(fitted, target_width=5), target)
    features = load_target(TargetConfig(**FEATURES, image_size=32), "", VIT, CPU)
    with pytest.raises(
        ValueError, match=r"model\.predicts is pixels, but target\.kind is features"
    ):
        match_target(fitted, features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mse"}, r"target\.loss is 'mse', which is not an option of target\.kind tokens"),
        ({"normalised": False}, r"target\.normalised is False, which is not an option"),
        ({"kind": "pixels", "source": "x"}, r"target\.source is 'x', .* target\.kind pixels"),
        ({"kind": "pixels", "image_size": 8}, r"target\.image_size is 8"),
        ({"kind": "pixels", "loss": "cosine"}, "expected mse or smooth-l1 for pixels"),
        ({"kind": "features"}, "needs a teacher; name one, as in --target.source"),
    ],
)
def test_options_of_another_target_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TargetConfig(**options)


# ── weights files ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def pixel_model():
    target = load_target(TargetConfig("pixels"), "", VIT, CPU)
    return MaskedImageModel(match_target(MODEL, target)).eval()


@torch.no_grad()
def test_a_model_of_pixels_is_saved_and_read(tmp_path, pixel_model):
    save_weights(tmp_path / "w.safetensors", pixel_model)
    read = load(tmp_path / "w.safetensors")
    assert read.config == pixel_model.config
    images, masked = torch.rand(2, 3, 16, 24), torch.tensor([[0, 4], [2, 5]])
    assert torch.equal(read(images, masked).logits, pixel_model(images, masked).logits)
    assert load_backbone(tmp_path / "w.safetensors").config == VIT


def test_published_layouts_have_no_place_for_its_head(pixel_model):
    message = "predicts pixels, and the published layout has a head for tokens only"
    for export in (to_published, to_transformers):
        square = replace(pixel_model.config, backbone=replace(VIT, image_size=(16, 16)))
        with pytest.raises(ValueError, match=message):
            export(MaskedImageModel(square))

import dataclasses
import json
import logging
import re

import pytest
import torch
from safetensors.torch import save_file

from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.weights.crop import stated_crop
from beit.weights.formats.published import to_published
from beit.weights.formats.timm_beit import (
    from_timm,
    recognises,
    timm_arguments,
    timm_config,
    to_timm,
)
from beit.weights.open import load

beit = pytest.importorskip("timm.models.beit")

SIZE = (12, 20)  # grid 3 x 5
SMALL = {"img_size": SIZE, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}
VARIANTS = {
    "version 2": {"use_rel_pos_bias": True, "init_values": 1e-5},
    "shared": {"use_shared_rel_pos_bias": True, "init_values": 0.1, "mlp_ratio": 2.5},
    "[CLS]": {"use_rel_pos_bias": True, "global_pool": "token"},
    "absolute": {"use_abs_pos_emb": True},
}
OURS = ViTConfig(
    image_size=SIZE, patch_size=4, width=24, depth=3, num_heads=2, relative_bias="per_block"
)


@pytest.fixture
def images():
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def theirs(filled, **options):
    return filled(beit.Beit(**{**SMALL, "use_abs_pos_emb": False, "num_classes": 5, **options}))


def normalised(images, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_classifier_of_timm_scores_the_same_here(variant, filled, images):
    model = theirs(filled, **VARIANTS[variant])
    assert recognises(model.state_dict())
    read = from_timm(model.state_dict(), image_size=SIZE, num_heads=2)
    assert isinstance(read, ImageClassifier) and not read.training
    assert read.config.pooling == ("cls" if variant == "[CLS]" else "mean")
    torch.testing.assert_close(read(images), model(normalised(images)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_headless_model_gives_the_features_of_timm(variant, filled, images):
    model = theirs(filled, **VARIANTS[variant], num_classes=0)
    read = from_timm(model.state_dict(), image_size=SIZE, num_heads=2)
    assert isinstance(read, VisionTransformer)
    cls, patches, _, _ = read(images)
    tokens = torch.cat([cls[:, None], patches], dim=1)
    expected = model.forward_features(normalised(images))
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    pooled = cls if variant == "[CLS]" else model.fc_norm(patches.mean(dim=1))
    torch.testing.assert_close(pooled, model(normalised(images)), atol=1e-5, rtol=1e-5)


CLASSIFIERS = [
    {},
    {"relative_bias": "shared", "drop_path": 0.1},
    {"relative_bias": "none", "absolute_positions": True, "layer_scale": None},
    {"image_size": (16, 16), "mlp_ratio": 49 / 24},
    {"relative_bias": "none"},
]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("changes", CLASSIFIERS, ids=str)
@torch.no_grad()
def test_a_classifier_of_ours_opens_in_timm_and_can_be_read_back(changes, pooling, filled, same):
    vit = dataclasses.replace(OURS, **changes)
    model = filled(ImageClassifier(ImageClassifierConfig(vit, 5, pooling)))
    opened = beit.Beit(**timm_arguments(model)).eval()
    opened.load_state_dict(to_timm(model))  # strict
    images = torch.rand(2, 3, *vit.image_size, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(opened(normalised(images)), model(images), atol=1e-5, rtol=1e-5)
    back = from_timm(opened.state_dict(), image_size=vit.image_size, num_heads=2)
    assert same(back, model)
    # Neither a state dict nor the published layout says how training was set.
    training = {"drop_path": vit.drop_path}
    assert dataclasses.replace(back.config.backbone, **training) == model.config.backbone


@pytest.mark.parametrize("final_norm", [True, False])
@torch.no_grad()
def test_a_backbone_of_ours_opens_in_timm_and_can_be_read_back(final_norm, filled, same, images):
    model = filled(VisionTransformer(dataclasses.replace(OURS, final_norm=final_norm)))
    opened = beit.Beit(**timm_arguments(model)).eval()
    opened.load_state_dict(to_timm(model))
    cls, patches, _, _ = model(images)
    found = opened.forward_features(normalised(images))
    torch.testing.assert_close(
        found, torch.cat([cls[:, None], patches], dim=1), atol=1e-5, rtol=1e-5
    )
    assert same(from_timm(opened.state_dict(), image_size=SIZE), model)


@torch.no_grad()
def test_models_of_one_and_of_four_channels_score_as_in_timm(filled, images):
    model = theirs(filled, in_chans=1, use_rel_pos_bias=True)
    half = {"mean": (0.5,), "std": (0.25,)}
    read = from_timm(model.state_dict(), image_size=SIZE, num_heads=2, **half)
    grey = images[:, :1]
    found = read(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, model((grey - 0.5) / 0.25), atol=1e-5, rtol=1e-5)
    # Three values of a mean, as of most configurations, are averaged as timm's loader does.
    assert from_timm(model.state_dict(), image_size=SIZE, num_heads=2).config.backbone.mean == (
        pytest.approx((0.449,))
    )
    four = theirs(filled, in_chans=4, use_rel_pos_bias=True)
    with pytest.raises(ValueError, match="mean has 3 values for 4 channels"):
        from_timm(four.state_dict(), image_size=SIZE, num_heads=2)
    read = from_timm(four.state_dict(), image_size=SIZE, num_heads=2, **half)
    images = torch.cat([images, grey], dim=1)
    torch.testing.assert_close(read(images), four((images - 0.5) / 0.25), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_timm_opens_a_folder_by_its_config(filled, images, tmp_path):
    """Weights beside `config.json`: the right size, normalisation and names of classes."""
    import timm

    names = ("cat", "dog", "eel")
    vit = dataclasses.replace(OURS, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    model = filled(ImageClassifier(ImageClassifierConfig(vit, 3, class_names=names)))
    config = json.loads(json.dumps(timm_config(model, 0.9)))
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(to_timm(model), tmp_path / "model.safetensors")
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(opened)
    assert data["input_size"] == (3, *SIZE)
    assert data["crop_pct"] == stated_crop(str(tmp_path))[0] == 0.9
    found = opened(normalised(images, data["mean"], data["std"]))
    torch.testing.assert_close(found, model(images), atol=1e-5, rtol=1e-5)
    assert opened.pretrained_cfg["label_names"] == list(names)
    assert load(tmp_path).config == model.config


def test_normalisation_defaults_to_that_of_version_2(filled, caplog):
    state = theirs(filled, use_rel_pos_bias=True).state_dict()
    with caplog.at_level(logging.INFO):
        read = from_timm(state, origin="a.safetensors", image_size=SIZE)
    assert read.config.backbone.mean == (0.485, 0.456, 0.406)
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith("a.safetensors: timm's Beit, a classifier of 5 classes (24 wide")
    old = {"architecture": "beit_base_patch16_224", "mean": [0.5] * 3, "std": [0.5] * 3}
    for config in (old, {"architecture": old["architecture"], "pretrained_cfg": old}):
        read = from_timm(state, config=config, image_size=SIZE)
        assert read.config.backbone.std == (0.5, 0.5, 0.5)
    read = from_timm(state, config=old, image_size=SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    assert read.config.backbone.mean == (0, 0, 0)


def test_the_norm_of_the_pooled_mean_is_left_out_of_a_backbone(filled, caplog):
    state = theirs(filled, num_classes=0, use_rel_pos_bias=True).state_dict()
    with caplog.at_level(logging.INFO):
        assert not from_timm(state, image_size=SIZE).config.final_norm
        shown = {"interpolation": "bilinear", "crop_mode": "squash", "crop_pct": 1.0}
        from_timm(state, image_size=SIZE, config={"pretrained_cfg": shown})
    assert "left out fc_norm.weight, fc_norm.bias, of the pooled mean" in caplog.messages[0]
    said = "its interpolation is bilinear, beit's bicubic; its crop_mode is squash, beit's center"
    assert said in caplog.messages[1] and "interpolation" not in caplog.messages[0]


def test_a_different_num_classes_replaces_the_head(filled, caplog):
    model = theirs(filled, use_rel_pos_bias=True)
    config = {"pretrained_cfg": {"label_names": list("abcde")}}
    with caplog.at_level(logging.INFO):
        read = from_timm(model.state_dict(), config=config, image_size=SIZE, num_classes=4)
    assert read.head.weight.shape == (4, 24) and read.config.class_names is None
    assert "head.* (of 5 classes; replaced by a new one for 4" in caplog.text
    assert torch.equal(read.fc_norm.weight, model.fc_norm.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("fc_norm.bias"), "fc_norm.bias is missing"),
        (lambda state: state.pop("blocks.1.attn.v_bias"), "blocks.1.attn.v_bias is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra.* is unexpected"),
        (
            lambda state: state.update({"blocks.2.mlp.norm.weight": torch.zeros(24)}),
            "blocks.2.mlp.norm.weight.* is unexpected",
        ),
        (
            lambda state: state.update({"head.bias": torch.zeros(4)}),
            r"head.bias is \(4,\), expected \(5,\)",
        ),
    ],
)
def test_states_that_do_not_fit_are_refused(change, message, filled):
    state = theirs(filled, use_rel_pos_bias=True).state_dict()
    change(state)
    with pytest.raises(ValueError, match=f"a.pth does not fit an ImageClassifier: .*{message}"):
        from_timm(state, origin="a.pth", image_size=SIZE)


def test_what_timm_does_not_have_is_refused(filled):
    state = theirs(filled, use_rel_pos_bias=True).state_dict()
    with pytest.raises(ValueError, match="is timm's eva02_tiny, expected one of its beit"):
        from_timm(state, config={"architecture": "eva02_tiny"})
    with pytest.raises(ValueError, match=r"config\.json is not as timm writes it .*mean is 0\.5"):
        from_timm(state, config={"mean": 0.5, "std": 0.5})
    model = MaskedImageModel(MaskedImageModelConfig(OURS, 7, early_layers=2))
    with pytest.raises(ValueError, match="timm has no BEiT that is a MaskedImageModel"):
        to_timm(model)


def test_only_timm_leaves_the_position_indices_out(filled):
    model = ImageClassifier(ImageClassifierConfig(OURS, 5))
    assert not recognises(to_published(model))
    pretraining = MaskedImageModel(MaskedImageModelConfig(OURS, 7, early_layers=2))
    state = {name: 0 for name in to_published(pretraining) if not name.endswith("index")}
    assert not recognises(state)
    assert not recognises({re.sub("q_bias", "qkv.bias", name): 0 for name in to_timm(model)})

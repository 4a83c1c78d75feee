import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch

from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import VisionTransformer, vit_config
from beit.weights.formats.published import from_published, to_published
from beit.weights.formats.published_config import classifier_config, mim_config, vqkd_config

LAYOUTS = json.loads((Path(__file__).parents[2] / "goldens/published_layouts.json").read_text())
PUBLISHED = {
    "vqkd_encoder_base_decoder_3x768x12_clip": VQKDConfig(),
    "vqkd_encoder_base_decoder_1x768x12_clip": VQKDConfig(decoder_depth=1),
    "vqkd_encoder_base_decoder_1x768x12_dino": VQKDConfig(decoder_depth=1, teacher_width=768),
    "beitv2_base_patch16_224_pt1k": MaskedImageModelConfig(vit_config("B")),
    "beitv2_large_patch16_224_pt1k": MaskedImageModelConfig(vit_config("L"), early_layers=21),
    **{
        f"beitv2_{name}_patch16_224_pt1k_ft1k": ImageClassifierConfig(
            vit_config(size, relative_bias="per_block"), num_classes=1000
        )
        for name, size in (("base", "B"), ("large", "L"))
    },
}
KINDS = {
    VQKDConfig: (VQKD, vqkd_config),
    MaskedImageModelConfig: (MaskedImageModel, mim_config),
    ImageClassifierConfig: (ImageClassifier, classifier_config),
}


def test_every_published_layout_is_here():
    assert PUBLISHED.keys() == LAYOUTS.keys()


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_and_shapes_equal_the_published_ones(name):
    config = PUBLISHED[name]
    with torch.device("meta"):
        model = KINDS[type(config)][0](config)
    state = to_published(model)
    assert {key: list(tensor.shape) for key, tensor in state.items()} == LAYOUTS[name]["keys"]
    indices = [tensor for key, tensor in state.items() if key.endswith("index")]
    assert all(tensor.dtype == torch.int64 for tensor in indices)


@pytest.mark.parametrize("name", PUBLISHED)
def test_configuration_is_read_off_the_published_shapes(name):
    state = {key: torch.empty(shape, device="meta") for key, shape in LAYOUTS[name]["keys"].items()}
    _, config_of = KINDS[type(PUBLISHED[name])]
    assert config_of(state, name, {}) == PUBLISHED[name]


def test_a_tokenizer_of_another_width_does_not_say_its_number_of_heads(caplog):
    parts = VQKDConfig()
    sizes = {"image_size": (32, 32), "width": 64, "depth": 1, "num_heads": 4}
    config = dataclasses.replace(
        parts, encoder=dataclasses.replace(parts.encoder, **sizes), decoder_depth=1, num_codes=8
    )
    state = to_published(VQKD(config))
    assert from_published(state).config.encoder.num_heads == 1
    assert "does not say its number of heads; taken as 1, of 64 channels each" in caplog.text
    caplog.clear()
    assert from_published(state, num_heads=4).config.encoder.num_heads == 4
    assert caplog.text == ""


def test_round_trip_of_a_tokenizer_on_a_grid_that_is_not_square(tokenizer):
    read = from_published(to_published(tokenizer), num_heads=2, image_size=(12, 20))
    assert read.config == tokenizer.config
    assert not read.training
    assert same(read, tokenizer)


@pytest.mark.parametrize(
    "changes",
    [
        {"head_layers": 0},
        {"head_layers": 2, "shared_head": True},
        {"head_layers": 1, "shared_head": False},
        {"relative_bias": "per_block", "image_size": (12, 20)},
        {"relative_bias": "none", "absolute_positions": True, "layer_scale": None},
        {"relative_bias": "none", "image_size": (12, 20)},
        {"mlp_ratio": 49 / 24},
    ],
    ids=str,
)
def test_round_trip_of_a_pretraining_model(pretrained, changes):
    top = {name: changes[name] for name in changes if name in ("head_layers", "shared_head")}
    vit = {name: changes[name] for name in changes if name not in top}
    config = dataclasses.replace(
        pretrained.config,
        **top,
        backbone=dataclasses.replace(pretrained.config.backbone, **vit),
    )
    model = MaskedImageModel(config)
    read = from_published(
        to_published(model),
        num_heads=2,
        early_layers=2,
        image_size=config.backbone.image_size,
    )
    if config.head_layers == 0:  # shared with whom?
        read.config = dataclasses.replace(read.config, shared_head=config.shared_head)
    assert read.config == config
    assert same(read, model)


@pytest.mark.parametrize(
    ("pooling", "relative_bias", "image_size"),
    [("mean", "per_block", (12, 20)), ("cls", "shared", (16, 16)), ("mean", "none", (12, 20))],
)
def test_round_trip_of_a_classifier(classifier, pooling, relative_bias, image_size):
    backbone = dataclasses.replace(
        classifier.config.backbone,
        relative_bias=relative_bias,
        image_size=image_size,
        absolute_positions=relative_bias == "none",
    )
    config = ImageClassifierConfig(backbone, num_classes=5, pooling=pooling)
    model = ImageClassifier(config)
    state = to_published(model)
    assert ("fc_norm.weight" in state, "norm.weight" in state) == (
        pooling == "mean",
        pooling != "mean",
    )
    read = from_published(state, num_heads=2, image_size=image_size)
    assert read.config == config
    assert same(read, model)
    named = from_published(state, num_heads=2, image_size=image_size, class_names=list("abcde"))
    assert named.config.class_names == ("a", "b", "c", "d", "e")


def test_round_trip_of_a_backbone(backbone):
    read = from_published(to_published(backbone), num_heads=2)
    assert read.config == backbone.config
    assert same(read, backbone)


def test_a_different_num_classes_replaces_the_head(classifier, caplog):
    state = to_published(classifier)
    with caplog.at_level(logging.INFO):
        read = from_published(state, num_classes=7)
    (record,) = caplog.records
    assert (
        "left out head.* (of 5 classes; replaced by a new one for 7, near zero)"
        in record.getMessage()
    )
    assert read.head.weight.shape == (7, 24)
    assert 0 < read.head.weight.abs().max() < 1e-4
    assert not read.head.bias.any()
    assert same(read.backbone, classifier.backbone)
    assert same(read.fc_norm, classifier.fc_norm)
    assert same(from_published(state, num_classes=5), classifier)
    with pytest.raises(ValueError, match=r"head\.bias is \(4,\), expected \(5,\)"):
        from_published(state | {"head.bias": torch.zeros(4)})


@pytest.mark.parametrize("container", ["model", "module", "state_dict"])
def test_what_is_left_out_is_logged_in_one_line(tokenizer, caplog, container):
    state = to_published(tokenizer)
    state["teacher_model.visual.proj"] = torch.zeros(3, 2)
    state["teacher_model.logit_scale"] = torch.zeros(())
    state["scaling_layer.shift"] = torch.zeros(1, 3, 1, 1)
    state["loss.weight"] = torch.zeros(1)
    with caplog.at_level(logging.INFO):
        read = from_published({container: state, "epoch": 9}, num_heads=2, image_size=(12, 20))
    assert same(read, tokenizer)
    (record,) = caplog.records
    for part in (
        "published layout, a VQ-KD tokenizer of 11 codes (24 wide, 3 blocks, 2 heads, ",
        "left out teacher_model.*: the teacher (2 tensors)",
        "left out scaling_layer.*: for the teacher's input",
        "left out loss*: of the training loss",
        "left out quantize.embedding.cluster_size: never read",
        "left out quantize.embedding.embed_avg: never read",
    ):
        assert part in record.getMessage()


def test_cleaned_tokenizer_without_bookkeeping_loads(tokenizer):
    state = to_published(tokenizer)
    for name in ("quantize.cluster_size", "quantize.embedding.embed_avg"):
        del state[name]
    read = from_published(state, num_heads=2, image_size=(12, 20))
    assert torch.equal(read.quantizer.codebook, tokenizer.quantizer.codebook)
    assert read.quantizer.counts.eq(0).all()


def test_a_guessed_number_of_heads_is_said(pretrained, caplog):
    changes = {"relative_bias": "none", "absolute_positions": True, "width": 128, "num_heads": 4}
    vit = dataclasses.replace(pretrained.config.backbone, **changes)
    state = VisionTransformer(vit).state_dict()  # bare: the same names as a published backbone
    assert from_published(state, image_size=vit.image_size).config.num_heads == 2
    assert "does not say its number of heads; taken as 2, of 64 channels each" in caplog.text
    caplog.clear()
    assert from_published(state, image_size=vit.image_size, num_heads=4).config.num_heads == 4
    assert caplog.text == ""


def test_normalisation_is_as_trained_unless_given(tokenizer, pretrained):
    tokenizer_state, state = to_published(tokenizer), to_published(pretrained)
    read = from_published(tokenizer_state, num_heads=2, image_size=(12, 20))
    assert read.config.encoder.mean == read.config.encoder.std == (0.5, 0.5, 0.5)
    assert from_published(state, early_layers=2).config.backbone.mean == (0.485, 0.456, 0.406)
    read = from_published(state, early_layers=2, mean=[0, 0, 0], std=[1, 1, 1])
    assert read.config.backbone.mean == (0, 0, 0)


def test_settings_that_shapes_do_not_determine_are_required(tokenizer, pretrained):
    state = to_published(tokenizer)
    with pytest.raises(ValueError, match=r"width 24.*give num_heads=…"):
        from_published(state, image_size=(12, 20))
    with pytest.raises(ValueError, match="give image_size="):
        from_published(state, num_heads=2)
    with pytest.raises(ValueError, match="positions in the state are for another"):
        from_published(state, num_heads=2, image_size=16)
    with pytest.raises(ValueError, match=r"depth 3.*give early_layers=…"):
        from_published(to_published(pretrained))
    with pytest.raises(ValueError, match="num_heads=3, but the position table in the state has 2"):
        from_published(to_published(pretrained), early_layers=2, num_heads=3)
    with pytest.raises(ValueError, match="the state has width 24, not a multiple of num_heads=5"):
        from_published(state, num_heads=5, image_size=(12, 20))
    with pytest.raises(ValueError, match="no override early_layers; expected num_heads"):
        from_published(state, num_heads=2, image_size=(12, 20), early_layers=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("norm.bias"), ": norm.bias is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), r"extra \(published name\) is unex"),
        # Our own name of a tensor is not a published one.
        (
            lambda state: state.update({"backbone.cls_token": state.pop("cls_token")}),
            r": cls_token is missing; backbone.cls_token \(published name\) is unexpected",
        ),
        (
            lambda state: state.update({"norm.weight": torch.zeros(23)}),
            r": norm.weight is \(23,\), expected \(24,\)",
        ),
        (lambda state: state.update({"patch_embed.proj.weight": torch.zeros(3)}), "4 sizes"),
        (
            lambda state: state.update(epoch=3),
            "does not hold tensors by name.*got other entries: 'epoch'",
        ),
        (lambda state: state.pop("mask_token"), "mask_token is missing"),
        (lambda state: state.pop("blocks.0.attn.q_bias"), "no known layout"),
        (lambda state: state.update({"norm.bias": torch.zeros(24).int()}), "is torch.int32, exp"),
        (lambda state: state.clear(), "got nothing"),
    ],
)
def test_states_that_do_not_fit_are_refused(pretrained, change, message):
    state = to_published(pretrained)
    change(state)
    with pytest.raises(ValueError, match=message):
        from_published(state, early_layers=2)


def test_other_modules_have_no_published_layout():
    with pytest.raises(ValueError, match="a Linear has no published BEiT layout"):
        to_published(torch.nn.Linear(2, 3))


def test_codes_that_are_not_l2_normalised_have_no_published_layout(tokenizer):
    with pytest.raises(ValueError, match=r"codes are not l2-normalised.*export it as safetensors"):
        to_published(VQKD(dataclasses.replace(tokenizer.config, l2_normalised=False)))

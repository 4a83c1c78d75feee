import dataclasses
import json
import logging
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.segmenter import SegmenterConfig, SemanticSegmenter
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.weights.formats.transformers_beit import (
    from_transformers,
    recognises,
    to_transformers,
)
from beit.weights.formats.transformers_config import image_processor_config, transformers_config
from beit.weights.open import load, load_backbone

transformers = pytest.importorskip("transformers")

SIDE, CLASSES, CODES = 20, 5, 11  # grid 5 x 5
SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": SIDE,
    "patch_size": 4,
    "vocab_size": CODES,
    "num_labels": CLASSES,
    "layer_norm_eps": 1e-6,
}
PER_BLOCK = {"use_relative_position_bias": True}
SHARED = {"use_shared_relative_position_bias": True}
ABSOLUTE = {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0}
CLS = {"use_mean_pooling": False}
PYRAMID = {"out_indices": [2, 3, 4, 5], "auxiliary_channels": 6}
THEIRS = [
    ("BeitForMaskedImageModeling", {"use_mask_token": True, **SHARED}),
    ("BeitForMaskedImageModeling", {"use_mask_token": True, **PER_BLOCK}),
    ("BeitForImageClassification", PER_BLOCK),
    ("BeitForImageClassification", {**ABSOLUTE, **CLS}),
    ("BeitForSemanticSegmentation", {**PER_BLOCK, **PYRAMID}),
    ("BeitForSemanticSegmentation", {**SHARED, **PYRAMID, "use_auxiliary_head": False}),
    ("BeitModel", {**PER_BLOCK, **CLS}),
    ("BeitModel", {**SHARED, "use_mask_token": True}),
]
OURS = ViTConfig(
    image_size=(SIDE, SIDE),
    patch_size=4,
    width=24,
    depth=4,
    num_heads=3,
    mlp_ratio=40 / 24,
    relative_bias="per_block",
    drop_path=0.2,
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
)
MASKED = torch.tensor([[0, 3, 7], [1, 8, 24]])
OUR_MODELS = {
    "pretraining": MaskedImageModel(
        MaskedImageModelConfig(dataclasses.replace(OURS, relative_bias="shared"), CODES, 4, 0)
    ),
    "classifier": ImageClassifier(ImageClassifierConfig(OURS, CLASSES, class_names=tuple("abcde"))),
    "classifier by [CLS]": ImageClassifier(
        ImageClassifierConfig(
            dataclasses.replace(
                OURS, relative_bias="none", absolute_positions=True, layer_scale=None
            ),
            CLASSES,
            "cls",
        )
    ),
    "segmenter of the last block": SemanticSegmenter(
        SegmenterConfig(OURS, 3, (1, 2, 3, 4), auxiliary_channels=6, class_names=tuple("xyz"))
    ),
    "segmenter without": SemanticSegmenter(
        SegmenterConfig(dataclasses.replace(OURS, depth=6), CLASSES, (1, 2, 3, 5), auxiliary=False)
    ),
    "backbone": VisionTransformer(OURS),
    "backbone without norm": VisionTransformer(
        dataclasses.replace(OURS, final_norm=False, relative_bias="shared")
    ),
}


@pytest.fixture
def images():
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def theirs(filled):
    def build(name, **options):
        config = transformers.BeitConfig(**{**SMALL, **options})
        return filled(getattr(transformers, name)(config))

    return build


def normalised(images, mean=(0.5,) * 3, std=(0.5,) * 3):
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@torch.no_grad()
def output_of_theirs(model, pixels):
    if type(model).__name__ == "BeitForMaskedImageModeling":
        hidden = torch.zeros(2, 25).scatter_(1, MASKED, 1).bool()
        return model(pixels, bool_masked_pos=hidden).logits[hidden].view(2, 3, -1)
    if type(model).__name__ == "BeitModel":
        return model(pixels).last_hidden_state
    return model(pixels).logits


@torch.no_grad()
def output_of_ours(model, images):
    if isinstance(model, MaskedImageModel):
        return model(images, MASKED).logits
    if isinstance(model, VisionTransformer):
        cls, patches, _, _ = model(images)
        return torch.cat([cls[:, None], patches], dim=1)
    return model(images).logits if isinstance(model, SemanticSegmenter) else model(images)


def written(folder, model):
    """Write ours as a folder of transformers'."""
    contents = {
        "config.json": transformers_config(model),
        "preprocessor_config.json": image_processor_config(model),
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    save_file(to_transformers(model), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("names", ["in memory", "in files"])
@pytest.mark.parametrize(("name", "options"), THEIRS)
def test_a_model_of_transformers_computes_the_same_here(
    name, options, names, theirs, images, tmp_path
):
    model = theirs(name, **options)
    state = model.state_dict()
    if names == "in files":
        model.save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
    assert recognises(state)
    read = from_transformers(state, config=json.loads(model.config.to_json_string()))
    assert not read.training
    expected = output_of_theirs(model, normalised(images))
    torch.testing.assert_close(output_of_ours(read, images), expected, atol=1e-5, rtol=1e-5)
    if name == "BeitForSemanticSegmentation":
        assert read.config.auxiliary is (options.get("use_auxiliary_head") is not False)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of from_pretrained
@pytest.mark.parametrize("name", OUR_MODELS)
def test_a_model_of_ours_opens_in_transformers_and_can_be_read_back(
    name, filled, same, images, tmp_path
):
    model = filled(OUR_MODELS[name])
    written(tmp_path, model)
    theirs = getattr(transformers, transformers_config(model)["architectures"][0])
    opened, report = theirs.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor(images, do_rescale=False, return_tensors="pt")["pixel_values"]
    expected = output_of_ours(model, images)
    found = output_of_theirs(opened.eval(), pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    opened.save_pretrained(tmp_path / "again")
    config, processor = (
        json.loads((tmp_path / file).read_text())
        for file in ("again/config.json", "preprocessor_config.json")
    )
    state = load_file(tmp_path / "again/model.safetensors")
    back = from_transformers(state, config=config, processor=processor)
    assert same(back, model)
    # Beyond the tensors: sizes, normalisation, classes, what the pyramid reads.
    assert without_training(back.config) == without_training(model.config)


def test_beit_load_opens_the_folder_or_the_file_in_it(filled, same, tmp_path):
    model = filled(OUR_MODELS["classifier"])
    written(tmp_path, model)
    for source in (tmp_path, tmp_path / "model.safetensors"):
        read = load(source)
        assert same(read, model)
        assert read.config.backbone.mean == OURS.mean
        assert read.config.class_names == tuple("abcde")
    vit = load_backbone(tmp_path, image_size=(24, 28))
    assert vit.config.grid == (6, 7)
    torch.save(to_transformers(model), tmp_path / "pytorch_model.bin")
    assert same(load(tmp_path / "pytorch_model.bin"), model)


def without_training(config):
    """Reset the settings of training, which are not in the files."""
    changes = {"drop_path": 0.0, "init_bound": 0.02}
    if isinstance(config, ViTConfig):
        return dataclasses.replace(config, **changes)
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, **changes))


def test_the_patch_aggregation_is_left_out_and_named(filled, images, caplog):
    for shared in (True, False):
        config = MaskedImageModelConfig(OURS, CODES, 2, 1, shared)
        model = filled(MaskedImageModel(config))
        caplog.clear()
        with caplog.at_level(logging.INFO):
            state = to_transformers(model)
        assert "has no patch aggregation; left out cls_pt_" in caplog.text
        back = from_transformers(
            state, config=transformers_config(model), mean=OURS.mean, std=OURS.std
        )
        assert back.config.head_layers == 0
        torch.testing.assert_close(output_of_ours(back, images), output_of_ours(model, images))


def test_transformers_cannot_read_the_last_block_for_a_segmenter():
    """Why a block without effect is added: out_indices ends one short of it."""
    model = OUR_MODELS["segmenter of the last block"]
    config = transformers_config(model)
    assert (config["num_hidden_layers"], config["out_indices"]) == (5, [2, 3, 4, 5])
    with pytest.raises(ValueError, match="out_indices must be valid"):
        transformers.BeitConfig(num_hidden_layers=4, out_indices=[2, 3, 4, 5])
    assert transformers_config(OUR_MODELS["segmenter without"])["num_hidden_layers"] == 6


def test_blocks_of_a_segmenter_are_those_that_transformers_reads(theirs, caplog):
    """Its out_indices of the converted published models mean earlier blocks than published."""
    model = theirs("BeitForSemanticSegmentation", **PER_BLOCK, **PYRAMID)
    config = model.config.to_dict()
    with caplog.at_level(logging.INFO):
        assert from_transformers(model.state_dict(), config=config).config.layers == (1, 2, 3, 4)
    assert "the pyramid reads blocks (1, 2, 3, 4), from its out_indices" in caplog.text
    read = from_transformers(model.state_dict(), config=config, layers=(2, 3, 4, 5))
    assert read.config.layers == (2, 3, 4, 5)


def test_json_files_and_overrides_set_what_shapes_do_not_determine(theirs, caplog):
    model = theirs("BeitForImageClassification", **ABSOLUTE)
    state, config = model.state_dict(), model.config.to_dict()
    with pytest.raises(ValueError, match=r"width 24.*give num_heads"):
        from_transformers(state)
    with caplog.at_level(logging.INFO):
        read = from_transformers(state, origin="a.bin", config=config | {"layer_norm_eps": 1e-12})
    assert read.config.backbone.num_heads == 3
    assert read.config.backbone.mean == (0.5, 0.5, 0.5)
    assert read.config.class_names is None
    *_, warning, line = caplog.messages
    assert warning.startswith("a.bin does not say how its images were normalised")
    assert line.startswith("a.bin: transformers' BeitForImageClassification, a classifier of 5")
    assert line.endswith("; its layer_norm_eps of 1e-12 becomes 1e-06")
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    read = from_transformers(state, config=config, processor=processor)
    assert read.config.backbone.std == (0.4, 0.5, 0.6)
    read = from_transformers(state, config=config, processor={"do_normalize": False})
    assert read.config.backbone.mean is None
    named = config | {"id2label": {str(number): f"n{number}" for number in range(CLASSES)}}
    assert from_transformers(state, config=named).config.class_names == tuple(
        f"n{number}" for number in range(CLASSES)
    )
    read = from_transformers(state, config=named, num_classes=2)
    assert read.config.num_classes == 2 and read.config.class_names is None


def test_position_indices_of_old_files_are_left_out(theirs, caplog):
    state = theirs("BeitForImageClassification", **PER_BLOCK).state_dict()
    name = "beit.encoder.layer.0.attention.attention.relative_position_bias.relative_position_index"
    state[name] = torch.zeros(26, 26, dtype=torch.int64)
    with caplog.at_level(logging.INFO):
        from_transformers(state)
    assert "left out relative_position_index (1 tensors)" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("classifier.bias"), "head.bias is missing"),
        (
            lambda state: state.pop("beit.layers.1.attention.k_proj.weight"),
            "unexpected or incomplete: beit.encoder.layer.1.attention.attention.query.weight",
        ),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected or incomplete: extra"),
        # Normed twice, which ours is not.
        (
            lambda state: state.update({"beit.layernorm.bias": torch.zeros(24)}),
            "norm.bias.* is unexpected",
        ),
        (
            lambda state: state.update({"classifier.bias": torch.zeros(4)}),
            r"head.bias is \(4,\), expected \(5,\)",
        ),
    ],
)
def test_states_that_do_not_fit_are_refused(change, message, theirs):
    state = theirs("BeitForImageClassification", **PER_BLOCK).state_dict()
    change(state)
    with pytest.raises(ValueError, match=f"^a.bin .*{message}"):
        from_transformers(state, origin="a.bin")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "vit"}, "its model_type is 'vit', expected beit or data2vec-vision"),
        ({"hidden_act": "relu"}, "its hidden_act is 'relu', expected 'gelu'"),
        ({"layer_norm_eps": 1e-5}, "its layer_norm_eps is 1e-05, expected 1e-06 or less"),
        ({"layer_norm_eps": "small"}, "its layer_norm_eps is 'small', expected float"),
        ({"pool_scales": [1, 2]}, r"its pool_scales is \[1, 2\]"),
        ({"image_size": "20"}, "its image_size is '20', expected int"),
        ({"image_size": [20, 24]}, "exchanges height and width of its position tables"),
        ({"num_attention_heads": 2}, "num_heads=2, but the position table in .* has 3"),
    ],
)
def test_configurations_that_ours_does_not_compute_are_refused(config, message, theirs):
    state = theirs("BeitForImageClassification", **PER_BLOCK).state_dict()
    with pytest.raises(ValueError, match=message):
        from_transformers(state, config=config)


@torch.no_grad()
def test_transformers_reads_tables_wrongly_where_images_are_not_square(theirs):
    """The reason for the refusals: height and width of the table are exchanged."""
    model = theirs("BeitForImageClassification", **PER_BLOCK, image_size=[8, 24])
    bias = model.beit.layers[0].relative_position_bias
    table = bias.relative_position_bias_table
    index = bias.generate_relative_position_index((2, 6))
    right = table[index].permute(2, 0, 1)[None]
    assert not torch.allclose(bias((2, 6)), right)


def test_models_that_transformers_does_not_have_are_refused(filled):
    wide = VisionTransformer(dataclasses.replace(OURS, image_size=(16, 24)))
    with pytest.raises(ValueError, match="images of 16 x 24, and transformers reads"):
        to_transformers(wide)
    narrow = SemanticSegmenter(SegmenterConfig(OURS, 3, (1, 2, 3, 4), channels=8))
    with pytest.raises(ValueError, match="the decoder has 8 channels over a backbone of width 24"):
        transformers_config(narrow)
    with torch.device("meta"):
        tokenizer = VQKD(VQKDConfig())
    with pytest.raises(ValueError, match="transformers has no BEiT that is a VQKD"):
        to_transformers(tokenizer)


def test_other_models_are_not_taken_for_beit(theirs):
    vit = transformers.ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3)
    assert not recognises(transformers.ViTModel(vit).state_dict())
    assert not recognises({"cls_token": torch.zeros(1)})


@pytest.mark.parametrize("task", ["Model", "ForImageClassification", "ForSemanticSegmentation"])
def test_data2vec_is_the_same_network(task, filled, images, tmp_path):
    options = {**SMALL, **PYRAMID} if task == "ForSemanticSegmentation" else SMALL
    config = transformers.Data2VecVisionConfig(**options, use_relative_position_bias=True)
    model = filled(getattr(transformers, f"Data2VecVision{task}")(config))
    model.save_pretrained(tmp_path)
    read = load(tmp_path)
    with torch.no_grad():
        output = model(normalised(images))
        expected = output.last_hidden_state if task == "Model" else output.logits
    torch.testing.assert_close(output_of_ours(read, images), expected, atol=1e-5, rtol=1e-5)


def test_a_guessed_normalisation_is_warned_about(theirs, tmp_path, caplog):
    model = theirs("BeitForImageClassification", **PER_BLOCK)
    model.save_pretrained(tmp_path)
    load(tmp_path, mean=0.4, std=0.3)
    assert not caplog.messages
    for given, std in (({}, 0.5), ({"mean": 0.4}, 0.5), ({"std": 0.3}, 0.3)):
        caplog.clear()
        assert load(tmp_path, **given).config.backbone.std == (std,) * 3
        (message,) = caplog.messages
        assert "there is no preprocessor_config.json. Taken as by mean and std 0.5" in message


@pytest.mark.parametrize(
    ("resample", "said"), [(2, "resizes by bilinear interpolation"), (3, ""), ([2], ""), (None, "")]
)
def test_another_interpolation_than_ours_is_logged(resample, said, theirs, tmp_path, caplog):
    theirs("BeitForImageClassification", **PER_BLOCK).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": resample}))
    caplog.set_level("INFO")
    load(tmp_path)
    assert ("beit bicubically" in caplog.text) == bool(said)
    assert said in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [0.5, 0.6, 0.7]},
        {"rescale_factor": 1 / 127.5, "do_normalize": False},
        {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [58.0] * 3},
        {"do_normalize": False},
    ],
)
def test_values_are_scaled_as_by_the_image_processor(settings, theirs, tmp_path):
    model = theirs("BeitForImageClassification", **PER_BLOCK)
    model.save_pretrained(tmp_path)
    transformers.BeitImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, **settings
    ).save_pretrained(tmp_path)
    levels = torch.randint(256, (2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor(levels.byte(), return_tensors="pt")["pixel_values"]
    expected = output_of_theirs(model, pixels)
    found = output_of_ours(load(tmp_path), levels.byte())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": {"height": 24, "width": 24}}, r"of 24 x 24, and .* for 20 x 20; .*=\(24, 24\)"),
        ({"size": 24, "do_center_crop": True, "crop_size": {"height": 20, "width": 20}}, ""),
        ({"size": {"shortest_edge": 24}}, ""),
        ({"do_resize": False}, "its image processor does not resize, beit does"),
        ({"do_rescale": False}, "does not rescale values, beit takes images in \\[0, 1\\]"),
    ],
)
def test_what_an_image_processor_does_otherwise_is_said(settings, said, theirs, tmp_path, caplog):
    theirs("BeitForImageClassification", **PER_BLOCK).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    caplog.set_level("INFO")
    assert load(tmp_path).config.backbone.mean == (0.5,) * 3
    assert re.search(said, caplog.text)
    assert bool(said) == ("image processor" in caplog.text)


@pytest.mark.parametrize(
    ("name", "value", "ours"),
    [
        ("num_hidden_layers", 6, 5),
        ("hidden_size", 48, 24),
        ("patch_size", 8, 4),
        ("use_mean_pooling", False, True),
    ],
)
def test_a_configuration_of_another_model_is_refused(name, value, ours, theirs, tmp_path):
    theirs("BeitForImageClassification", **PER_BLOCK).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {name: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"says {name} {value}, and its tensors have {ours}:"):
        load(tmp_path)


def test_the_input_of_the_first_block_is_no_block_of_the_pyramid(theirs, tmp_path):
    options = PYRAMID | {"out_indices": [1, 2, 3, 4]}
    theirs("BeitForSemanticSegmentation", **PER_BLOCK, **options).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"its out_indices are \(1, 2, 3, 4\); expected four from"):
        load(tmp_path)

import json

import pytest
import torch
from safetensors.torch import save_file

from beit.weights.formats.clip import CLIP_MEAN, CLIP_STD, from_clip
from beit.weights.teachers import load_teacher

transformers = pytest.importorskip("transformers")

VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "image_size": 20,
    "patch_size": 4,  # grid 5 x 5
    "projection_dim": 7,
}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}


@pytest.fixture
def whole(filled):
    return filled(
        transformers.CLIPModel(
            transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=7)
        )
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["CLIPModel", "CLIPVisionModelWithProjection"])
def test_a_clip_of_transformers_is_a_teacher_with_the_same_features(name, whole, tmp_path):
    """All patch tokens after the last norm, times the projection: one image vector's way."""
    model = whole
    if name == "CLIPVisionModelWithProjection":
        model = transformers.CLIPVisionModelWithProjection(whole.config.vision_config).eval()
        kept = model.state_dict().keys()
        model.load_state_dict({k: v for k, v in whole.state_dict().items() if k in kept})
    model.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path / "model.safetensors", num_heads=2)
    assert (teacher.width, teacher.grid) == (7, (5, 5))

    images = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    tower = model.vision_model
    tokens = tower((images - mean) / std).last_hidden_state[:, 1:]
    expected = model.visual_projection(tower.post_layernorm(tokens))
    torch.testing.assert_close(teacher.features(images, (5, 5)), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_the_folder_says_of_a_clip_is_followed(filled, tmp_path, caplog):
    """As for the models of LAION, which have GELU, and heads of other than 64 channels."""
    vision = VISION | {"hidden_size": 64, "num_attention_heads": 4, "hidden_act": "gelu"}
    config = transformers.CLIPVisionConfig(**vision)
    model = filled(transformers.CLIPVisionModelWithProjection(config))
    model.save_pretrained(tmp_path)
    processor = tmp_path / "preprocessor_config.json"
    processor.write_text(json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}))
    images = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    tower = model.vision_model
    tokens = tower((images - mean) / std).last_hidden_state[:, 1:]
    expected = model.visual_projection(tower.post_layernorm(tokens))
    found = load_teacher(tmp_path).features(images, (5, 5))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not caplog.messages
    with pytest.raises(ValueError, match=r"num_heads=1, but config\.json beside it says 4"):
        load_teacher(tmp_path, num_heads=1)
    settings = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"hidden_act": "gelu_new"}, "its hidden_act is gelu_new, expected gelu or quick_gelu"),
        ({"num_attention_heads": "4"}, "config.json: num_attention_heads is '4', expected int"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match=message):
            load_teacher(tmp_path)
    (tmp_path / "config.json").unlink()
    load_teacher(tmp_path)
    assert "does not say its activation: taken as OpenAI's CLIP" in caplog.text


def test_counts_of_positions_in_older_files_are_passed_over(whole):
    state = whole.state_dict()
    expected = from_clip(state)
    state["vision_model.embeddings.position_ids"] = torch.arange(26)[None]
    assert from_clip(state).keys() == expected.keys()
    assert not any(name.startswith("text") for name in expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("visual_projection.weight"), "head.weight"),
        (
            lambda state: state.pop("vision_model.encoder.layers.1.self_attn.k_proj.bias"),
            "blocks.1.attn.qkv.bias is missing",
        ),
        (
            lambda state: state.update({"vision_model.extra": torch.zeros(1)}),
            "extra is unexpected",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(change, message, whole, tmp_path):
    state = whole.state_dict()
    change(state)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"a.safetensors, read in the layout of CLIP: .*{message}"):
        load_teacher(tmp_path / "a.safetensors", num_heads=2)

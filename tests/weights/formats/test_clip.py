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

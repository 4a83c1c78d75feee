import json

import pytest
import torch
from safetensors.torch import save_file

from beit.nn.patches import IMAGENET_MEAN, IMAGENET_STD
from beit.weights.formats.dino import from_dino
from beit.weights.teachers import load_teacher

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "image_size": 20,
    "patch_size": 4,  # grid 5 x 5
    "layer_norm_eps": 1e-6,
}


@pytest.fixture
def vit(filled):
    return filled(transformers.ViTModel(transformers.ViTConfig(**SMALL)))


@torch.no_grad()
@pytest.mark.parametrize("names", ["in files", "in memory", "under a head"])
def test_a_vit_of_transformers_is_a_teacher_with_the_same_features(names, vit, tmp_path):
    vit.save_pretrained(tmp_path)
    if names != "in files":
        state = vit.state_dict()
        if names == "under a head":
            state = {f"vit.{name}": tensor for name, tensor in state.items()}
        save_file(state, tmp_path / "model.safetensors")
    teacher = load_teacher(tmp_path / "model.safetensors", num_heads=2)
    assert (teacher.width, teacher.grid) == (24, (5, 5))

    images = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = vit((images - mean) / std).last_hidden_state[:, 1:]
    torch.testing.assert_close(teacher.features(images, (5, 5)), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_vit_is_normalised_as_its_folder_says(vit, tmp_path, caplog):
    """As google/vit-base-patch16-224-in21k, whose mean and std are 0.5."""
    vit.save_pretrained(tmp_path)
    load_teacher(tmp_path)
    assert "there is no preprocessor_config.json beside it. Taken as by ImageNet's" in caplog.text
    images = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    halves = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    caplog.set_level("INFO")
    for content, seen in ((halves, images * 2 - 1), ({"do_normalize": False}, images)):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
        found = load_teacher(tmp_path).features(images, (5, 5))
        expected = vit(seen).last_hidden_state[:, 1:]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert caplog.text.count("resizes by bilinear interpolation, beit bicubically") == 1


def test_a_backbone_without_positions_or_with_other_names_is_not_taken_for_a_vit(vit):
    state = vit.state_dict()
    assert from_dino(state) is not None
    del state["embeddings.position_embeddings"]
    assert from_dino(state) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("layers.1.attention.v_proj.bias"),
            "blocks.1.attn.qkv.bias is missing",
        ),
        (
            lambda state: state.update({"classifier.bias": torch.zeros(1)}),
            "classifier.bias is unexpected",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(change, message, vit, tmp_path):
    state = vit.state_dict()
    change(state)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"a.safetensors, read in the layout of DINO: .*{message}"):
        load_teacher(tmp_path / "a.safetensors", num_heads=2)

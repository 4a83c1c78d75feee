"""Models of full size with random weights, compared between their library and this package.

`pytest -s` prints the largest differences.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from beit.nn.patches import IMAGENET_MEAN, IMAGENET_STD
from beit.weights.formats.clip import CLIP_MEAN, CLIP_STD, from_clip
from beit.weights.formats.dino import from_dino
from beit.weights.formats.timm_beit import from_timm, timm_arguments, to_timm
from beit.weights.formats.transformers_beit import from_transformers, to_transformers
from beit.weights.formats.transformers_config import image_processor_config, transformers_config
from beit.weights.teachers import load_teacher

pytestmark = pytest.mark.slow
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

HALVES = (0.5, 0.5, 0.5)
BASE = {"use_relative_position_bias": True, "layer_scale_init_value": 0.1}
CLASSES = {
    "BeitForMaskedImageModeling": {
        "use_relative_position_bias": False,
        "use_shared_relative_position_bias": True,
        "use_mask_token": True,
    },
    "BeitForImageClassification": {"num_labels": 1000},
    "BeitForSemanticSegmentation": {
        "num_labels": 150,
        "out_indices": [3, 5, 7, 11],
    },
}


def drawn(side: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def agree(what: str, found: Tensor, expected: Tensor) -> None:
    """Differences stay under 1e-4, in values of any size under 1e-4 of the largest."""
    largest, scale = (found - expected).abs().max().item(), expected.abs().max().item()
    print(f"\n{what}: {largest:.1e} in values up to {scale:.3g}", end="")
    assert largest < 1e-4 * max(1.0, scale)
    assert expected.std() > 0.1  # of what is compared, something depends on the input


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("beitv2_base_patch16_224", IMAGENET_MEAN, IMAGENET_STD),
        ("beitv2_large_patch16_224", IMAGENET_MEAN, IMAGENET_STD),
        ("beit_base_patch16_384", HALVES, HALVES),
    ],
)
@torch.no_grad()
def test_timm(
    name: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    filled: Callable[[nn.Module], nn.Module],
    same: Callable[[nn.Module, nn.Module], bool],
) -> None:
    model = filled(timm.create_model(name))
    cfg = model.pretrained_cfg
    assert (cfg["mean"], cfg["std"]) == (mean, std)
    images = drawn(cfg["input_size"][1])
    expected = model(normalised(images, mean, std))
    read = from_timm(model.state_dict(), mean=mean, std=std)
    agree(f"{name}, theirs to ours", read(images), expected)
    del model

    opened = timm.create_model("beit_base_patch16_224", **timm_arguments(read)).eval()
    opened.load_state_dict(to_timm(read))
    agree(f"{name}, ours to theirs", opened(normalised(images, mean, std)), expected)
    assert same(from_timm(opened.state_dict(), mean=mean, std=std), read)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of from_pretrained
@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_transformers(
    name: str,
    filled: Callable[[nn.Module], nn.Module],
    same: Callable[[nn.Module, nn.Module], bool],
    tmp_path: Path,
) -> None:
    """The library's own epsilon of LayerNorm, 1e-12, included."""
    theirs = getattr(transformers, name)
    model = filled(theirs(transformers.BeitConfig(**{**BASE, **CLASSES[name]})))
    images = drawn(model.config.image_size)
    masked = torch.tensor([[0, 3, 190], [1, 8, 100]])

    def output(network: nn.Module) -> Tensor:
        pixels = normalised(images, HALVES, HALVES)
        if name != "BeitForMaskedImageModeling":
            return network(pixels).logits
        hidden = torch.zeros(2, 196).scatter_(1, masked, 1).bool()
        return network(pixels, bool_masked_pos=hidden).logits[hidden].view(2, 3, -1)

    expected = output(model)
    model.save_pretrained(tmp_path / "theirs")
    del model
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    state = load_file(tmp_path / "theirs/model.safetensors")
    read = from_transformers(state, config=config)
    del state
    if name == "BeitForMaskedImageModeling":
        found = read(images, masked).logits
    else:
        found = read(images)
        found = found if name == "BeitForImageClassification" else found.logits
    agree(f"{name}, theirs to ours", found, expected)

    for file, content in (
        ("config.json", transformers_config(read)),
        ("preprocessor_config.json", image_processor_config(read)),
    ):
        (tmp_path / file).write_text(json.dumps(content))
    save_file(to_transformers(read), tmp_path / "model.safetensors", {"format": "pt"})
    opened = theirs.from_pretrained(tmp_path).eval()
    agree(f"{name}, ours to theirs", output(opened), found)
    back = from_transformers(opened.state_dict(), config=transformers_config(read))
    assert same(back, read)


@torch.no_grad()
def test_clip_teacher(filled: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    config = transformers.CLIPVisionConfig(patch_size=16, projection_dim=512)
    model = filled(transformers.CLIPVisionModelWithProjection(config))
    images = drawn(224)
    pixels = normalised(images, CLIP_MEAN, CLIP_STD)
    tower = model.vision_model
    tokens = tower.post_layernorm(tower(pixels).last_hidden_state[:, 1:])
    expected = model.visual_projection(tokens)
    model.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path / "model.safetensors")
    agree("CLIP of transformers", teacher.features(images, (14, 14)), expected)

    name = "vit_base_patch16_clip_224.openai"
    state = from_clip(model.state_dict())
    assert state is not None
    state["head.bias"] = torch.zeros(512)  # which timm adds
    network = timm.create_model(name, act_layer="quick_gelu").eval()
    network.load_state_dict(state)
    own = F.linear(network.forward_features(pixels)[:, 1:], network.head.weight)
    agree("CLIP of transformers in timm", own, expected)
    file = tmp_path / "timm.safetensors"
    save_file(network.state_dict(), file)
    teacher = load_teacher(f"timm:{name}@{file}")
    agree("CLIP of timm", teacher.features(images, (14, 14)), own)


@torch.no_grad()
def test_dino_teacher(filled: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    model = filled(transformers.ViTModel(transformers.ViTConfig()))
    images = drawn(224)
    pixels = normalised(images, IMAGENET_MEAN, IMAGENET_STD)
    expected = model(pixels).last_hidden_state[:, 1:]
    model.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path / "model.safetensors")
    agree("DINO of transformers", teacher.features(images, (14, 14)), expected)

    name = "vit_base_patch16_224.dino"
    state = from_dino(model.state_dict())
    assert state is not None
    network = timm.create_model(name, num_classes=0).eval()
    network.load_state_dict(state)
    own = network.forward_features(pixels)[:, 1:]
    agree("DINO of transformers in timm", own, expected)
    file = tmp_path / "timm.safetensors"
    save_file(network.state_dict(), file)
    teacher = load_teacher(f"timm:{name}@{file}")
    agree("DINO of timm", teacher.features(images, (14, 14)), own)

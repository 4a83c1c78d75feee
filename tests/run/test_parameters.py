import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.run.optim import OptimConfig, set_learning_rate
from beit.run.parameters import build_optimizer, parameter_groups
from beit.weights.formats.published_names import CLASSIFIER_ROWS, to_theirs

CONFIG = OptimConfig(
    batch_size=6,
    epochs=3,
    learning_rate=0.5,
    warmup_epochs=1,
    betas=(0.9, 0.98),
    weight_decay=0.05,
)


def pretraining_model() -> MaskedImageModel:
    vit = ViTConfig((12, 20), patch_size=4, width=12, depth=2, num_heads=3, absolute_positions=True)
    return MaskedImageModel(MaskedImageModelConfig(vit, 7, early_layers=1, head_layers=1))


def by_name(groups: list[dict[str, Any]], key: str) -> dict[str, float]:
    return {name: group[key] for group in groups for name in group["names"]}


def test_every_parameter_is_in_one_group() -> None:
    model = pretraining_model()
    model.backbone.norm.weight.requires_grad_(False)
    groups = parameter_groups(model, 0.05)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert "backbone.norm.weight" not in named
    listed = [name for group in groups for name in group["names"]]
    assert sorted(listed) == sorted(named)
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert parameter is named[name]


def test_vectors_positions_and_cls_do_not_decay_mask_token_and_bias_tables_do() -> None:
    decay = by_name(parameter_groups(pretraining_model(), 0.05), "weight_decay")
    free = {name for name, value in decay.items() if value == 0}
    assert {
        "backbone.cls_token",
        "backbone.pos_embed",
        "backbone.patch_embed.proj.bias",
        "backbone.blocks.0.attn.q_bias",
        "backbone.blocks.1.gamma_1",
        "backbone.norm.weight",
        "aggregation.0.attn.v_bias",
        "head.bias",
    } <= free
    assert {name for name in free if name.endswith((".weight", "table"))} == {
        name for name in decay if "norm" in name and name.endswith("weight")
    }
    assert decay["mask_token"] == decay["backbone.rel_pos_bias.table"] == 0.05
    assert decay["backbone.patch_embed.proj.weight"] == decay["head.weight"] == 0.05


def test_layer_decay_falls_from_the_head_to_the_stem() -> None:
    scale = by_name(parameter_groups(pretraining_model(), 0.05, layer_decay=0.5), "lr_scale")
    for name in ("backbone.cls_token", "backbone.pos_embed", "mask_token"):
        assert scale[name] == 0.125
    assert scale["backbone.patch_embed.proj.weight"] == 0.125
    assert scale["backbone.blocks.0.mlp.fc1.weight"] == 0.25
    assert scale["backbone.blocks.1.attn.q_bias"] == 0.5
    for name in ("backbone.norm.weight", "backbone.rel_pos_bias.table", "head.bias"):
        assert scale[name] == 1
    assert scale["aggregation.0.norm1.weight"] == 1


def test_golden_layer_decay() -> None:
    golden = json.loads(
        (Path(__file__).parents[1] / "goldens" / "layer_decay.json").read_text("utf-8")
    )
    vit = ViTConfig(
        (32, 32), 8, width=48, depth=golden["depth"], num_heads=4, relative_bias="per_block"
    )
    model = ImageClassifier(ImageClassifierConfig(vit, 7, pooling="cls"))
    groups = parameter_groups(model, golden["weight_decay"], golden["layer_decay"])
    optimizer = build_optimizer(groups, CONFIG)
    set_learning_rate(optimizer, 0.2)
    held = {p: group for group in optimizer.param_groups for p in group["params"]}
    published = to_theirs(dict(model.named_parameters()), CLASSIFIER_ROWS)
    assert published.keys() == golden["parameters"].keys()
    for name, parameter in published.items():
        expected, group = golden["parameters"][name], held[parameter]
        assert group["lr_scale"] == expected["lr_scale"], name
        assert group["weight_decay"] == expected["weight_decay"], name
        assert group["lr"] == 0.2 * expected["lr_scale"], name


def test_a_bare_backbone_has_layers_too() -> None:
    vit = ViTConfig((12, 20), patch_size=4, width=12, depth=2, num_heads=3)
    scale = by_name(parameter_groups(VisionTransformer(vit), 0.05, layer_decay=0.5), "lr_scale")
    assert scale["cls_token"] == scale["patch_embed.proj.bias"] == 0.125
    assert (scale["blocks.0.gamma_1"], scale["blocks.1.gamma_1"]) == (0.25, 0.5)
    assert scale["norm.weight"] == scale["rel_pos_bias.table"] == 1


def test_layer_decay_needs_one_trunk() -> None:
    trunk = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 3)])})
    two = nn.ModuleDict({"encoder": trunk, "decoder": pretraining_model().backbone})
    with pytest.raises(ValueError, match=r"one trunk of blocks, found 2: decoder, encoder"):
        parameter_groups(two, 0.0, layer_decay=0.5)
    with pytest.raises(ValueError, match=r"one trunk of blocks, found 0"):
        parameter_groups(nn.Linear(2, 3), 0.0, layer_decay=0.5)
    with pytest.raises(ValueError, match=r"layer_decay is 1.5"):
        parameter_groups(trunk, 0.0, layer_decay=1.5)


def test_a_step_of_adamw_by_hand() -> None:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 2.0)
    optimizer = build_optimizer(parameter_groups(model, 0.05), CONFIG)
    set_learning_rate(optimizer, 0.1)
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    # Gradient 1: Adam's first step is the rate itself; only the weight decays, by rate * 0.05.
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.05) - 0.1)
    assert model.bias.item() == pytest.approx(2.0 - 0.1)


def test_the_rate_is_scaled_by_layer() -> None:
    model = pretraining_model()
    optimizer = build_optimizer(parameter_groups(model, 0.05, layer_decay=0.5), CONFIG)
    for rate in (0.5, 0.2):  # that of the configuration stands until another is set
        if rate == 0.2:
            set_learning_rate(optimizer, rate)
        for group in optimizer.param_groups:
            assert group["lr"] == rate * group["lr_scale"]
    assert {group["lr_scale"] for group in optimizer.param_groups} == {1, 0.5, 0.25, 0.125}

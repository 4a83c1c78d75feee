import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch

from beit.nn.segmenter import SegmenterConfig, SemanticSegmenter
from beit.nn.vit import ViTConfig, vit_config
from beit.weights.file import save_weights
from beit.weights.formats.names import split, translated
from beit.weights.formats.published_segmentation import (
    from_published_segmentation,
    published_meta,
    recognises,
    segmenter_config,
    to_published_segmentation,
)
from beit.weights.open import load, load_backbone

LAYOUTS = json.loads((Path(__file__).parents[2] / "goldens/published_layouts.json").read_text())
CONFIG = SegmenterConfig(
    backbone=ViTConfig(
        image_size=(16, 24),  # grid 4 x 6
        patch_size=4,
        width=10,
        depth=5,
        num_heads=2,
        relative_bias="per_block",
        init_bound=2.0,
    ),
    num_classes=3,
    layers=(1, 2, 4, 5),
    channels=7,
    auxiliary_channels=8,
    class_names=("sea", "sky", "sand"),
    palette=((0, 0, 200), (9, 99, 255), (240, 220, 30)),
)
OVERRIDES = {"image_size": (16, 24), "layers": (1, 2, 4, 5)}


@pytest.fixture
def segmenter():
    """A different number for every tensor; counts of batches stay integers."""
    model = SemanticSegmenter(CONFIG)
    generator = torch.Generator().manual_seed(3)
    for number, tensor in enumerate(model.state_dict().values()):
        if tensor.dtype == torch.int64:
            tensor.fill_(number)
        else:
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return model.eval()


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def published_shapes(size, side):
    """Keys and shapes that mmsegmentation 0.11 saves for BEiT with UPerNet and 150 classes."""
    D, h = {"base": (768, 12), "large": (1024, 16)}[size]
    grid = side // 16
    shapes = {}

    def batch_norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = [channels]
        shapes[f"{name}.num_batches_tracked"] = []

    def conv_module(name, in_channels, channels, kernel):
        shapes[f"{name}.conv.weight"] = [channels, in_channels, kernel, kernel]
        batch_norm(f"{name}.bn", channels)

    def conv(name, *shape):
        shapes[f"{name}.weight"] = list(shape)
        shapes[f"{name}.bias"] = [150 if shape[0] == 150 else D]

    # The backbone is the fine-tuned classifier's without its norm and head.
    for name, shape in LAYOUTS[f"beitv2_{size}_patch16_224_pt1k_ft1k"]["keys"].items():
        if name.endswith("relative_position_bias_table"):
            shape = [(2 * grid - 1) ** 2 + 3, h]
        elif name.endswith("relative_position_index"):
            shape = [1 + grid**2, 1 + grid**2]
        if not name.startswith(("fc_norm.", "head.")):
            shapes[f"backbone.{name}"] = shape
    conv("backbone.fpn1.0", D, D, 2, 2)
    batch_norm("backbone.fpn1.1", D)
    conv("backbone.fpn1.3", D, D, 2, 2)
    conv("backbone.fpn2.0", D, D, 2, 2)
    conv("decode_head.conv_seg", 150, D, 1, 1)
    for i in range(4):
        conv_module(f"decode_head.psp_modules.{i}.1", D, D, 1)
    conv_module("decode_head.bottleneck", 5 * D, D, 3)
    for i in range(3):
        conv_module(f"decode_head.lateral_convs.{i}", D, D, 1)
        conv_module(f"decode_head.fpn_convs.{i}", D, D, 3)
    conv_module("decode_head.fpn_bottleneck", 4 * D, D, 3)
    conv_module("auxiliary_head.convs.0", D, 256, 3)
    conv("auxiliary_head.conv_seg", 150, 256, 1, 1)
    return shapes


@pytest.mark.parametrize(
    ("size", "side", "layers"), [("base", 512, (4, 6, 8, 12)), ("large", 640, (8, 12, 16, 24))]
)
def test_keys_and_shapes_equal_the_published_ones_and_determine_the_configuration(
    size, side, layers
):
    vit = vit_config(size[0].upper(), image_size=(side, side), relative_bias="per_block")
    vit = dataclasses.replace(vit, init_bound=2.0)
    config = SegmenterConfig(backbone=vit, layers=layers)
    with torch.device("meta"):
        state = to_published_segmentation(SemanticSegmenter(config))
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    assert shapes == published_shapes(size, side)
    assert recognises(state)
    assert segmenter_config(state, "the file", {}) == config


@pytest.mark.parametrize("changes", [{}, {"auxiliary": False, "auxiliary_channels": 256}])
def test_ours_to_published_to_ours_is_the_identity(segmenter, changes):
    if changes:
        segmenter = SemanticSegmenter(dataclasses.replace(CONFIG, **changes))
    checkpoint = {
        "state_dict": to_published_segmentation(segmenter),
        "meta": published_meta(segmenter.config),
        "optimizer": {"param_groups": [{"lr": 3e-5}]},
    }
    read = from_published_segmentation(checkpoint, **OVERRIDES)
    assert read.config == segmenter.config
    assert not read.training
    assert same(read, segmenter)
    state = checkpoint["state_dict"]
    again = to_published_segmentation(read)
    assert again.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.items())


def test_a_training_checkpoint_loads_from_its_file(segmenter, tmp_path):
    file = tmp_path / "upernet.pth"
    checkpoint = {
        "meta": published_meta(CONFIG) | {"mmseg_version": "0.11.0", "iter": 160000},
        "state_dict": to_published_segmentation(segmenter),
        "optimizer": {"state": {0: {"step": 9}}, "param_groups": [{"lr": 3e-5, "params": [0]}]},
    }
    torch.save(checkpoint, file)
    read = load(file, **OVERRIDES)
    assert read.config == CONFIG
    assert same(read, segmenter)
    assert same(load_backbone(file, **OVERRIDES), segmenter.backbone)


def test_each_tensor_has_its_place(segmenter):
    state = to_published_segmentation(segmenter)
    assert torch.equal(
        state["decode_head.psp_modules.2.1.bn.bias"], segmenter.decoder.pooled[2].norm.bias
    )
    assert torch.equal(
        state["decode_head.lateral_convs.1.conv.weight"], segmenter.decoder.lateral[1].conv.weight
    )
    assert torch.equal(
        state["decode_head.fpn_convs.1.conv.weight"], segmenter.decoder.smooth[1].conv.weight
    )
    assert torch.equal(state["backbone.fpn1.3.bias"], segmenter.pyramid.up4[3].bias)
    index = state["backbone.blocks.4.attn.relative_position_index"]
    assert torch.equal(index, segmenter.backbone.blocks[4].attn.rel_pos_bias.index)
    assert index.dtype == torch.int64


def test_names_and_colours_that_do_not_fit_are_not_taken(segmenter):
    state = to_published_segmentation(segmenter)
    for meta in ({"CLASSES": ("sea", "sky")}, {"CLASSES": (1, 2, 3)}, {"CLASSES": "sea"}, 7, {}):
        read = from_published_segmentation({"state_dict": state, "meta": meta}, **OVERRIDES)
        assert read.config.class_names is None
    for palette in ([[0, 0, 1]], [[0, 0, 1]] * 2 + [[0, 1]], [[0, 0, 0.5]] * 3, "red", [1, 2, 3]):
        meta = {"PALETTE": palette}
        read = from_published_segmentation({"state_dict": state, "meta": meta}, **OVERRIDES)
        assert read.config.palette is None
    read = from_published_segmentation(state, class_names=["a", "b", "c"], **OVERRIDES)
    assert read.config.class_names == ("a", "b", "c")


def test_a_different_num_classes_replaces_both_heads(segmenter, caplog):
    state = to_published_segmentation(segmenter)
    meta = published_meta(CONFIG)
    with caplog.at_level(logging.INFO):
        read = from_published_segmentation(
            {"state_dict": state, "meta": meta}, num_classes=6, origin="b.pth", **OVERRIDES
        )
    (record,) = caplog.records
    assert record.getMessage() == (
        "b.pth: published layout, a segmenter of 6 classes (10 wide, 5 blocks, 2 heads, images of "
        "16 x 24; the pyramid reads blocks 1, 2, 4, 5); left out relative_position_index: follows "
        "from the grid (5 tensors); left out *.conv_seg.* (of 3 classes; replaced by new ones for "
        "6, near zero)"
    )
    assert read.config == dataclasses.replace(CONFIG, num_classes=6, class_names=None, palette=None)
    for head, channels in ((read.decoder.head, 7), (read.auxiliary.head, 8)):
        assert head.weight.shape == (6, channels, 1, 1)
        assert 0 < head.weight.abs().max() < 0.1 and head.bias.eq(0).all()
    kept, held = read.state_dict(), segmenter.state_dict()
    assert all(torch.equal(kept[name], held[name]) for name in held if ".head." not in name)
    assert from_published_segmentation(state, num_classes=3, **OVERRIDES).config.num_classes == 3


def test_counts_of_batches_may_be_missing(segmenter):
    state = to_published_segmentation(segmenter)
    cleaned = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    assert len(state) - len(cleaned) == 14
    read = from_published_segmentation(cleaned, **OVERRIDES)
    assert read.pyramid.up4[1].num_batches_tracked == 0
    images = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(read(images).logits, segmenter(images).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("backbone.fpn1.1.running_var"), "pyramid.up4.1.running_var is missing"),
        (
            lambda s: s.pop("auxiliary_head.convs.0.conv.weight"),
            "auxiliary.conv.conv.weight is mis",
        ),
        (
            lambda s: s.update({"decode_head.extra": torch.zeros(1)}),
            r"decode_head.extra .* unexpec",
        ),
        (lambda s: s.update({"backbone.norm.weight": torch.zeros(10)}), "norm.weight .*unexpected"),
        # Our own name of a tensor is not a published one.
        (
            lambda s: s.update({"decoder.head.bias": s.pop("decode_head.conv_seg.bias")}),
            r"decoder.head.bias is missing; decoder.head.bias \(published name\) is unexpected",
        ),
        (
            lambda s: s.update({"decode_head.bottleneck.bn.bias": torch.zeros(6)}),
            r"decoder.bottleneck.norm.bias is \(6,\), expected \(7,\)",
        ),
        (lambda s: s.update({"decode_head.conv_seg.weight": torch.zeros(3)}), "expected 4 sizes"),
    ],
)
def test_states_that_do_not_fit_are_refused(segmenter, change, message):
    state = to_published_segmentation(segmenter)
    change(state)
    with pytest.raises(ValueError, match=message):
        from_published_segmentation(state, **OVERRIDES)


def test_settings_that_shapes_do_not_determine_are_required(segmenter):
    state = to_published_segmentation(segmenter)
    with pytest.raises(ValueError, match=r"b\.pth has a backbone of depth 5.*give layers=…"):
        from_published_segmentation(state, image_size=(16, 24), origin="b.pth")
    with pytest.raises(ValueError, match="give image_size="):
        from_published_segmentation(state, layers=(1, 2, 3, 4))
    with pytest.raises(ValueError, match="no override early_layers; expected num_heads"):
        from_published_segmentation(state, early_layers=2, **OVERRIDES)
    with pytest.raises(ValueError, match="ascending order, 1 to 5"):
        from_published_segmentation(state, image_size=(16, 24), layers=(2, 4, 5, 6))


def test_other_layouts_are_not_taken_for_it(segmenter):
    assert not recognises(segmenter.state_dict())
    assert not recognises({"backbone.patch_embed.proj.weight": torch.zeros(1)})
    assert not recognises(dict.fromkeys(LAYOUTS["beitv2_base_patch16_224_pt1k_ft1k"]["keys"]))


def test_saved_and_read_is_the_identity(segmenter, tmp_path):
    save_weights(tmp_path / "weights.safetensors", segmenter)
    read = load(tmp_path / "weights.safetensors")
    assert read.config == segmenter.config
    assert same(read, segmenter)


# Published names and those of transformers 5, which keeps queries, keys and values apart.
TRANSFORMERS = (
    ("backbone.cls_token", "beit.embeddings.cls_token"),
    ("backbone.patch_embed.proj.*", "beit.embeddings.patch_embeddings.projection.*"),
    ("backbone.blocks.#.gamma_#", "beit.layers.#.lambda_#"),
    ("backbone.blocks.#.norm1.*", "beit.layers.#.layernorm_before.*"),
    ("backbone.blocks.#.norm2.*", "beit.layers.#.layernorm_after.*"),
    ("backbone.blocks.#.attn.q_bias", "beit.layers.#.attention.q_proj.bias"),
    ("backbone.blocks.#.attn.v_bias", "beit.layers.#.attention.v_proj.bias"),
    ("backbone.blocks.#.attn.proj.*", "beit.layers.#.attention.o_proj.*"),
    ("backbone.blocks.#.attn.*_proj.weight", "beit.layers.#.attention.*_proj.weight"),
    ("backbone.blocks.#.attn.*_table", "beit.layers.#.relative_position_bias.*_table"),
    ("backbone.blocks.#.mlp.*", "beit.layers.#.mlp.*"),
    ("backbone.fpn1.0.*", "fpn.fpn1.conv_transpose1.*"),
    ("backbone.fpn1.1.*", "fpn.fpn1.normalization.*"),
    ("backbone.fpn1.3.*", "fpn.fpn1.conv_transpose2.*"),
    ("backbone.fpn2.0.*", "fpn.fpn2.*"),
    ("*_head.conv_seg.*", "*_head.classifier.*"),
    ("decode_head.psp_modules.#.1.conv.*", "decode_head.psp_modules.blocks.#.conv.convolution.*"),
    ("decode_head.psp_modules.#.1.bn.*", "decode_head.psp_modules.blocks.#.conv.normalization.*"),
    ("decode_head.bottleneck.conv.*", "decode_head.psp_bottleneck.convolution.*"),
    ("decode_head.bottleneck.bn.*", "decode_head.psp_bottleneck.normalization.*"),
    ("*.conv.weight", "*.convolution.weight"),
    ("*.bn.*", "*.normalization.*"),
)


@torch.no_grad()
def test_it_computes_what_transformers_computes():
    """Its `out_indices` are one more than the numbers of the blocks it reads.

    So the last block is out of its reach: here it has another one, which nothing reads. Images
    are square, since it reads the position tables of others with height and width swapped.
    """
    transformers = pytest.importorskip("transformers")
    vit = dataclasses.replace(CONFIG.backbone, image_size=(16, 16), mean=None, std=None)
    segmenter = SemanticSegmenter(
        dataclasses.replace(CONFIG, backbone=vit, channels=10)  # it has no others than the width
    ).eval()
    generator = torch.Generator().manual_seed(4)
    for name, tensor in segmenter.state_dict().items():
        if tensor.dtype != torch.int64:
            low = 0.5 if name.endswith("running_var") else -0.3
            tensor.copy_(torch.empty_like(tensor).uniform_(low, low + 1.0, generator=generator))
    config = transformers.BeitConfig(
        image_size=16,
        patch_size=4,
        hidden_size=10,
        intermediate_size=40,
        num_hidden_layers=6,
        num_attention_heads=2,
        use_relative_position_bias=True,
        layer_norm_eps=1e-6,
        out_indices=[2, 3, 5, 6],
        auxiliary_channels=8,
        num_labels=3,
    )
    theirs = transformers.BeitForSemanticSegmentation(config).eval()
    state = split(
        to_published_segmentation(segmenter),
        ("q_proj.weight", "k_proj.weight", "v_proj.weight"),
        "qkv.weight",
    )
    names = translated(state, TRANSFORMERS)
    result = theirs.load_state_dict({names[name]: state[name] for name in names}, strict=False)
    assert result.unexpected_keys == []
    assert all(name.startswith("beit.layers.5.") for name in result.missing_keys)
    hints = []
    theirs.auxiliary_head.register_forward_hook(lambda *call: hints.append(call[-1]))

    images = torch.rand(2, 3, 16, 16, generator=generator)
    expected, output = theirs(images).logits, segmenter(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-5 * expected.abs().max())
    torch.testing.assert_close(output.auxiliary, hints[0], rtol=0, atol=1e-5 * hints[0].abs().max())

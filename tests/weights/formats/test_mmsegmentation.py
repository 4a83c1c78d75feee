import dataclasses
import logging
import re
import sys
import types

import numpy as np
import pytest
import torch

from beit.nn.segmenter import SegmenterConfig, SemanticSegmenter
from beit.nn.vit import ViTConfig
from beit.weights.formats.mmsegmentation import from_mmsegmentation, recognises
from beit.weights.formats.published_segmentation import to_published_segmentation
from beit.weights.open import load, load_backbone

CONFIG = SegmenterConfig(
    backbone=ViTConfig(
        image_size=(20, 20),  # grid 5 x 5
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
LAYERS = {"layers": (1, 2, 4, 5)}
DATASET = {
    "classes": list(CONFIG.class_names),
    "palette": [list(colour) for colour in CONFIG.palette],
    "reduce_zero_label": True,
}


def theirs(model):
    """The names in mmsegmentation 1.x: those of mmpretrain's blocks, and the pyramid as a neck."""
    rows = (
        (r"backbone\.blocks\.", "backbone.layers."),
        (r"(layers\.\d+)\.norm(\d)", r"\1.ln\2"),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
        (r"patch_embed\.proj\.", "patch_embed.projection."),
        (r"backbone\.fpn1\.", "neck.upsample_4x."),
        (r"backbone\.fpn2\.", "neck.upsample_2x."),
    )
    state = {}
    for name, tensor in to_published_segmentation(model).items():
        for pattern, replacement in rows:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    return state


@pytest.fixture
def segmenter(filled):
    return filled(SemanticSegmenter(CONFIG))


# Of the first block and around it, as written in mmsegmentation 1.2.
EXPECTED = {
    "backbone.cls_token": (1, 1, 10),
    "backbone.patch_embed.projection.weight": (10, 3, 4, 4),
    "backbone.layers.0.gamma_1": (10,),
    "backbone.layers.0.ln1.weight": (10,),
    "backbone.layers.0.attn.q_bias": (10,),
    "backbone.layers.0.attn.relative_position_bias_table": (84, 2),
    "backbone.layers.0.attn.relative_position_index": (26, 26),
    "backbone.layers.0.attn.qkv.weight": (30, 10),
    "backbone.layers.0.ffn.layers.0.0.weight": (40, 10),
    "backbone.layers.0.ffn.layers.1.bias": (10,),
    "neck.upsample_4x.0.weight": (10, 10, 2, 2),
    "neck.upsample_4x.1.running_mean": (10,),
    "neck.upsample_4x.3.bias": (10,),
    "neck.upsample_2x.0.weight": (10, 10, 2, 2),
    "decode_head.conv_seg.weight": (3, 7, 1, 1),
    "decode_head.psp_modules.3.1.conv.weight": (7, 10, 1, 1),
    "auxiliary_head.convs.0.bn.running_var": (8,),
}


def test_the_same_logits_as_by_published_names(segmenter, tmp_path):
    state = theirs(segmenter)
    assert {name: tuple(state[name].shape) for name in EXPECTED} == EXPECTED
    published = {"state_dict": to_published_segmentation(segmenter)}
    torch.save(published, tmp_path / "published.pth")
    meta = {"dataset_meta": DATASET, "mmengine_version": "0.10.7", "cfg": "model = dict()"}
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "mmseg.pth")
    images = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    one, other = (load(tmp_path / name, **LAYERS) for name in ("published.pth", "mmseg.pth"))
    with torch.no_grad():
        assert torch.equal(one(images).logits, other(images).logits)
        assert torch.equal(other(images).logits, segmenter(images).logits)
    assert other.config == CONFIG
    assert one.config == dataclasses.replace(CONFIG, class_names=None, palette=None)
    backbone = load_backbone(tmp_path / "mmseg.pth", **LAYERS)
    assert torch.equal(backbone.cls_token, segmenter.backbone.cls_token)


def test_a_wrapped_one_and_the_names_of_version_0(segmenter, tmp_path, caplog):
    wrapped = {f"module.{name}": tensor for name, tensor in theirs(segmenter).items()}
    meta = {"CLASSES": CONFIG.class_names, "PALETTE": CONFIG.palette}
    torch.save({"meta": meta, "state_dict": wrapped}, tmp_path / "mmseg.pth")
    with caplog.at_level(logging.INFO):
        assert load(tmp_path / "mmseg.pth", **LAYERS).config == CONFIG
    removed, about = caplog.messages
    assert removed.endswith(f"removed the prefix 'module.' of {len(wrapped)} names")
    assert "mmsegmentation's BEiT with UPerNet, a segmenter of 3 classes" in about


@pytest.mark.parametrize("meta", [None, 7, {"dataset_meta": 7}, {"dataset_meta": {"classes": 7}}])
def test_other_contents_of_meta_are_not_taken(meta, segmenter):
    read = from_mmsegmentation({"state_dict": theirs(segmenter), "meta": meta}, **LAYERS)
    assert read.config.class_names is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("neck.upsample_4x.3.bias"), r"pyramid\.up4\.3\.bias is missing"),
        # The norm of the last block's output, an option: our segmenter has none.
        (lambda s: s.update({"backbone.ln1.weight": torch.ones(10)}), r"unexpected.*ln1\.weight"),
        # mmsegmentation does not save it: such a file is of another program.
        (
            lambda s: s.update({"data_preprocessor.mean": torch.ones(3)}),
            r"or\.mean$",
        ),
        (lambda s: s.update({"neck.upsample_4x.5.bias": torch.ones(10)}), r"up4.*5.* unexpected"),
    ],
)
def test_files_that_do_not_fit_are_refused(change, message, segmenter):
    state = theirs(segmenter)
    change(state)
    with pytest.raises(ValueError, match=message):
        from_mmsegmentation(state, **LAYERS)


def test_another_layout_is_not_taken_for_it(segmenter):
    assert recognises(theirs(segmenter))
    assert not recognises(to_published_segmentation(segmenter))
    backbone = {name: t for name, t in theirs(segmenter).items() if name.startswith("backbone.")}
    assert not recognises(backbone)


def test_the_history_of_losses_in_a_training_checkpoint_is_ignored(
    segmenter, tmp_path, monkeypatch
):
    """mmengine saves it beside the weights, as an object of a class of its own."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self):
            self.max_length = 1_000_000
            self._log_history = np.linspace(0, 1, 7)

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    with monkeypatch.context() as patched:
        for name in ("mmengine", "mmengine.logging", module.__name__):
            patched.setitem(sys.modules, name, module)
        checkpoint = {
            "meta": {"dataset_meta": DATASET},
            "state_dict": theirs(segmenter),
            "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}},
        }
        torch.save(checkpoint, tmp_path / "iter_160000.pth")
    assert load(tmp_path / "iter_160000.pth", **LAYERS).config == CONFIG

import logging

import pytest
import torch

from beit.nn.heads import ImageClassifier
from beit.nn.vit import VisionTransformer
from beit.weights.formats.prefixes import without_prefix
from beit.weights.formats.published import to_published
from beit.weights.formats.timm_beit import to_timm
from beit.weights.formats.transformers_beit import to_transformers
from beit.weights.open import holds_segmenter, load, load_classifier


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def known(tensors):
    return "x.weight" in tensors


NAMES = {"x.weight": torch.zeros(1), "x.bias": torch.zeros(2), "y": torch.zeros(3)}


@pytest.mark.parametrize(
    "prefix",
    [
        *("", "module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "network."),
        *("student.", "teacher.", "module._orig_mod.", "model.backbone.", "model.encoder.module."),
    ],
)
def test_the_common_prefix_is_removed_and_said_in_one_line(prefix, caplog):
    with caplog.at_level(logging.INFO):
        found = without_prefix(prefixed(NAMES, prefix), known, "a.pth")
    assert found == NAMES
    if prefix in ("", "_orig_mod."):
        lines = ["a.pth: removed '_orig_mod.' of 3 names"] * bool(prefix)
    elif prefix == "module._orig_mod.":
        lines = ["a.pth: removed '_orig_mod.' and the prefix 'module.' of 3 names"]
    else:
        lines = [f"a.pth: removed the prefix '{prefix}' of 3 names"]
    assert caplog.messages == lines


def test_parts_that_were_compiled_get_their_names_back(caplog):
    state = {"x.weight": NAMES["x.weight"], "x._orig_mod.bias": NAMES["x.bias"], "y": NAMES["y"]}
    assert without_prefix(state, known, "a.pth") == NAMES
    with pytest.raises(ValueError, match=r"a\.pth has names that differ only in '_orig_mod\.'"):
        without_prefix(state | {"x.bias": NAMES["x.bias"]}, known, "a.pth")


def test_names_that_are_known_keep_their_prefixes(caplog):
    state = prefixed(NAMES, "backbone.") | {"x.weight": torch.zeros(1)}
    with caplog.at_level(logging.INFO):
        assert without_prefix(state, known, "a.pth") == state
    assert not caplog.messages


def test_what_is_outside_the_prefix_is_left_out_and_listed(caplog):
    state = prefixed(NAMES, "module.backbone.") | {
        "n_averaged": torch.tensor(3),
        "module.head.0.weight": torch.zeros(4),
        "module.head.0.bias": torch.zeros(5),
        "module.loss.weight": torch.zeros(6),
    }
    with caplog.at_level(logging.INFO):
        assert without_prefix(state, known, "a.pth") == NAMES
    (message,) = caplog.messages
    assert message == (
        "a.pth: removed the prefix 'module.backbone.' of 3 names; left out n_averaged; left out "
        "module.head.* (2 tensors); left out module.loss.*"
    )


def test_several_models_and_unknown_names():
    state = prefixed(NAMES, "student.") | prefixed(NAMES, "teacher.model.")
    with pytest.raises(
        ValueError, match=r"a\.pth has models under the prefixes 'student\.', 'teacher\.model\.'"
    ):
        without_prefix(state, known, "a.pth")
    # A tokenizer has an encoder too; so has the file of a broken one.
    state = prefixed(NAMES, "encoder.") | prefixed(NAMES, "decoder.")
    assert without_prefix(state, known, "a.pth") == state
    state = prefixed(NAMES, "module." * 1000)
    assert without_prefix(state, known, "a.pth") == state


@pytest.mark.parametrize("write", [to_timm, to_published, to_transformers])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_weights_of_wrapped_models(write, prefix, classifier, tmp_path, same):
    """A classifier of any layout in a Lightning checkpoint, beside other plain values."""
    checkpoint = {
        "state_dict": prefixed(write(classifier), prefix) | {"loss.weight": torch.ones(5)},
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "optimizer_states": [{"state": {0: {"step": 9.0}}, "param_groups": [{"lr": 1e-3}]}],
    }
    if prefix == "_orig_mod.":
        del checkpoint["state_dict"]["loss.weight"]
    torch.save(checkpoint, tmp_path / "last.ckpt")
    read = load(tmp_path / "last.ckpt", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert type(read) is ImageClassifier
    assert same(read, classifier)


def test_a_backbone_in_a_module_with_a_head_of_its_own(classifier, tmp_path, caplog, same):
    state = prefixed(to_timm(classifier.backbone), "backbone.")
    state |= {"head.weight": torch.zeros(3, 24), "head.bias": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "lightning.pth")
    with caplog.at_level(logging.INFO):
        read = load(tmp_path / "lightning.pth")
    assert type(read) is VisionTransformer
    assert same(read, classifier.backbone)
    assert caplog.messages[0].endswith("left out head.* (2 tensors)")
    with pytest.raises(ValueError, match="VisionTransformer, which names no classes of images"):
        load_classifier(tmp_path / "lightning.pth")


def test_strict_below_the_prefix(classifier, tmp_path):
    state = prefixed(to_timm(classifier), "module.")
    del state["module.blocks.1.mlp.fc1.bias"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.fc1\.bias is missing"):
        load(tmp_path / "a.pth")


def test_a_tokenizer_without_its_codebook_is_not_a_backbone(tokenizer, tmp_path):
    state = to_published(tokenizer)
    del state["quantize.embedding.weight"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth is in no known layout: encoder\.cls_token"):
        load(tmp_path / "a.pth")
    torch.save(prefixed(to_published(tokenizer), "module."), tmp_path / "b.pth")
    read = load(tmp_path / "b.pth", num_heads=2, image_size=(12, 20))
    assert read.config == tokenizer.config
    assert not holds_segmenter(tmp_path / "b.pth")


@pytest.mark.parametrize("container", ["model", "module", "state_dict", "model_state_dict", "net"])
def test_entries_that_hold_the_weights(container, classifier, tmp_path, caplog, same):
    content = {container: to_timm(classifier), "epoch": 3, "optimizer_state_dict": {"lr": 0.1}}
    torch.save(content, tmp_path / "a.pth")
    assert same(load(tmp_path / "a.pth"), classifier)
    averaged = {name: tensor + 1 for name, tensor in to_timm(classifier).items()}
    torch.save(content | {"model_ema": averaged}, tmp_path / "b.pth")
    with caplog.at_level(logging.INFO):
        assert same(load(tmp_path / "b.pth"), classifier)
    held = f"has weights in {container}, model_ema; used: {container}"
    assert f"{tmp_path / 'b.pth'} {held}" in caplog.messages

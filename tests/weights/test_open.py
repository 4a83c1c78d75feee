import argparse
import dataclasses
import json
import logging
import os
import pickle
import re
import struct
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from beit.data.imagenet_names import imagenet_words
from beit.nn.dalle import DalleConfig, DalleTokenizer
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.mim import MaskedImageModel
from beit.nn.position import resized, with_bias_per_block
from beit.nn.segmenter import SegmenterConfig, SemanticSegmenter
from beit.nn.tokenizer import VQKD
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.run.directory import RunDirectory
from beit.weights import hub, manifest
from beit.weights.file import SizeUnknownError, read_safetensors, save_weights
from beit.weights.formats.dalle import to_dalle
from beit.weights.formats.dvae import to_dvae
from beit.weights.formats.mmpretrain import to_mmpretrain
from beit.weights.formats.published import to_published
from beit.weights.formats.timm_beit import timm_config, to_timm
from beit.weights.formats.transformers_beit import to_transformers
from beit.weights.formats.transformers_config import transformers_config
from beit.weights.frozen import open_frozen_model
from beit.weights.layouts import LAYOUTS
from beit.weights.open import (
    holds_segmenter,
    load,
    load_backbone,
    load_classifier,
    load_tokenizer,
)


def test_run_directory_gives_its_weights_once_finished(tmp_path, tokenizer):
    run = RunDirectory.create(tmp_path / "run", {"seed": 0}, {"verb": "train-tokenizer"})
    with pytest.raises(ValueError, match=r"not finished: it has no weights\.safetensors"):
        load(run.path)
    save_weights(run.weights_file, tokenizer)
    for source in (run.path, str(run.path), run.weights_file):
        read = load(source)
        assert isinstance(read, VQKD)
        assert read.config == tokenizer.config


@pytest.fixture
def segmenter(backbone):
    vit = dataclasses.replace(backbone.config, depth=4, final_norm=False, init_bound=2.0)
    config = SegmenterConfig(vit, num_classes=3, layers=(1, 2, 3, 4), auxiliary_channels=5)
    return SemanticSegmenter(config).eval()


@pytest.fixture
def dalle():
    return DalleTokenizer(DalleConfig((24, 40), num_codes=11, width=8, blocks_per_group=1)).eval()


@pytest.fixture
def dvae():
    config = DiscreteVAEConfig((8, 12), num_codes=9, code_width=5, num_layers=2, hidden_width=7)
    return DiscreteVAE(config).eval()


HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
# Model, who writes it, which layout it is recognised as, what shapes do not tell.
FOREIGN = [
    ("tokenizer", to_published, "published", {"num_heads": 2, "image_size": (12, 20)}),
    ("pretrained", to_published, "published", {"early_layers": 2}),
    ("classifier", to_published, "published", {}),
    ("backbone", to_published, "published", {}),
    ("segmenter", to_published, "published_segmentation", {"layers": (1, 2, 3, 4)}),
    ("classifier", to_timm, "timm_beit", {}),
    ("backbone", to_timm, "timm_beit", {}),
    ("classifier", to_transformers, "transformers_beit", {}),
    ("backbone", to_transformers, "transformers_beit", {}),
    ("segmenter", to_transformers, "transformers_beit", {"layers": (1, 2, 3, 4)}),
    ("backbone", to_mmpretrain, "mmpretrain", {}),
    ("classifier", to_mmpretrain, "mmpretrain", {}),
    ("dalle", to_dalle, "dalle", {"image_size": (24, 40)}),
    ("dvae", to_dvae, "dvae", {"image_size": (8, 12)} | HALVES),
]


@pytest.mark.parametrize(("kind", "write", "layout", "overrides"), FOREIGN)
def test_every_layout_is_recognised(kind, write, layout, overrides, request, tmp_path):
    model = request.getfixturevalue(kind)
    path = tmp_path / "foreign.pth"
    state = write(model)
    torch.save({"state_dict": state}, path)
    if layout == "transformers_beit":
        overrides = overrides | {"mean": model_of(model).mean, "std": model_of(model).std}
    read = load(path, **overrides)
    assert type(read) is type(model)
    assert read.config == model.config
    assert same(read, model)
    claiming = [known.module.__name__ for known in LAYOUTS if known.module.recognises(state)]
    claiming = [name.removeprefix("beit.weights.formats.") for name in claiming]
    # What timm writes is the published layout without indices; no other two claim one file.
    assert claiming == ([layout, "published"] if layout == "timm_beit" else [layout])


def model_of(model):
    """The configuration of its vision Transformer."""
    return getattr(model.config, "backbone", model.config)


def test_configurations_beside_the_weights_are_read(tmp_path, classifier):
    save_file(to_transformers(classifier), tmp_path / "model.safetensors")
    config = transformers_config(classifier)
    config["id2label"] = {str(number): f"class {number}" for number in range(5)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    normalisation = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(normalisation))
    read = load(tmp_path)
    assert read.config.class_names == tuple(f"class {number}" for number in range(5))
    assert (read.config.backbone.mean, read.config.backbone.std) == (
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
    )
    assert same(read, classifier)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read as JSON"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json holds a list, expected an object"):
        load(tmp_path)


def test_classes_of_a_published_segmenter_are_kept(tmp_path, segmenter):
    meta = {"CLASSES": ("wall", "tree", "sky"), "PALETTE": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}
    torch.save({"state_dict": to_published(segmenter), "meta": meta}, tmp_path / "upernet.pth")
    read = load(tmp_path / "upernet.pth", layers=(1, 2, 3, 4))
    assert read.config.class_names == ("wall", "tree", "sky")


@pytest.mark.parametrize(
    "name", ["published.pth", "published.pt", "published.bin", "published.safetensors"]
)
def test_published_files_are_recognised(tmp_path, pretrained, name):
    path = tmp_path / name
    state = to_published(pretrained)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        # As the published training code writes it, options and all.
        torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=1.0)}, path)
    read = load(path, num_heads=2, early_layers=2)
    assert isinstance(read, MaskedImageModel)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    masked = torch.tensor([[0, 3], [2, 9]])
    with torch.no_grad():
        assert torch.equal(read(images, masked).cls_logits, pretrained(images, masked).cls_logits)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("tokenizer", "encoder"),
        ("pretrained", "backbone"),
        ("classifier", "backbone"),
        ("backbone", None),
    ],
)
def test_backbone_out_of_every_model(kind, part, request, tmp_path):
    model = request.getfixturevalue(kind)
    save_weights(tmp_path / "w.safetensors", model)
    found = load_backbone(tmp_path / "w.safetensors")
    expected = model if part is None else getattr(model, part)
    assert isinstance(found, VisionTransformer)
    assert not found.training
    images = torch.rand(2, 3, *expected.config.image_size)
    with torch.no_grad():
        assert torch.equal(found(images).cls, expected(images).cls)
    with pytest.raises(ValueError, match=r"image_size=\(40, 40\) contradicts"):
        load(tmp_path / "w.safetensors", image_size=40)


@pytest.mark.parametrize("kind", ["tokenizer", "pretrained", "classifier", "backbone"])
@pytest.mark.parametrize("ours", [True, False])
def test_backbone_for_another_size(kind, ours, request, tmp_path):
    model = request.getfixturevalue(kind)
    path = tmp_path / "w.safetensors"
    overrides = {}
    if ours:
        save_weights(path, model)
    else:
        save_file(to_published(model), path)
        overrides = {"num_heads": 2} | ({"early_layers": 2} if kind == "pretrained" else {})
    own = getattr(model, "encoder", getattr(model, "backbone", model))
    if kind == "tokenizer" and not ours:  # not square: the file does not tell
        assert same(load_backbone(path, image_size=(12, 20), **overrides), own)
        with pytest.raises(ValueError, match="not for square images"):
            load_backbone(path, **overrides)
        with pytest.raises(ValueError, match="for another; give the size it was trained at"):
            load_backbone(path, image_size=16, **overrides)
        return
    found = load_backbone(path, image_size=(20, 28), **overrides)
    assert found.config.image_size == (20, 28)
    assert same(found, resized(own, (20, 28)))
    with pytest.raises(
        ValueError, match=r"w\.safetensors: image size \(20, 27\) is not a multiple"
    ):
        load_backbone(path, image_size=(20, 27), **overrides)


def test_a_classifier_at_another_image_size(tmp_path, classifier, tokenizer):
    vit = ViTConfig((16, 24), 8, width=12, depth=2, num_heads=3, relative_bias="per_block")
    wide = ImageClassifier(ImageClassifierConfig(vit, 2)).eval()
    path = tmp_path / "w.pth"
    torch.save({"model": to_published(wide)}, path)  # not square: the file does not tell
    with pytest.raises(SizeUnknownError):
        load_classifier(path, num_heads=3)
    assert same(load_classifier(path, (16, 24), num_heads=3), wide)
    save_weights(tmp_path / "ours.safetensors", classifier)
    found = load_classifier(tmp_path / "ours.safetensors", (20, 28), num_heads=None)
    assert same(found.backbone, resized(classifier.backbone, (20, 28)))
    save_weights(tmp_path / "tokenizer.safetensors", tokenizer)
    with pytest.raises(
        ValueError,
        match=r"a VQKD, which names no classes of images; .* as beit finetune --model \S+ makes$",
    ):
        load_classifier(tmp_path / "tokenizer.safetensors")


def test_backbone_with_a_bias_in_every_block(tmp_path, pretrained, tokenizer):
    path = tmp_path / "w.safetensors"
    save_weights(path, pretrained)
    found = load_backbone(path, image_size=24, relative_bias="per_block")
    assert same(found, resized(with_bias_per_block(pretrained.backbone), (24, 24)))
    assert same(load_backbone(path, relative_bias="shared"), pretrained.backbone)
    with pytest.raises(ValueError, match=r"relative_bias='none' contradicts .* says shared"):
        load_backbone(path, relative_bias="none")
    save_weights(path, tokenizer)
    with pytest.raises(ValueError, match=r"w\.safetensors: the model has no shared relative"):
        load_backbone(path, relative_bias="per_block")


def test_weights_in_a_folder(tmp_path, backbone):
    for name in ("weights.safetensors", "model.safetensors"):
        (tmp_path / name).mkdir()
        save_weights(tmp_path / name / name, backbone)
        assert same(load(tmp_path / name), backbone)


@pytest.mark.parametrize("source", ["hf://owner/name", "published:a_name"])
def test_weights_by_name_are_fetched(tmp_path, backbone, monkeypatch, source):
    save_weights(tmp_path / "weights.safetensors", backbone)
    calls = []
    monkeypatch.setattr(hub, "fetch", lambda name: calls.append(name) or next(tmp_path.iterdir()))
    known = SimpleNamespace(model="VisionTransformer", shapes={})
    monkeypatch.setattr(manifest, "find", lambda name: calls.append(name) or known)
    monkeypatch.setattr(
        manifest, "settings", lambda file, overrides: overrides | {"std": [0.4, 0.5, 0.6]}
    )
    found = load(source, mean=[0.1, 0.2, 0.3])
    assert calls[0] == source
    published = source.startswith("published")
    assert calls[1:] == (["weights.safetensors"] if published else [])
    assert found.config.mean == (0.1, 0.2, 0.3)
    assert found.config.std == ((0.4, 0.5, 0.6) if published else backbone.config.std)


@pytest.mark.parametrize("kind", ["dalle", "dvae", "tokenizer"])
def test_every_tokenizer_of_ours_encodes(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    save_weights(tmp_path / "t.safetensors", model)
    found = load_tokenizer(tmp_path / "t.safetensors")
    codes = found.encode(torch.rand(2, 3, *found.image_size))
    assert codes.shape == (2, found.grid[0] * found.grid[1])
    assert int(codes.max()) < found.vocab_size
    if kind != "tokenizer":
        with pytest.raises(ValueError, match="which has no backbone"):
            load_backbone(tmp_path / "t.safetensors")


def test_tokenizer_must_encode(tmp_path, tokenizer, pretrained):
    save_weights(tmp_path / "t.safetensors", tokenizer)
    save_weights(tmp_path / "p.safetensors", pretrained)
    found = load_tokenizer(tmp_path / "t.safetensors")
    assert found.encode(torch.rand(2, 3, 12, 20)).shape == (2, 15)
    assert (found.vocab_size, found.grid) == (11, (3, 5))
    with pytest.raises(ValueError, match=r"p\.safetensors holds a MaskedImageModel.*encode"):
        load_tokenizer(tmp_path / "p.safetensors")


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(map(torch.equal, first.values(), second.values()))


def test_the_checkpoint_of_a_training_by_timm_opens(tmp_path, classifier):
    torch.save({"state_dict": to_timm(classifier), "epoch": 3}, tmp_path / "last.pth.tar")
    assert same(load(tmp_path / "last.pth.tar"), classifier)


def test_half_precision_becomes_float32_without_a_word(tmp_path, classifier, caplog):
    half = {name: tensor.half() for name, tensor in to_published(classifier).items()}
    indices = {name: tensor for name, tensor in to_published(classifier).items() if "index" in name}
    torch.save(half | indices, tmp_path / "half.pth")
    with caplog.at_level(logging.INFO):
        read = load(tmp_path / "half.pth")
    assert "float32" not in caplog.text
    for name, tensor in read.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, classifier.state_dict()[name].half().float())


class Harm:
    """Makes a directory when unpickled."""

    def __init__(self, directory):
        self.directory = directory

    def __reduce__(self):
        return os.mkdir, (str(self.directory),)


@pytest.mark.parametrize("protocol", ["zip", "legacy", 2, 4])
def test_pickled_functions_are_refused_and_not_run(tmp_path, protocol):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    content = {"model": {"mask_token": torch.zeros(1)}, "extra": Harm(trace)}
    if isinstance(protocol, int):
        path.write_bytes(pickle.dumps({"extra": Harm(trace)}, protocol))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(ValueError, match=r"weights\.pth is refused.*Nothing of it was executed"):
        load(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"some text", b"PK\3\4", b"\x80\x02}", b"\x80\x02e"])
def test_files_that_are_no_checkpoint_are_named(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth"):
        load(path)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.02, 0.5, 0.999])
def test_a_truncated_safetensors_file_is_named(tmp_path, classifier, share):
    path = tmp_path / "cut.safetensors"
    save_weights(path, classifier)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    size = path.stat().st_size
    with pytest.raises(ValueError, match=rf"cut\.safetensors, of {size} bytes, is not a sound"):
        load(path)


TERABYTES = 10 * 10**12


@pytest.mark.parametrize(
    ("length", "shape", "end"),
    [
        (TERABYTES, [4], 16),
        (2**64 - 1, [4], 16),
        (None, [TERABYTES // 4], TERABYTES),
        (None, [TERABYTES // 4], 16),
        (None, [2**40, 2**40], 16),
    ],
    ids=["header", "longest header", "tensor", "shape", "overflow"],
)
def test_a_header_that_claims_terabytes_is_refused(tmp_path, length, shape, end):
    header = {"cls_token": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
    text = json.dumps(header).encode()
    path = tmp_path / "large.safetensors"
    path.write_bytes(struct.pack("<Q", length or len(text)) + text + bytes(16))
    with pytest.raises(ValueError, match=r"large\.safetensors, of \d+ bytes, is not a sound"):
        load(path)


OTHERS = {
    "resnet": ("conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "fc.weight"),
    "vit": ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.bias"),
    "vit of transformers": ("vit.embeddings.cls_token", "vit.encoder.layer.0.output.dense.bias"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture_is_refused_with_what_is_known(tmp_path, name):
    path = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(2) for key in OTHERS[name]}, path)
    with pytest.raises(ValueError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is in no known layout: ")
    assert min(OTHERS[name]) in message
    for known in ("transformers' BEiT", "decode_head", "mmpretrain", "DALL-E", "timm", "VQ-KD"):
        assert known in message
    assert "beit.load_teacher" in message
    assert f"timm:NAME@{path}" in message


def test_a_head_of_another_size_needs_the_number_of_classes(tmp_path, classifier, caplog):
    path = tmp_path / "w.safetensors"
    save_weights(path, classifier)
    for number in (7, 5):
        with caplog.at_level(logging.INFO):
            read = load(path, num_classes=number)
        assert read.head.out_features == read.config.num_classes == number
        assert torch.equal(read.head.weight, classifier.head.weight) == (number == 5)
    (message,) = caplog.messages
    assert message.endswith(
        "left out head.bias, head.weight (replaced by new ones for 7 classes, near zero)"
    )
    tensors = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    tensors["head.weight"], tensors["head.bias"] = torch.zeros(3, 24), torch.zeros(3)
    _, metadata = read_safetensors(path)
    save_file(tensors, path, metadata)
    expected = r"head\.weight is \(3, 24\), expected \(5, 24\).*; num_classes=… replaces the head"
    with pytest.raises(ValueError, match=expected):
        load(path)
    assert load(path, num_classes=3).head.out_features == 3


def test_both_heads_of_a_segmenter_are_replaced_for_other_classes(tmp_path, segmenter):
    config = dataclasses.replace(segmenter.config, class_names=("a", "b", "c"))
    named = SemanticSegmenter(config)
    save_weights(tmp_path / "w.safetensors", named)
    read = load(tmp_path / "w.safetensors", num_classes=6)
    assert read.config == dataclasses.replace(config, num_classes=6, class_names=None)
    assert read.auxiliary.head.out_channels == read.decoder.head.out_channels == 6
    assert torch.equal(read.decoder.fuse.conv.weight, named.decoder.fuse.conv.weight)


def test_other_sources_are_refused_with_advice(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.*expected a run directory"):
        load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml"):
        load(tmp_path)
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"ends in \.npz; expected \.safetensors, \.pth, \.pt"):
        load(tmp_path / "weights.npz")
    torch.save({"step": 1, "state": {}}, tmp_path / "step-000000001.pt")
    with pytest.raises(ValueError, match="give its run directory"):
        load(tmp_path / "step-000000001.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        load(tmp_path / "list.pt")
    torch.save({0: torch.zeros(2)}, tmp_path / "numbers.pt")
    with pytest.raises(ValueError, match=r"numbers\.pt does not hold tensors by name.*entries: 0"):
        load(tmp_path / "numbers.pt")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": [1, 2]}))
    with pytest.raises(
        ValueError, match=r"plain\.pth is .*damaged, or torch\.save did not write it"
    ):
        load(tmp_path / "plain.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt is in no known layout: weight\. Known are"):
        load(tmp_path / "other.pt")


def test_segmenters_are_recognised_by_tensor_names(tmp_path, segmenter, classifier):
    save_weights(tmp_path / "ours.safetensors", segmenter)
    save_weights(tmp_path / "other.safetensors", classifier)
    torch.save({"state_dict": to_published(segmenter)}, tmp_path / "published.pth")
    save_file(to_transformers(segmenter), tmp_path / "theirs.safetensors")
    found = {file.name: holds_segmenter(file) for file in tmp_path.iterdir()}
    segmenters = dict.fromkeys(["ours.safetensors", "published.pth", "theirs.safetensors"], True)
    assert found == segmenters | {"other.safetensors": False}
    assert not holds_segmenter(tmp_path / "nothing.pth")


def test_a_linear_head_is_in_no_layout_of_others(segmenter):
    linear = SemanticSegmenter(dataclasses.replace(segmenter.config, head="linear"))
    for export in (to_published, to_transformers):
        with pytest.raises(ValueError, match=r"has a linear head.*export it as safetensors"):
            export(linear)


def test_a_teacher_is_opened_elsewhere():
    with pytest.raises(ValueError, match=r"beit\.load_teacher\('efficientnet-lite0'\)"):
        load_backbone("teacher:efficientnet-lite0")


@pytest.mark.parametrize("name", ["beitv2_base_patch16_224_pt1k_ft1k.pth", "renamed.pth"])
def test_a_published_classifier_has_imagenets_names(name, backbone, tmp_path):
    def saved(num_classes):
        config = ImageClassifierConfig(backbone.config, num_classes)
        torch.save({"model": to_published(ImageClassifier(config))}, tmp_path / name)
        return tmp_path / name

    known, options = name.startswith("beitv2"), {"image_size": backbone.config.image_size}
    read = load(saved(1000), **options)
    assert read.classes == (imagenet_words() if known else None)
    assert load(tmp_path / name, num_classes=10, **options).classes is None
    numbers = tuple(map(str, range(1000)))
    assert load(tmp_path / name, class_names=numbers, **options).classes == numbers
    assert load(saved(37), **options).classes is None
    all_of_imagenet = load(saved(21_841), **options).classes
    assert all_of_imagenet == (imagenet_words(21_841) if known else None)


@pytest.mark.parametrize(("tag", "known"), [("in22k_ft_in1k", True), ("pets", False), (3, False)])
def test_timms_classifier_of_imagenet_has_its_names(tag, known, backbone, tmp_path):
    model = ImageClassifier(ImageClassifierConfig(backbone.config, 1000))
    save_file(to_timm(model), tmp_path / "model.safetensors")
    config = timm_config(model, 0.9)
    config["pretrained_cfg"]["tag"] = tag
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path).classes == (imagenet_words() if known else None)


def test_a_backbone_is_read_without_knowing_what_feeds_the_aggregation(tmp_path, pretrained):
    path = tmp_path / "w.pth"
    torch.save({"model": to_published(pretrained)}, path)
    with pytest.raises(ValueError, match="give early_layers=…"):
        load(path)
    assert same(load_backbone(path), pretrained.backbone)
    frozen = open_frozen_model(str(path))
    assert frozen.network is not None and same(frozen.network, pretrained.backbone)


def test_a_run_of_another_name_is_suggested_and_a_stopped_one_resumes_by_its_verb(tmp_path):
    run = RunDirectory.create(tmp_path / "classifier", {}, {"verb": "finetune"})
    with pytest.raises(FileNotFoundError, match=r"exist; did you mean .*classifier\?$"):
        load(tmp_path / "clasifier")
    with pytest.raises(ValueError, match=rf"go on with: beit finetune --resume {run.path}$"):
        load(run.path)


def test_a_name_of_the_hub_is_recognised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="as in hf://microsoft/beit-base, "):
        load("microsoft/beit-base")
    for name in ("runs/a/w.pth", "a/w.pth"):
        with pytest.raises(FileNotFoundError, match=r"w\.pth does not .*, hf://OWNER/NAME, publ"):
            load(name)
    with pytest.raises(
        FileNotFoundError, match=r"did you mean published:beit_base_patch16_224_pt22k\?"
    ):
        load("beit_base_patch16_224_pt22k")
    with pytest.raises(FileNotFoundError, match=r"did you mean teacher:efficientnet-lite0\?"):
        load("efficientnet-lite0")
    (tmp_path / "beit_base_patch16_224_pt22k_ft22k.pth").touch()  # a name alike, of another model
    with pytest.raises(FileNotFoundError, match=r"mean published:beit_base_patch16_224_pt22k\?$"):
        load("beit_base_patch16_224_pt22k.pth")
    with pytest.raises(FileNotFoundError, match=r"did you mean beit:cifar10-small\?$"):
        load("cifar10-small")
    for name in ("", "https://example.org/a.pth"):
        with pytest.raises(
            FileNotFoundError, match=rf"^{name or 'an empty name'} cannot be opened; exp"
        ):
            load(name)
    with pytest.raises(TypeError, match="source is a dict; expected the name of a file"):
        load({})


@pytest.mark.parametrize("name", ["mine.pth", "beitv2_base_patch16_224_pt1k_ft1k.pth"])
def test_a_guessed_normalisation_is_said(name, backbone, tmp_path, caplog):
    model = ImageClassifier(ImageClassifierConfig(backbone.config, 5))
    torch.save(to_timm(model), tmp_path / name)
    size = {"image_size": backbone.config.image_size}
    assert load(tmp_path / name, **size).config.backbone.mean == (0.485, 0.456, 0.406)
    assert ("does not say how its images were normalised" in caplog.text) == (name == "mine.pth")
    load(tmp_path / name, mean=0.5, **size)  # half of it is guessed
    assert caplog.text.count("does not say how its images") == 2 * (name == "mine.pth")
    caplog.clear()
    assert load(tmp_path / name, mean=0.5, std=0.5, **size).config.backbone.std == (0.5, 0.5, 0.5)
    assert caplog.text == ""


@pytest.mark.parametrize("size", ["384", (16,), 16.0])
def test_a_size_is_a_side_or_a_pair(size, backbone, tmp_path):
    save_weights(tmp_path / "w.safetensors", backbone)
    with pytest.raises(ValueError, match=r"image_size is .*, expected one side or \(height, width"):
        load_backbone(tmp_path / "w.safetensors", image_size=size)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.safetensors",
            b"version https://git-lfs.github.com/spec/v1",
            "a pointer of Git LFS: run",
        ),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS: run"),
        ("a.pth", b"<!DOCTYPE html>", "a web page: download the file itself"),
        ("a.bin", b"", "is empty: download it again"),
        (
            "a.pth",
            b"\x10" + bytes(7) + b'{"a": 1}',
            "a safetensors file: rename it to .safetensors",
        ),
        ("a.safetensors", b"PK\x03\x04" + bytes(9), "a PyTorch checkpoint: rename it to .pth"),
    ],
)
def test_what_is_no_weights_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.* it is {message}|it {message}"):
        load(tmp_path / name)


def test_a_folder_without_known_files_names_those_to_give(tmp_path, classifier):
    message = r"is not a run directory: it has no config\.yaml, nor has it weights\.safetensors, "
    with pytest.raises(
        FileNotFoundError, match=message + r"model\.safetensors or pytorch_model\.bin$"
    ):
        load(tmp_path)
    torch.save({}, tmp_path / "mine.pth")
    with pytest.raises(FileNotFoundError, match=r"; give one of its files: mine\.pth$"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        (
            "https://x.org/beitv2_base_patch16_224_pt1k.pth",
            "published:beitv2_base_patch16_224_pt1k?",
        ),
        ("vqkd_encoder_base_decoder_1x768x12_dino-663c55d7.pth", "published:vqkd_encoder_base"),
        ("timm:beitv2_base_patch16_224", "hf://timm/beitv2_base_patch16_224.TAG"),
    ],
)
def test_other_ways_to_name_published_weights_get_a_hint(source, hint):
    with pytest.raises(FileNotFoundError, match=re.escape(hint)):
        load(source)


def test_a_model_without_head_takes_no_number_of_classes(tmp_path, backbone):
    save_weights(tmp_path / "ours.safetensors", backbone)
    save_file(to_published(backbone), tmp_path / "theirs.safetensors")
    for name in ("ours", "theirs"):
        with pytest.raises(ValueError, match=f"{name}.* no override num_classes; .* no head for"):
            load(tmp_path / f"{name}.safetensors", num_classes=3)

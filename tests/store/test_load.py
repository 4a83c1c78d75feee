import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from beit.nn.mim import MaskedImageModel
from beit.nn.tokenizer import VQKD
from beit.nn.vit import VisionTransformer
from beit.store.formats.published import to_published
from beit.store.load import load, load_backbone, load_tokenizer
from beit.store.run import RunDirectory
from beit.store.weights import save_weights


def test_run_directory_gives_its_weights_once_finished(tmp_path, tokenizer):
    run = RunDirectory.create(tmp_path / "run", {}, "train-tokenizer")
    with pytest.raises(ValueError, match=r"not finished: it has no weights\.safetensors"):
        load(run.path)
    save_weights(run.weights_file, tokenizer)
    for source in (run.path, str(run.path), run.weights_file):
        read = load(source)
        assert isinstance(read, VQKD)
        assert read.config == tokenizer.config


@pytest.mark.parametrize("name", ["published.pth", "published.pt", "published.safetensors"])
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
    ("kind", "part"), [("tokenizer", "encoder"), ("pretrained", "backbone"), ("backbone", None)]
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
    assert load_backbone(tmp_path / "w.safetensors", image_size=expected.config.image_size)
    with pytest.raises(ValueError, match=r"image_size=\(40, 40\) contradicts"):
        load_backbone(tmp_path / "w.safetensors", image_size=40)


def test_tokenizer_must_encode(tmp_path, tokenizer, pretrained):
    save_weights(tmp_path / "t.safetensors", tokenizer)
    save_weights(tmp_path / "p.safetensors", pretrained)
    found = load_tokenizer(tmp_path / "t.safetensors")
    assert found.encode(torch.rand(2, 3, 12, 20)).shape == (2, 15)
    assert (found.vocab_size, found.grid) == (11, (3, 5))
    with pytest.raises(ValueError, match=r"p\.safetensors holds a MaskedImageModel.*encode"):
        load_tokenizer(tmp_path / "p.safetensors")


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


def test_other_sources_are_refused_with_advice(tmp_path):
    with pytest.raises(ValueError, match="download the file"):
        load("hf://owner/name")
    with pytest.raises(FileNotFoundError, match=r"absent.*expected a run directory"):
        load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml"):
        load(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"ends in \.bin; expected \.safetensors, \.pth or \.pt"):
        load(tmp_path / "weights.bin")
    torch.save({"step": 1, "state": {}}, tmp_path / "step-000000001.pt")
    with pytest.raises(ValueError, match="give its run directory"):
        load(tmp_path / "step-000000001.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        load(tmp_path / "list.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt is in no known layout.*got weight"):
        load(tmp_path / "other.pt")

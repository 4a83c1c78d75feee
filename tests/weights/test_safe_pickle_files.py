import argparse
import zipfile

import numpy as np
import pytest
import torch

from beit.weights.open import load
from beit.weights.safe_pickle.files import Ignored, read_checkpoint


@pytest.fixture
def training(pretrained, tmp_path):
    """Writes a training checkpoint as the published code does: the model and much more."""
    from beit.weights.formats.published import to_published

    optimizer = torch.optim.AdamW(pretrained.parameters(), betas=(0.9, 0.98))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    prediction = pretrained(images, torch.tensor([[1, 4], [2, 9]]))
    (prediction.logits.sum() + prediction.cls_logits.sum()).backward()
    optimizer.step()
    rates = np.linspace(0, 1.5e-3, 7)  # its schedule is a NumPy table
    for group in optimizer.param_groups:
        group["lr"] = rates[3] * group.get("lr_scale", 1.0)
    content = {
        "model": to_published(pretrained),
        "optimizer": optimizer.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "epoch": 299,
        "best": np.float32(0.16),
        "schedule": rates,
        "args": argparse.Namespace(
            lr=1.5e-3, opt_betas=[0.9, 0.98], resume="", dist=np.bool_(True)
        ),
    }

    def save(name, **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


@pytest.mark.parametrize("new", [True, False])
def test_other_contents_of_a_training_checkpoint_are_ignored(training, pretrained, new):
    path = training("checkpoint-299.pth", _use_new_zipfile_serialization=new)
    content = read_checkpoint(path)
    assert content["epoch"] == 299
    assert len(content["optimizer"]["state"]) == len(list(pretrained.parameters()))
    assert type(content["optimizer"]["param_groups"][0]["lr"]) is Ignored
    for value in (content["args"], content["best"], content["schedule"]):
        assert type(value) is Ignored
        assert not vars(value)
    model = load(path, early_layers=2)
    state = pretrained.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_checkpoints_of_older_numpy_are_read(training):
    path = training("checkpoint.pth")
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data.replace(b"numpy._core.", b"numpy.core."))
    assert type(read_checkpoint(path)["best"]) is Ignored


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("new", [True, False])
def test_a_truncated_checkpoint_is_named(training, share, new):
    path = training("cut.pth", _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cut\.pth is .*(download it again|with torch\.save)"):
        load(path)


def test_an_archive_larger_than_its_file_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", bytes(10**7))
    assert path.stat().st_size < 10**5
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(
        ValueError, match=r"bomb\.pth is damaged.*claim 10000006 bytes and the file"
    ):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "named", ["numpy.load", "numpy.core.multiarray.fromfile", "argparse.FileType", "os.system"]
)
def test_names_other_than_the_ignored_ones_are_refused(tmp_path, named):
    module, _, name = named.rpartition(".")
    pickled = f"\x80\x02c{module}\n{name}\nU\x01x\x85R.".encode("latin1")
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
    with pytest.raises(ValueError, match=r"model\.pth is refused: .*Nothing of it was executed"):
        read_checkpoint(path)

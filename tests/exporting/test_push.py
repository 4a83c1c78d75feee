import shutil
import urllib.request

import pytest
from huggingface_hub import constants

from beit import cli
from beit.exporting import push
from beit.run.directory import RunDirectory
from beit.weights import hub


@pytest.fixture
def run(trained_tokenizer, tmp_path):
    """A copy of a finished run."""
    return RunDirectory(shutil.copytree(trained_tokenizer, tmp_path / "run"))


@pytest.fixture
def pushed(monkeypatch):
    """Records uploads to the hub."""
    calls = []

    def record(repository, files, card, private):
        calls.append((repository, dict(files), card, private))
        return f"https://huggingface.co/{repository}"

    monkeypatch.setattr(hub, "push", record)
    return calls


def test_a_dry_run_writes_the_card_and_uploads_nothing(run, pushed, capsys):
    assert cli.main(["push", str(run.path), "me/mine", "--dry_run", "--license", "mit"]) == 0
    card = (run.path / "README.md").read_text()
    assert "license: mit" in card
    assert 'beit.load_tokenizer("hf://me/mine")' in card
    assert "| `val_reconstruction` |" in card
    shown = capsys.readouterr().out
    assert "README.md: written" in shown
    assert "nothing was pushed" in shown
    assert pushed == []


def test_weights_configuration_and_log_of_a_run_are_pushed(run, pushed):
    result = push.run(push.Config(str(run.path), "me/mine", private=True))
    assert result.address == "https://huggingface.co/me/mine"
    [(repository, files, card, private)] = pushed
    assert (repository, private) == ("me/mine", True)
    assert list(files) == ["weights.safetensors", "config.yaml", "metrics.jsonl"]
    assert files["weights.safetensors"] == run.weights_file
    assert card == result.card.read_text()


def test_an_edited_card_is_pushed_unchanged(run, pushed):
    (run.path / "README.md").write_text("# Mine\n")
    push.run(push.Config(str(run.path), "me/mine"))
    assert pushed[0][2] == "# Mine\n"


def test_all_files_of_an_export_are_pushed_with_the_card_of_its_run(run, pushed, tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", ".hidden"):
        (folder / name).write_text("{}")
    with pytest.raises(ValueError, match=r"export is not a run.*; name the run .* by --run"):
        push.run(push.Config(str(folder), "me/mine"))
    push.run(push.Config(str(folder), "me/mine", run=str(run.path)))
    assert list(pushed[0][1]) == ["config.json", "model.safetensors"]
    assert "transformers opens it too" in pushed[0][2]


def test_a_single_file_has_its_card_beside_it(run, pushed, tmp_path):
    (tmp_path / "vit.onnx").write_text("graph")
    result = push.run(push.Config(str(tmp_path / "vit.onnx"), "me/mine", run=str(run.path)))
    assert result.card == tmp_path / "vit.onnx.md"
    assert list(pushed[0][1]) == ["vit.onnx"]


def test_what_cannot_be_pushed(run, tmp_path):
    with pytest.raises(ValueError, match=r"repository is 'mine'; expected OWNER/NAME"):
        push.Config(str(run.path), "mine")
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        push.run(push.Config(str(tmp_path / "none"), "me/mine"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no files"):
        push.run(push.Config(str(tmp_path / "empty"), "me/mine"))
    run.weights_file.unlink()
    with pytest.raises(ValueError, match="is not finished"):
        push.run(push.Config(str(run.path), "me/mine"))


def test_without_a_network_the_card_is_kept_and_the_reason_reported(run, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    assert cli.main(["push", str(run.path), "me/mine"]) == 2
    assert "the hub cannot be reached" in capsys.readouterr().err
    assert (run.path / "README.md").is_file()

"""A longer schedule for a run: the seam, what is kept, what is refused."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import beit
from beit import cli
from beit.command.modules import changed_settings
from beit.pretraining import pretrain
from beit.run.directory import RunDirectory
from beit.run.resume import open_run, resume
from beit.weights.open import load


@pytest.fixture(scope="module")
def finished(tmp_path_factory, trained_tokenizer, pretrain_config):
    """A finished run of ten steps, two epochs."""
    output = tmp_path_factory.mktemp("extension") / "run"
    pretrain.run(pretrain_config(output, trained_tokenizer))
    return output


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")


def test_a_finished_run_goes_on_with_a_longer_schedule(run, finished, records, capsys):
    assert cli.main(["pretrain", "--resume", str(run), "--optim.epochs", "4"]) == 0
    config, _ = open_run(pretrain, run)
    assert config.optim.epochs == 4
    before, after = replace(config.optim, epochs=2).rate(10, 5), config.optim.rate(11, 5)
    assert after > 5 * before
    seam = f"{before:.3g} at step 10, {after:.3g} at the next one"
    (note,) = config.run.chosen
    assert note.startswith("resumed after step 10: optim.epochs 4 instead of 2; the learning rate")
    assert note.endswith(seam)
    assert note in capsys.readouterr().err
    assert run.joinpath("config.yaml").read_text().startswith("# beit pretrain --config ")
    log = records(run)
    rates = {r["step"]: r["rate"] for r in log if "rate" in r}
    assert [*rates] == [3, 4, 6, 8, 9, 10, 12, 15, 16, 18, 20]
    assert rates[12] == config.optim.rate(12, 5)
    assert [r for r in log if "rate" in r][:6] == [r for r in records(finished) if "rate" in r]
    assert [r["step"] for r in log if "val_loss" in r] == [5, 10, 15, 20]


def test_the_finished_run_is_put_aside_whole(run, finished):
    for name in ("weights.safetensors", "report.html", "metrics.jsonl", "config.yaml"):
        assert (run / name).is_file()
    seen = []

    def on_step(step, figures):
        seen.append((run / "weights.safetensors").exists())

    beit.resume(run, quiet=True, on_step=on_step, **{"optim.epochs": 3})
    assert seen == [False] * 5  # an unfinished run has none
    aside = run / "step-000000010"
    for file in aside.iterdir():
        assert file.read_bytes() == (finished / file.name).read_bytes()
    names = [{file.name for file in folder.iterdir()} for folder in (finished, aside)]
    assert names[0] - names[1] == {"checkpoints", "lock"}
    old, new = load(aside).state_dict(), load(run).state_dict()
    assert not torch.equal(old["head.weight"], new["head.weight"])


def test_an_unfinished_run_goes_on_as_if_it_had_been_longer_from_the_start(
    tmp_path, trained_tokenizer, pretrain_config, optim, interrupt_at, same_bits
):
    """Within the warm-up both schedules have the same rates."""
    longer = optim(clip=3.0, epochs=3)
    pretrain.run(pretrain_config(tmp_path / "whole", trained_tokenizer, optim=longer))
    interrupt_at(pretrain, pretrain_config(tmp_path / "run", trained_tokenizer), 5)
    resume(pretrain, tmp_path / "run", changes={"optim.epochs": 3})
    same_bits(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_the_same_command_again_changes_nothing(run):
    beit.resume(run, quiet=True, **{"optim.epochs": 3})
    config = (run / "config.yaml").read_bytes()
    weights = (run / "weights.safetensors").read_bytes()
    beit.resume(run, quiet=True, **{"optim.epochs": 3})
    assert (run / "config.yaml").read_bytes() == config
    assert (run / "weights.safetensors").read_bytes() == weights
    assert [file.name for file in run.glob("step-*")] == ["step-000000010"]


@pytest.mark.slow
def test_a_kill_between_two_files_loses_nothing(run, finished, monkeypatch):
    """After the old files are put aside the settings are still the old ones."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("beit.run.extension.write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            resume(pretrain, run, changes={"optim.epochs": 3})
    assert not (run / "weights.safetensors").exists()
    resume(pretrain, run)
    assert (
        load_file(run / "weights.safetensors").keys()
        == load_file(run / "step-000000010/weights.safetensors").keys()
    )
    same = (run / "weights.safetensors").read_bytes()
    assert same == (finished / "weights.safetensors").read_bytes()
    beit.resume(run, quiet=True, **{"optim.epochs": 3})
    assert (run / "step-000000010/weights.safetensors").read_bytes() == same


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.epochs": 1}, r"has reached step 10, but with optim.epochs 1 it ends after step 5"),
        ({"run.stop_after": 9}, "with run.stop_after 9 it ends after step 9; give a larger number"),
        ({"optim.learning_rate": 1}, "optim.learning_rate cannot be changed when a run resumes"),
        ({"run.seed": 1}, r"What can be: optim.epochs, run.stop_after, .*--init"),
        ({"data.train": "b"}, r"If images were only moved, write their place into .*config\.yaml"),
        ({"optim.steps": 9}, "optim.steps cannot be changed"),
        ({"optim.epoch": 9}, "optim.epoch cannot be changed"),
        ({"optim.epochs": "many"}, "epochs is 'many', expected"),
    ],
)
def test_refusals_change_nothing(run, finished, changes, message):
    with pytest.raises(ValueError, match=message):
        resume(pretrain, run, changes=changes)
    assert (run / "config.yaml").read_bytes() == (finished / "config.yaml").read_bytes()
    assert (run / "weights.safetensors").exists()


@pytest.mark.slow
def test_a_stop_may_be_moved(tmp_path, trained_tokenizer, pretrain_config, finished, same_bits):
    config = pretrain_config(tmp_path / "run", trained_tokenizer)
    run = pretrain.run(replace(config, run=replace(config.run, stop_after=5))).directory
    resume(pretrain, run, changes={"run.stop_after": None, "run.keep_last": 9})
    weights = [load_file(each / "weights.safetensors") for each in (run, finished)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    settings = RunDirectory(run).config()
    assert (settings["run"]["stop_after"], settings["run"]["keep_last"]) == (None, 9)
    assert (run / "step-000000005/weights.safetensors").exists()


def test_options_beside_a_run_are_changes():
    words = ["--optim.steps=9", "--run.stop_after", "null"]
    assert changed_settings(words) == {"optim.steps": 9, "run.stop_after": None}
    with pytest.raises(ValueError, match="--resume takes one run and options, got more"):
        changed_settings([*words, "more"])


def test_an_edited_file_is_refused_and_an_option_is_not(run, finished):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("epochs: 2\n", "epochs: 3\n"))
    for changes in ({}, {"run.keep_last": 3}):
        with pytest.raises(ValueError, match=r"optim\.epochs: 2 -> 3"):
            resume(pretrain, run, changes=changes)
    resume(pretrain, run, changes={"run.stop_after": 11, "optim.epochs": 3})
    assert (
        "optim.epochs 3 instead of 2; the learning"
        in RunDirectory(run).config()["run"]["chosen"][0]
    )
    resume(pretrain, run)  # the new settings are those of the checkpoints
    words = ["pretrain", "--config", str(run / "config.yaml"), "--resume", "auto"]
    assert cli.main([*words, "--output", str(run)]) == 0
    with pytest.raises(ValueError, match=r"--optim\.epochs NUMBER"):
        cli.run_verb("pretrain", [*words[1:], "--output", str(run), "--optim.epochs", "5"])

"""`beit doctor --preset P`: which training, and a trial of a small one."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from beit.cli import main
from beit.diagnosis import training
from beit.diagnosis.doctor import Config, read_options
from beit.diagnosis.training import Training
from beit.diagnosis.trial import Measured, Plan, tried

MODULE = "beit.pretraining.pretrain"


# ── which training ──────────────────────────────────────────────────────────────────────────────


def test_a_preset_names_the_training_and_options_are_its_own():
    words = [
        "shapes://50",
        "--preset",
        "beit2-b16-300e",
        "--output",
        "page",
        "--optim.batch_size=64",
    ]
    read = read_options([*words, "--tokenizer", "t"])
    assert isinstance(read, Training) and (read.verb, read.module) == ("pretrain", MODULE)
    assert (read.config.data.train, read.config.optim.batch_size) == ("shapes://50", 64)
    assert (read.output, read.config.run.output) == ("page", "")
    assert read.options == ["--data=shapes://50", "--optim.batch_size=64", "--tokenizer", "t"]


def test_a_run_says_its_verb(tmp_path, trained_tokenizer):
    read = read_options(["--config", str(trained_tokenizer / "config.yaml")])
    assert isinstance(read, Training) and read.verb == "train-tokenizer"
    dvae = read_options(["--preset", "dvae-cifar10-cpu", "--verb", "train-tokenizer"])
    assert isinstance(dvae, Training) and dvae.module == "beit.tokenizer.dvae"


def test_without_a_training_the_options_are_of_images(tmp_path):
    assert read_options(["photos", "--near", "2"]) == Config("photos", near=2)
    (tmp_path / "mine.yaml").write_text("doctor: {near: 3}\n")
    assert read_options(["--config", str(tmp_path / "mine.yaml")]) == Config(near=3)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--preset", "cifar10-cpu"], "has train-tokenizer and pretrain; say which one to measure"),
        (["--preset", "cifar10-cpu", "--verb", "probe"], "--verb is 'probe'; expected one of"),
        (["--preset", "cifar10"], "there is no preset 'cifar10'; did you mean"),
        (["--verb", "pretrain", "--preset", "cifar10-cpu", "--near", "3"], "unknown option --near"),
    ],
)
def test_mistakes_say_what_to_give(words, expected, capsys):
    assert main(["doctor", *words]) == 2
    assert expected in capsys.readouterr().err


# ── a trial ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(24):
        pixels = torch.randint(256, (30, 40, 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.byte().numpy()).save(folder / f"{number}.jpg")
    return folder


def test_a_trial_measures_the_parts_and_leaves_nothing(
    tmp_path, photos, trained_tokenizer, pretrain_config
):
    config = pretrain_config(tmp_path / "unused", trained_tokenizer)
    config = replace(
        config, data=replace(config.data, train=str(photos), cache_gigabytes=0.0, num_workers=2)
    )
    folder = tmp_path / "work"
    folder.mkdir()
    found = pickle.loads(pickle.dumps(tried(Plan(MODULE, config, 24, 8, str(folder)))))
    assert set(found.parts) == {
        *("masks, teacher or tokenizer", "forward", "loss", "backward", "optimiser"),
        *("metrics and clipping", "rest of the step"),
    }
    assert found.step > 0 and found.parts["forward"] > 0 and found.failure == ""
    assert min(found.reading[name] for name in ("read", "disk", "decode", "again", "views")) > 0
    assert found.image_bytes == 30 * 40 * 3 and 500 < found.file_bytes < 9000
    assert not found.in_memory and found.view_bytes == 16 * 24 * 3
    assert found.worker > 1e6 and found.checkpoint > 10_000
    assert found.host >= found.stepping > 1e8
    assert not (tmp_path / "unused").exists()
    cached = replace(config, data=replace(config.data, cache_gigabytes=1.0))
    assert tried(Plan(MODULE, cached, 24, 8, str(tmp_path / "other"))).in_memory


@pytest.mark.slow
def test_a_training_is_measured_in_a_process_of_its_own(
    tmp_path, photos, trained_tokenizer, pretrain_config, monkeypatch, capsys
):
    config = pretrain_config(tmp_path / "unused", trained_tokenizer)
    config = replace(config, data=replace(config.data, train=str(photos)))
    found = training.check_training(Training("pretrain", MODULE, config))
    assert found.figures["images_per_second"] > 0 and json.dumps(found.values)
    names = [check.name for check in found.checks]
    assert {"disk read", "decode", "views", "model", "binds", "speed", "time", "memory"} <= {*names}
    refused = replace(config, tokenizer=str(tmp_path / "absent"))
    with pytest.raises((ValueError, OSError), match="absent"):
        training.check_training(Training("pretrain", MODULE, refused))


def settings(**changes):
    words = ["--data=d", "--tokenizer=t", "--preset=cifar10-cpu", "--verb=pretrain"]
    words += [f"--{name}={value}" for name, value in changes.items()]
    return read_options(words).config


def test_a_batch_that_takes_too_long_is_measured_by_smaller_ones(monkeypatch):
    config = settings(**{"optim.batch_size": 512, "device.accelerator": "cpu"})
    for seconds, failing, expected in (
        (0.1, (), [4, 128]),  # 25 s are five steps of 200 images, and a power of two
        (0.01, (), [4, 512]),
        (9.0, (), [4, 8]),
        (0.1, (4,), [4]),
    ):
        tried = []

        def try_out(plan, seconds=seconds, failing=failing, tried=tried):
            tried.append(plan.batch_size)
            failure = "out of memory" if plan.batch_size in failing else ""
            return Measured(parts={"forward": seconds}, failure=failure)

        monkeypatch.setattr(training, "try_out", try_out)
        found = training._trials(Training("pretrain", MODULE, config), 9999, 512)
        assert tried == expected == [batch for batch, _ in found]
    small = settings(**{"device.accelerator": "cpu"})
    tried.clear()
    monkeypatch.setattr(training, "try_out", lambda plan: try_out(plan, failing=(64,)))
    training._trials(Training("pretrain", MODULE, small), 9999, 64)
    assert tried == [64, 4, 64]  # it fails whole, and here again

"""`beit doctor --preset P`: which training, what its parts predict, and a trial of a small one."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from beit.cli import main
from beit.data.reader import Reader
from beit.data.sources import open_source
from beit.diagnosis import training
from beit.diagnosis.doctor import Config, read_options
from beit.diagnosis.training import Machine, Training, predict, scaled, seconds_of_step
from beit.diagnosis.trial import CUTS, Measured, Plan, _seconds_of_views, tried

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


# ── the prediction ──────────────────────────────────────────────────────────────────────────────


def test_a_step_takes_what_takes_longest():
    measured = Measured("cpu", threads=2)
    one, four = Machine(1, 8e9), Machine(4, 8e9)
    assert seconds_of_step(measured, four, 1.0, 0.5, 0) == 1.5
    assert seconds_of_step(measured, four, 1.0, 3.0, 2) == 1.5  # reading
    assert seconds_of_step(measured, four, 1.0, 0.5, 2) == 1.0  # the step
    assert seconds_of_step(measured, Machine(2, 8e9), 1.0, 1.0, 4) == 1.5  # both cores, by both
    assert seconds_of_step(measured, one, 1.0, 0.5, 2) == 1.5  # the only core
    on_gpu = Measured("cuda", transfer=0.2)
    assert seconds_of_step(on_gpu, four, 0.1, 3.0, 0) == 3.0  # it reads ahead
    assert seconds_of_step(on_gpu, four, 0.1, 3.0, 16) == 0.75  # by four cores
    assert seconds_of_step(on_gpu, four, 0.1, 0.1, 4) == 0.2  # the copy


def settings(**changes):
    words = ["--data=d", "--tokenizer=t", "--preset=cifar10-cpu", "--verb=pretrain"]
    words += [f"--{name}={value}" for name, value in changes.items()]
    return read_options(words).config


def measured(**changes) -> Measured:
    seconds = {"read": 0.02, "disk": 0.03, "decode": 0.06, "again": 0.05, "views": 0.01}
    parts = {"masks, teacher or tokenizer": 0.1, "forward": 0.2, "backward": 0.3, "optimiser": 0.1}
    values = {
        "num_images": 100,
        "reading": seconds,
        "parts": parts,
        "file_bytes": 1e6,
        "image_bytes": 3e6,
    }
    values |= {
        "worker": 200_000_000,
        "host": 1_100_000_000,
        "stepping": 1_000_000_000,
        "checkpoint": 10_000_000,
        "once": 9.0,
    }
    return Measured(**(values | changes))


def test_time_is_that_of_all_steps_and_validations():
    config = settings(**{"data.num_workers": 2, "optim.batch_size": 10, "optim.epochs": 4})
    found = predict(config, measured(), Machine(4, 8e9), 1000, 1, (0, 1, 0))
    assert found.reading == pytest.approx((0.09, 0.06))
    assert found.step == pytest.approx(0.7)
    assert found.first == pytest.approx(10 / 0.7) and found.later == pytest.approx(10 / 0.7)
    assert found.seconds == pytest.approx(400 * 0.7 + 9)
    assert found.workers == 1  # 0.6 s of reading beside 0.7 s of the step
    serial = predict(
        replace(config, data=replace(config.data, num_workers=0)),
        measured(),
        Machine(4, 8e9),
        1000,
        1,
        (50, 3, 20),
    )
    assert serial.first == pytest.approx(10 / 1.6) and serial.later == pytest.approx(10 / 1.3)
    evaluated = (50 * 3 + 20) * (0.3 / 10 + 0.06)
    assert serial.seconds == pytest.approx(100 * 1.6 + 300 * 1.3 + evaluated + 9)


def test_files_that_memory_does_not_hold_are_read_from_the_disk_again():
    config = settings(**{"optim.batch_size": 10})
    found = predict(config, measured(), Machine(4, 1e9), 1000, 1, (0, 1, 0))  # 1 GB of files
    assert found.reading[1] == pytest.approx(0.05 + 0.03 + 0.01)


def test_accumulation_repeats_all_but_the_optimiser():
    config = settings(**{"optim.batch_size": 40, "optim.accumulate": 4})
    found = predict(config, measured(), Machine(4, 8e9), 1000, 1, (0, 1, 0))
    assert found.step == pytest.approx(4 * 0.6 + 0.1)


def test_memory_is_that_of_the_process_its_workers_and_the_images():
    config = settings(**{"data.num_workers": 2, "optim.batch_size": 10})
    found = predict(config, measured(view_bytes=1000), Machine(4, 8e9), 1000, 1, (0, 1, 0))
    assert found.host == pytest.approx(1.4e9, rel=1e-3)
    held = predict(config, measured(in_memory=True), Machine(4, 8e9), 1000, 1, (100, 1, 0))
    assert held.host == pytest.approx(1.4e9 + (900 + 100) * 3e6)
    alone = replace(config, data=replace(config.data, num_workers=0))
    found = predict(alone, measured(), Machine(4, 8e9), 1000, 1, (0, 1, 0))
    assert found.host == 1.1e9  # at the report
    assert held.reading == (0.01, 0.01)
    assert held.seconds > 1100 * 0.08 / 4  # all are decoded first


def test_two_small_trials_say_what_a_large_batch_takes():
    small = measured(stepping=1_000_000_000)
    double = measured(stepping=1_080_000_000, parts={"forward": 0.4, "optimiser": 0.1})
    found = scaled([(8, small), (16, double)], 64)
    assert found.parts == {"forward": pytest.approx(1.6), "optimiser": 0.1}
    assert found.stepping == 1_080_000_000 + 48 * 10_000_000


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


def test_views_are_cut_anew_for_each_time_that_is_measured():
    cut = []

    def view(image, generator):
        cut.append(tuple(image.shape))
        return image[:, :4, :5], image[:, :6, :7]

    reader = Reader(open_source("shapes://3?size=24"), view, ("images", "target_images"), 0)
    images = [torch.zeros(3, 9, 9 + number, dtype=torch.uint8) for number in range(2)]
    seconds, shapes = _seconds_of_views(reader, None, images, 8, on_gpu=False)
    assert cut == [(3, 9, 9), (3, 9, 10)] * (1 + CUTS) and seconds > 0
    assert shapes == [(3, 4, 5), (3, 6, 7)]


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

from pathlib import Path

import pytest

from beit import demo
from beit.fetching import fetch
from beit.pretraining.config import Config as PretrainConfig


def test_trainings_are_fitted_to_the_number_of_images() -> None:
    options = ["--tokenizer=runs/t", "--data.train=[x]", "--check.every=0"]
    config = demo.from_preset("pretrain", PretrainConfig, options)
    assert (config.tokenizer, config.data.train, config.check.every) == ("runs/t", "[x]", 0)
    few = demo.fitted(config, 200).optim
    assert (few.epochs, few.batch_size) == (300, 50)  # 3 epochs of 20,000 images
    assert few.warmup_epochs / few.epochs == pytest.approx(0.2 / 3)
    assert demo.fitted(config, 20_000) == config


def test_the_first_free_name_is_taken(tmp_path: Path) -> None:
    assert demo.first_free(tmp_path / "demo") == tmp_path / "demo"
    for name in ("demo", "demo-2"):
        (tmp_path / name).mkdir()
    assert demo.first_free(tmp_path / "demo") == tmp_path / "demo-3"


def test_a_folder_keeps_its_own_split_or_is_split(tmp_path: Path) -> None:
    sets = demo.find_sets(demo.Config(data=str(tmp_path)))
    assert sets[:2] == (f"{tmp_path}[:80%]", f"{tmp_path}[80%:]")
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    sets = demo.find_sets(demo.Config(data=str(tmp_path)))
    assert sets[:2] == (str(tmp_path / "train"), str(tmp_path / "val"))


def test_drawn_scenes_replace_cifar_if_no_channel_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(config: fetch.Config) -> fetch.Result:
        raise OSError("no channel answers")

    monkeypatch.setattr(fetch, "run", unreachable)
    sets = demo.find_sets(demo.Config())
    assert sets[:2] == ("shapes://10000?size=64[:80%]", "shapes://10000?size=64[80%:]")
    assert "cannot be fetched" in capsys.readouterr().out

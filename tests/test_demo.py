from pathlib import Path

import pytest

from beit import demo
from beit.fetching import fetch


def test_settings_are_merged_where_they_nest() -> None:
    plain = {"optim": {"epochs": 2, "clip": None}, "view": {"flip": 0.5}}
    changed = demo.merged(plain, {"optim": {"epochs": 5}, "tokenizer": "runs/t"})
    assert changed == {
        "optim": {"epochs": 5, "clip": None},
        "view": {"flip": 0.5},
        "tokenizer": "runs/t",
    }
    assert plain["optim"]["epochs"] == 2  # what was given stays


def test_the_first_free_name_is_taken(tmp_path: Path) -> None:
    assert demo.first_free(tmp_path / "demo") == tmp_path / "demo"
    for name in ("demo", "demo-2"):
        (tmp_path / name).mkdir()
    assert demo.first_free(tmp_path / "demo") == tmp_path / "demo-3"


def test_a_folder_keeps_its_own_split_or_is_parted(tmp_path: Path) -> None:
    sets = demo.find_sets(demo.Config(data=str(tmp_path)))
    assert sets[:2] == (f"{tmp_path}[:80%]", f"{tmp_path}[80%:]")
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    sets = demo.find_sets(demo.Config(data=str(tmp_path)))
    assert sets[:2] == (str(tmp_path / "train"), str(tmp_path / "val"))


def test_without_a_channel_it_goes_on_with_drawn_scenes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(config: fetch.Config) -> fetch.Result:
        raise OSError("no channel answers")

    monkeypatch.setattr(fetch, "run", unreachable)
    sets = demo.find_sets(demo.Config())
    assert sets[:2] == ("shapes://10000?size=64[:80%]", "shapes://10000?size=64[80%:]")
    assert "cannot be fetched here" in capsys.readouterr().out

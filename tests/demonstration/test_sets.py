from pathlib import Path

import pytest

from beit.data.shapes import KINDS
from beit.data.sources import open_source
from beit.demonstration.sets import find_sets
from beit.fetching import fetch


def test_a_folder_keeps_its_own_split_or_is_split(tmp_path: Path) -> None:
    assert find_sets(str(tmp_path), "")[:2] == (f"{tmp_path}[:80%]", f"{tmp_path}[80%:]")
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    sets = find_sets(str(tmp_path), "")
    assert sets[:2] == (str(tmp_path / "train"), str(tmp_path / "val"))


def test_drawn_scenes_replace_cifar_if_no_channel_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(config: fetch.Config) -> fetch.Result:
        raise OSError("no channel answers")

    monkeypatch.setattr(fetch, "run", unreachable)
    sets = find_sets("", "data")
    assert not sets.cifar and sets.vit[0] == "image_size=[64,64]"
    train, test = open_source(sets.train), open_source(sets.test)
    assert train.class_names == KINDS and len(train) + len(test) == 10_000
    said = capsys.readouterr().out
    assert "no channel answers\nThe demo goes on with drawn scenes, shapes://10000?" in said
    assert "beit demo --data FOLDER" in said

from pathlib import Path

import pytest

from beit.data.sources import open_source
from beit.demonstration.sets import find_sets
from beit.fetching import fetch


def test_a_folder_keeps_its_own_split_or_is_split(tmp_path: Path) -> None:
    assert find_sets(str(tmp_path), "")[:2] == (f"{tmp_path}[:80%]", f"{tmp_path}[80%:]")
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    sets = find_sets(str(tmp_path), "")
    assert sets[:2] == (str(tmp_path / "train"), str(tmp_path / "val"))


def test_drawings_of_the_package_replace_cifar_if_no_channel_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(config: fetch.Config) -> fetch.Result:
        raise OSError("no channel answers")

    monkeypatch.setattr(fetch, "run", unreachable)
    sets = find_sets("", "data")
    assert not sets.cifar and sets.vit[0] == "image_size=[64,64]"
    train, test = open_source(sets.train), open_source(sets.test)
    assert (len(train), len(test)) == (1614, 404)
    assert train.class_names == test.class_names and len(train.class_names or ()) == 11
    assert not {*map(train.name, range(len(train)))} & {*map(test.name, range(len(test)))}
    assert {min(train.image(index).shape[1:]) for index in range(0, len(train), 50)} <= {*range(65)}
    said = capsys.readouterr().out
    assert "no channel answers\nThe demo goes on with 2,018 drawings" in said
    assert "beit demo --data FOLDER" in said

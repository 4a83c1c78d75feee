from pathlib import Path

import pytest

from beit.files import PARTIAL_SUFFIX, replacing, user_path, write_bytes, write_text


def test_text_and_bytes_replace_the_old_file(tmp_path):
    path = tmp_path / "report.html"
    for text in ("old", "a longer ünïcode text"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_unchanged(tmp_path, error):
    path = tmp_path / "report.html"
    write_text(path, "old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_next_writer_overwrites_what_a_killed_one_left(tmp_path):
    (tmp_path / f".a.txt{PARTIAL_SUFFIX}").write_text("half of a file")
    write_text(tmp_path / "a.txt", "new")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_tilde_is_a_home_folder_unless_a_file_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    assert user_path("~/photos") == Path("/home/ann/photos")
    assert user_path("~nobody-here/a") == Path("~nobody-here/a")
    assert user_path("a/~b") == Path("a/~b")
    (tmp_path / "~").mkdir()
    assert user_path("~") == Path("~")


def test_an_unknown_home_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.path.expanduser", lambda name: name)  # a user without a name
    with pytest.raises(ValueError, match="~/a: the home folder is not known; set HOME"):
        user_path("~/a")

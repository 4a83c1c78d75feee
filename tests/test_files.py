import pytest

from beit.files import PARTIAL_SUFFIX, replacing, write_bytes, write_text


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

import errno
import os

import numpy as np
import pytest
from PIL import Image

from beit.data.folders.lists import read_list
from beit.data.source import UnreadableImage, limited
from beit.data.sources import open_source


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three images of their own colour, in the working directory."""
    monkeypatch.chdir(tmp_path)
    names = ["a.png", "b é.png", "sub/c.png"]
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(names):
        pixels = np.full((4, 5, 3), 50 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return names


def names(source):
    return [source.name(index) for index in range(len(source))]


@pytest.mark.parametrize(
    ("before", "end"), [(b"", b"\n"), (b"\xef\xbb\xbf", b"\r\n"), (b"\0", b"\0"), (b" \n", b"\n\n")]
)
def test_a_list_keeps_order_and_duplicates(files, before, end):
    order = [files[i] for i in (2, 0, 1, 0)]
    source = read_list(before + end.join(name.encode() for name in order) + end, "the list")
    assert names(source) == order
    assert [int(source.image(index).max()) for index in range(4)] == [100, 0, 50, 0]
    assert source.image(0).shape == (3, 4, 5)
    assert source.labels is None
    assert source.class_names is None


def test_sources_open_an_image_several_and_a_list_in_a_file(files, tmp_path):
    assert names(open_source("a.png")) == ["a.png"]
    assert names(open_source(["sub/c.png", "a.png", "a.png"])) == ["sub/c.png", "a.png", "a.png"]
    (tmp_path / "sub" / "list[1].txt").write_text("sub/c.png\na.png\n")  # not relative to sub
    assert names(open_source("@sub/list[1].txt")) == ["sub/c.png", "a.png"]
    assert sorted(names(open_source([str(tmp_path)]))) == sorted(files)  # a list of one folder
    first, second = open_source("@sub/list[1].txt[:50%]"), open_source("@sub/list[1].txt[50%:]")
    assert sorted(names(first) + names(second)) == ["a.png", "sub/c.png"]


def test_a_limit_takes_some_in_their_order(files):
    source = read_list(b"a.png\n" * 3 + b"sub/c.png\n" * 3, "the list")
    assert names(limited(source, 4)) == sorted(names(limited(source, 4)))
    assert len(limited(source, 4)) == 4
    assert limited(source, None) is limited(source, 6) is source


def test_a_file_that_is_no_image_is_unreadable(files, tmp_path):
    (tmp_path / "d.txt").write_text("words")
    with pytest.raises(UnreadableImage, match=r"d\.txt: not an image"):
        read_list(b"a.png\nd.txt\n", "the list").image(1)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", ValueError, "the list: the list is empty; expected one image path"),
        (b"\n \n", ValueError, "the list is empty"),
        (b"a.png\n\nno.png\n", FileNotFoundError, r"the list, line 3: no\.png: no such file"),
        (b"x" * 300, FileNotFoundError, "the list, line 1: x{300}: no such file"),
        (b"a.png\0no.png\0", FileNotFoundError, r"the list, entry 2: no\.png: no such file"),
        (b"sub\n", ValueError, "line 1: sub is a folder; a list names image files"),
    ],
)
def test_bad_lists_are_refused(files, data, error, message):
    with pytest.raises(error, match=message):
        read_list(data, "the list")


def test_bad_files_are_refused(files):
    with pytest.raises(FileNotFoundError, match=r"^no\.png: no such file"):
        open_source(["a.png", "no.png"])
    with pytest.raises(ValueError, match="no data given"):
        open_source([])
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        open_source("@absent.txt")


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        *((errno.EMFILE, OSError), (errno.ENOMEM, OSError), (errno.ESTALE, OSError)),
        (errno.EIO, UnreadableImage),
    ],
)
def test_a_machine_that_is_short_of_something_is_not_the_fault_of_the_image(
    files, monkeypatch, number, expected
):
    def opened(*arguments, **options):
        raise OSError(number, os.strerror(number), "a.png")

    source = open_source("a.png")
    monkeypatch.setattr("builtins.open", opened)
    with pytest.raises(expected, match=os.strerror(number)):
        source.image(0)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=r"a\.png: not a regular file, but a pipe or device"):
        open_source(str(tmp_path)).image(0)

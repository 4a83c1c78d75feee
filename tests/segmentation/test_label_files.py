import errno
import os
import pickle
import zipfile

import pytest

from beit.data.source import UnreadableImage
from beit.segmentation.label_files import open_files, open_place, read_text

MEMBERS = {"set/a/1.png": b"one" * 50, "set/a/b/2.JPG": b"two", "set/c/3.png": b"three"}
OTHERS = ("__MACOSX/set/a/._1.png", "set/a/.hidden.png", "set/a/notes.txt")


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number, (name, data) in enumerate(MEMBERS.items()):
            method = zipfile.ZIP_DEFLATED if number % 2 == 0 else zipfile.ZIP_STORED
            file.writestr(name, data, compress_type=method)
        for name in OTHERS:
            file.writestr(name, b"text")
    return path


def test_a_zip_is_read_like_the_folder_in_it(archive, tmp_path):
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "out")
    for spec in (archive, tmp_path / "out"):
        root = open_place(str(spec)) / "set"
        files = open_files(root / "a")
        assert [files.name(i) for i in range(len(files))] == ["1.png", os.path.join("b", "2.JPG")]
        assert [files.read(i) for i in (1, 0, 1)] == [b"two", b"one" * 50, b"two"]
        assert files.where == str(spec / "set" / "a")
        assert read_text(root / "a" / "notes.txt") == "text"


def test_processes_and_copies_read_independently(archive):
    files = open_files(open_place(str(archive)) / "set")
    files.read(0)
    child = os.fork()
    if child == 0:
        good = all(files.read(i) == data for i, data in enumerate(MEMBERS.values()))
        os._exit(0 if good else 1)
    assert all(files.read(0) == b"one" * 50 for _ in range(100))
    assert os.waitpid(child, 0)[1] == 0
    copy = pickle.loads(pickle.dumps(files))
    assert copy.read(2) == b"three"


def test_damage_is_told(archive):
    data = bytearray(archive.read_bytes())
    data[data.index(b"two")] ^= 1
    archive.write_bytes(data)
    files = open_files(open_place(str(archive)) / "set")
    with pytest.raises(UnreadableImage, match=r"set\.zip/set/a/b/2\.JPG: damaged in the zip"):
        files.read(1)
    assert files.read(2) == b"three"
    archive.write_bytes(data[:40])
    with pytest.raises(UnreadableImage, match=r"set\.zip has changed since it was opened"):
        pickle.loads(pickle.dumps(files)).read(2)


def test_what_is_no_zip_or_empty_is_named(archive, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        open_place(str(tmp_path / "nowhere"))
    (tmp_path / "bad.zip").write_text("no zip")
    with pytest.raises(ValueError, match=r"bad\.zip: neither a folder nor a readable zip file"):
        open_place(str(tmp_path / "bad.zip"))
    with pytest.raises(ValueError, match=r"set\.zip/none: no images in this .*found 0 images"):
        open_files(open_place(str(archive)) / "none")


def test_too_many_open_files_are_not_the_fault_of_a_file(archive, tmp_path, monkeypatch):
    def opened(*arguments, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.png")

    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "out")
    sources = [open_files(open_place(str(place))) for place in (archive, tmp_path / "out")]
    monkeypatch.setattr("builtins.open", opened)
    for files in sources:
        with pytest.raises(OSError, match="Too many open files"):
            files.read(0)

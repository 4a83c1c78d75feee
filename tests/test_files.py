import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

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


def plain(file):
    file.write_text("a" * 99_999)


def with_numpy(file):
    with file.open("wb") as opened:
        np.save(opened, np.zeros(99_999))


def with_torch(file):
    torch.save({"weight": torch.zeros(99_999)}, file)


def with_words_alone(file):
    raise RuntimeError("I/O error: No space left on device (os error 28)")  # as safetensors does


@pytest.mark.skipif(sys.platform != "linux", reason="a device that is always full")
@pytest.mark.parametrize("write", [plain, with_numpy, with_torch, with_words_alone])
def test_a_full_disk_is_an_error_with_the_file_whatever_library_writes(tmp_path, write):
    path = tmp_path / "step-000000002.pt"
    write_text(path, "old")
    with (
        pytest.raises(OSError, match="no space left on the disk") as caught,
        replacing(path) as file,
    ):
        file.symlink_to("/dev/full")
        write(file)
    assert (caught.value.errno, caught.value.filename) == (28, str(path))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_other_errors_stay_as_they_are(tmp_path):
    for error in (MemoryError("no"), RuntimeError("shape"), OSError(13, "Permission denied")):
        with pytest.raises(type(error)) as caught, replacing(tmp_path / "a"):
            raise error
        assert caught.value is error
    assert caught.value.filename == str(tmp_path / "a")  # the last one had none


def opened_with_torch(file):
    with file.open("wb") as opened:
        torch.save({"weight": torch.zeros(99_999)}, opened)


def with_safetensors(file):
    save_file({"weight": torch.zeros(99_999)}, file)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("write", [opened_with_torch, with_safetensors])
def test_an_error_behind_that_of_a_library_is_named(tmp_path, write):
    """A file may not grow past 50 kB; torch says `unexpected pos`, safetensors `os error 27`."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            with replacing(tmp_path / "a") as file:
                write(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []

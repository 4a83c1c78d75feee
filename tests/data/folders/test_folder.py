"""Folders of images: labels, class folders, splits, and what the log says."""

import logging
import os
import unicodedata

import pytest
from PIL import Image

from beit.data.folders.folder import class_folders, open_folder
from beit.data.folders.lists import read_list
from beit.data.sources import open_source


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level(logging.INFO, "beit")


def make(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 3), (9, 8, 7)).save(root / path)
    return root


def names(source):
    return [source.name(index) for index in range(len(source))]


def test_the_classes_of_a_split_are_its_folders(tmp_path, caplog):
    fruit = [f"{split}/{name}/1.png" for split in ("train", "val") for name in ("apple", "lime")]
    make(tmp_path, *fruit, "train/apple/2.png")
    (tmp_path / "val" / "plum").mkdir()
    train, val = (open_source(str(tmp_path), split=split) for split in ("train", "test"))
    assert names(train) == ["train/apple/1.png", "train/apple/2.png", "train/lime/1.png"]
    assert train.labels.tolist() == [0, 0, 1]
    assert train.class_names == val.class_names == ["apple", "lime"]
    assert names(val) == ["val/apple/1.png", "val/lime/1.png"]
    assert caplog.messages[0] == (
        f"{tmp_path}: 5 images; has the splits train, val: takes train (3 images); "
        "classes: 2 (apple, lime)"
    )
    both = open_source(str(tmp_path))
    assert len(both) == 5
    assert both.labels is None
    assert class_folders(tmp_path) == []
    assert class_folders(tmp_path, "train") == ["apple", "lime"]
    assert class_folders(tmp_path, "test") == ["apple", "lime", "plum"]


def test_a_stray_image_is_named_and_nothing_is_lost(tmp_path, caplog):
    make(tmp_path, "apple/1.png", "lime/1.png", "cover.jpg")
    source = open_source(str(tmp_path), split="train")
    assert len(source) == 3
    assert source.labels is None
    assert "cover.jpg lies outside of the class folders" in source.why_unlabelled
    assert "no labels: cover.jpg lies outside" in caplog.messages[0]


@pytest.mark.parametrize("system", ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "LOST+FOUND"])
def test_folders_of_the_system_are_no_classes(tmp_path, caplog, system):
    make(tmp_path, "apple/1.png", "lime/1.png", f"{system}/apple/1.png", f"lime/{system}/2.png")
    (tmp_path / "lost+found").mkdir(exist_ok=True)
    (tmp_path / "plum").mkdir()
    (tmp_path / "fig").mkdir()
    (tmp_path / "fig" / "a.txt").touch()
    source = open_folder(tmp_path)
    assert source.class_names == ["apple", "lime"]
    assert names(source) == ["apple/1.png", "lime/1.png"]
    assert class_folders(tmp_path) == ["apple", "fig", "lime", "plum"]
    assert f"skipped 2 images in {system}" in caplog.messages[0]


def test_two_forms_of_one_name_are_one_class(tmp_path, caplog):
    composed, decomposed = (unicodedata.normalize(form, "pêche") for form in ("NFC", "NFD"))
    make(tmp_path, f"{composed}/1.png", f"{decomposed}/1.png", "a/1.png")
    source = open_folder(tmp_path)
    assert source.class_names == class_folders(tmp_path) == ["a", composed]
    assert source.labels.tolist() == [0, 1, 1]
    assert {*names(source)} == {f"{composed}/1.png", f"{decomposed}/1.png", "a/1.png"}
    assert "differ only in their Unicode form are one class" in caplog.messages[0]


def test_two_links_to_one_folder_are_two_classes(tmp_path):
    make(tmp_path, "store/1.png", "store/2.png")
    (tmp_path / "fruit").mkdir()
    for name in ("apple", "cherry"):
        (tmp_path / "fruit" / name).symlink_to(tmp_path / "store")
    source = open_folder(tmp_path / "fruit")
    assert source.class_names == ["apple", "cherry"]
    assert source.labels.tolist() == [0, 0, 1, 1]


def test_an_image_added_below_a_folder_whose_time_does_not_change_is_seen(tmp_path):
    make(tmp_path, "a/1.png")
    os.utime(tmp_path / "a", (1e9, 1e9))
    assert len(open_folder(tmp_path)) == 1
    make(tmp_path, "a/2.png")
    os.utime(tmp_path / "a", (1e9, 1e9))
    assert len(open_folder(tmp_path)) == 2


def test_opening_leaves_nothing_behind_without_a_home(tmp_path, monkeypatch):
    make(tmp_path, "photos/1.png")
    monkeypatch.chdir(tmp_path)
    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert len(open_source("photos")) == 1
    assert os.listdir(tmp_path) == ["photos"]


def test_names_that_begin_with_a_tilde_are_read(tmp_path, monkeypatch):
    make(tmp_path, "~holiday/1.png", "~/2.png", "~a.png")
    monkeypatch.chdir(tmp_path)
    for spec in ("~holiday", "~", "~a.png", ["~a.png", "~holiday/1.png"]):
        assert open_source(spec).image(0).shape == (3, 3, 5)
    (tmp_path / "~list.txt").write_text("~a.png\n~holiday/1.png\n")
    assert open_source("@~list.txt").image(1).shape == (3, 3, 5)
    with pytest.raises(FileNotFoundError, match="~nobody: no such file or folder"):
        open_source("~nobody")


def test_files_whose_names_differ_by_case_are_two(tmp_path):
    make(tmp_path, "a.png", "A.png", "b.PNG")
    assert names(open_folder(tmp_path)) == ["A.png", "a.png", "b.PNG"]


def test_one_source_opened_twice_is_said_once(tmp_path, caplog):
    make(tmp_path, "a.png")
    open_folder(tmp_path)
    open_folder(tmp_path)
    assert caplog.messages == [f"{tmp_path}: 1 images"]


def test_a_list_says_what_it_names(tmp_path, caplog):
    make(tmp_path, "a.png", "b.png")
    text = f"{tmp_path}/a.png\n\n{tmp_path}/b.png\n{tmp_path}/a.png\n"
    read_list(text.encode(), f"@{tmp_path}")
    assert caplog.messages == [f"@{tmp_path}: 3 images, 1 of them repeated, 1 blank line"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lists_in_other_encodings_are_read(tmp_path, monkeypatch, encoding, ending):
    make(tmp_path, "photos/été.png", "photos/001.png")
    monkeypatch.chdir(tmp_path)
    listed = ["photos/été.png", "photos/001.png"]
    data = (ending.join(listed) + ending).encode(encoding)
    assert names(read_list(data, "the list")) == listed


@pytest.mark.parametrize("ends", ["a.png", "ab.png"])
def test_short_names_between_zero_bytes_are_not_utf_16(tmp_path, monkeypatch, ends):
    make(tmp_path, ends)
    monkeypatch.chdir(tmp_path)
    assert names(read_list(f"{ends}\0".encode() * 4, "the list")) == [ends] * 4

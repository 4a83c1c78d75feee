"""Files below a folder: each is counted once, as an image, by its ending, or as hidden."""

import os
import random
import subprocess

import pytest

from beit.data.folders.listing import is_system, list_folder
from beit.data.pixels.decoding import extensions

IMAGES = ("a.jpg", "b.PNG", "c é.tiff", "new\nline.png")
OTHERS = ("a.txt", "IMG_1.MOV", "b.cr2", "0001", "scan.0002", "x.parquet")
HIDDEN = (".DS_Store", "._a.jpg", ".hidden.jpg", "Thumbs.db", "desktop.ini")
FOLDERS = ("cat", "A", "@eaDir", ".thumbnails", "__MACOSX", "lost+found", "empty", "#Recycle")


def make(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


@pytest.mark.parametrize("seed", range(20))
def test_every_file_of_a_random_tree_is_taken_or_counted(tmp_path, seed):
    chance = random.Random(seed)

    def grow(folder, depth):
        folder.mkdir()
        for name in chance.sample(IMAGES + OTHERS + HIDDEN, chance.randrange(7)):
            (folder / name).touch()
        for name in chance.sample(FOLDERS, chance.randrange(4) if depth < 4 else 0):
            grow(folder / name, depth + 1)
        if chance.random() < 0.3:
            (folder / "back").symlink_to(tmp_path / "root", target_is_directory=True)

    grow(tmp_path / "root", 0)
    make(tmp_path / "root", "certain.jpg")
    files = [
        os.path.relpath(os.path.join(folder, name), tmp_path / "root")
        for folder, folders, names in os.walk(tmp_path / "root")
        for name in names
    ]
    listing = list_folder(tmp_path / "root")
    visible = [path for path in files if not any(map(is_system, path.split(os.sep)))]
    images = [path for path in files if os.path.splitext(path)[1].lower() in extensions()]
    shown = sorted(set(images) & set(visible))
    assert listing.images == shown
    assert listing.others.total() == len(visible) - len(shown)
    hidden = [path for path in images if not os.path.basename(path).startswith("._")]
    assert listing.hidden.total() == len(hidden) - len(shown)


def test_the_files_of_a_phone_and_a_network_disk_are_named(tmp_path):
    make(tmp_path, *(f"{number}.jpg" for number in range(5)), "0.MOV", "1.CR2", "2.cr2", "a.txt")
    make(tmp_path, "0001", "scan.0002", "@eaDir/0.jpg/thumb.jpg", "@eaDir/0.jpg/x.db", "._0.jpg")
    make(tmp_path, "sub/.thumbnails/0.jpg", ".hidden.png", "Thumbs.db")
    said = str(list_folder(tmp_path))
    assert said.startswith("11 files, 5 images; not read: ")
    for part in ("1 .mov (videos are not read)", "2 .cr2 (raw camera files", "2 (none)", "1 .txt"):
        assert part in said
    skipped = said.partition("; skipped ")[2]
    assert skipped.startswith("3 images in ")
    assert set(skipped.removeprefix("3 images in ").split(", ")) == {
        "@eaDir",
        ".thumbnails",
        ".hidden.png",
    }


def test_a_plugin_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("beit.data.folders.listing.extensions", lambda: frozenset({".jpg"}))
    make(tmp_path, "a.jpg", "b.HEIC", "c.heic")
    assert str(list_folder(tmp_path)) == (
        "3 files, 1 images; not read: 2 .heic (install pillow-heif)"
    )


def test_a_tidy_folder_says_the_number_of_its_images(tmp_path):
    make(tmp_path, "a.jpg", "labels.csv", "readme.md", "a.json", "Thumbs.db", ".git/config")
    assert str(list_folder(tmp_path)) == "1 images"


def test_many_endings_are_summed_up(tmp_path):
    make(tmp_path, "a.jpg", *(f"a.e{number}" for number in range(11)))
    assert str(list_folder(tmp_path)).endswith(" and 3 more")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), r"p: no images .*; found 0 images; expected files that end in \.jpg"),
        (
            ("a.txt", "b.txt", "c.mp4"),
            r"3 files, 0 images; not read: 2 \.txt, 1 \.mp4 \(vid",
        ),
        (("data/train-0.parquet",), r"as in '.*p/data/\*\.parquet'"),
        (("saved/data-0.arrow", "saved/state.json"), r"the folder of the Arrow files, .*p/saved$"),
        (("fruit.zip",), r"name the archive itself, or unpack it, in .*p$"),
        (("@eaDir/a.jpg", "@eaDir/b.jpg"), r"found 0 images; skipped 2 images in @eaDir;"),
    ],
)
def test_a_folder_without_images_says_what_is_there(tmp_path, paths, message):
    (tmp_path / "p").mkdir()
    make(tmp_path / "p", *paths)
    with pytest.raises(ValueError, match=message):
        list_folder(tmp_path / "p")


def test_two_links_to_one_folder_are_both_followed_and_circles_end(tmp_path):
    make(tmp_path, "store/a.png", "store/b.png", "p/c/d.png")
    for name in ("apple", "cherry"):
        (tmp_path / "p" / name).symlink_to(tmp_path / "store")
    (tmp_path / "p" / "c" / "up").symlink_to(tmp_path / "p")
    (tmp_path / "p" / "above").symlink_to(tmp_path)  # the root is in it
    (tmp_path / "store" / "itself").symlink_to(tmp_path / "store")
    (tmp_path / "p" / "loop").symlink_to(tmp_path / "p" / "loop")  # leads nowhere
    listing = list_folder(tmp_path / "p")
    expected = ["apple/a.png", "apple/b.png", "c/d.png", "cherry/a.png", "cherry/b.png"]
    assert listing.images == expected
    assert listing.others == {"(none)": 1}


def test_two_folders_with_links_to_each_other_end(tmp_path):
    make(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    assert list_folder(tmp_path).images == ["a/1.png", "a/b/2.png", "b/2.png", "b/a/1.png"]


def test_snapshots_of_a_disk_are_not_entered(tmp_path):
    make(tmp_path, "a.png", "#snapshot/today/a.png", ".snapshot/b.png")
    listing = list_folder(tmp_path)
    assert listing.images == ["a.png"]
    assert not listing.hidden


def test_a_closed_folder_is_an_error_but_not_one_of_the_system(tmp_path, monkeypatch):
    scandir = os.scandir

    def closed(path):
        if os.path.basename(path) in ("lost+found", "mine"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    make(tmp_path, "a.png", "lost+found/b.png")
    assert list_folder(tmp_path).images == ["a.png"]
    make(tmp_path, "mine/c.png")
    with pytest.raises(PermissionError, match="mine"):
        list_folder(tmp_path)


def test_a_very_deep_folder_is_read(tmp_path):
    deep = str(tmp_path)
    for _ in range(1050):  # more than Python's limit of calls; os.makedirs recurses
        deep += "/d"
        os.mkdir(deep)
    make(tmp_path, f"{deep}/a.png")
    assert list_folder(tmp_path).images == [f"{deep}/a.png".removeprefix(f"{tmp_path}/")]
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # before pytest's own recursion

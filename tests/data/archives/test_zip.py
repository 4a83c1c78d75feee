import os
import zipfile

import pytest
import torch
from PIL import Image

from beit.data.source import file_of
from beit.data.sources import open_source


@pytest.fixture
def fruit(tmp_path):
    for level, name in enumerate(("apple/0.png", "apple/a/1.png", "lime/2.png")):
        path = tmp_path / "fruit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (level,) * 3).save(path)
    return tmp_path / "fruit"


def zipped(path, root, folder=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*"), reverse=True):
            archive.write(file, os.path.join(folder, file.relative_to(root)))
        archive.writestr("__MACOSX/fruit/._0.png", b"x")
    return path


def listed(source):
    return [(source.name(i), int(source.image(i)[0, 0, 0])) for i in range(len(source))]


@pytest.mark.parametrize("folder", ["", "fruit"])
def test_a_zip_is_the_folder_that_it_would_be_unpacked_to(fruit, tmp_path, folder):
    source, same = (
        open_source(str(zipped(tmp_path / "fruit.zip", fruit, folder))),
        open_source(str(fruit)),
    )
    assert listed(source) == listed(same)
    assert source.class_names == ["apple", "lime"] and torch.equal(source.labels, same.labels)
    assert file_of(source, 1) == tmp_path / "fruit.zip"
    for part in ("[:50%]", "[50%:]"):  # the same images, as names are the same
        assert listed(open_source(f"{fruit}{part}")) == listed(
            open_source(f"{tmp_path}/fruit.zip{part}")
        )


def test_splits_inside_are_chosen(fruit, tmp_path):
    os.renames(fruit, tmp_path / "sets" / "train")
    (tmp_path / "sets" / "val").mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "sets" / "val" / "9.png")
    path = str(zipped(tmp_path / "x.zip", tmp_path / "sets"))
    assert len(open_source(path, split="train")) == 3
    assert [name for name, _ in listed(open_source(path, split="test"))] == ["val/9.png"]
    assert open_source(path).labels is None and len(open_source(path)) == 4


def test_what_is_no_zip_or_cannot_have_the_option_is_named(fruit, tmp_path):
    path = zipped(tmp_path / "x.zip", fruit)
    with pytest.raises(ValueError, match=r"x\.zip: no columns, so label= names nothing"):
        open_source(f"{path}?label=a")
    zipped(tmp_path / "y.zip", fruit)
    with pytest.raises(
        ValueError, match=r"2 files that end in \.zip; expected tar shards.* one zip"
    ):
        open_source(f"{tmp_path}/*.zip")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"x\.zip: not a readable zip file"):
        open_source(str(path))

import json
import logging

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from beit.data.sources import open_source
from beit.data.tabular.row_files import nested_row_files, row_files


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def relative(files, root):
    return [file.relative_to(root).as_posix() for file in files]


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        ("0.parquet 1.parquet", None, "0.parquet 1.parquet"),
        ("a.parquet b.parquet metadata.parquet", "test", "a.parquet b.parquet"),
        ("train-0.parquet train-1.parquet", "train", "train-0.parquet train-1.parquet"),
        ("test-0.parquet test-1.parquet", "train", "test-0.parquet test-1.parquet"),
        ("README.md data/train-00000-of-00001.parquet", None, "data/train-00000-of-00001.parquet"),
        ("train_0.parquet train_1.parquet test_0.parquet", "train",
         "train_0.parquet train_1.parquet"),
        ("data/train-0.parquet data/validation-0.parquet data/test-0.parquet", "test",
         "data/validation-0.parquet"),
        ("mnist-train.arrow mnist-test.arrow cache-1f.arrow", "test", "mnist-test.arrow"),
        ("x.png", None, ""),
    ],
)  # fmt: skip
def test_files_of_one_split_are_found(names, split, chosen, tmp_path, caplog):
    """parquet_in_a_subfolder, among others"""
    caplog.set_level(logging.INFO, "beit")
    touch(tmp_path, *names.split())
    assert relative(row_files(tmp_path, split), tmp_path) == chosen.split()
    several = len(names.split()) > len(chosen.split()) and split and "metadata" not in names
    assert bool(caplog.messages) == bool(several)


def test_several_splits_are_refused_without_a_purpose(tmp_path):
    touch(tmp_path, "data/train-0.parquet", "data/test-0.parquet")
    with pytest.raises(ValueError, match=r"several sets \(test, train\); name .*data/test\*\.parq"):
        row_files(tmp_path, None)
    touch(tmp_path / "one", "train-0.parquet")
    with pytest.raises(ValueError, match="has the splits train, none of them for validation"):
        row_files(tmp_path / "one", "test")
    touch(tmp_path / "other", "train.parquet", "extra.parquet")
    with pytest.raises(ValueError, match=r"has the splits others, train, none of them for valid"):
        row_files(tmp_path / "other", "test")


def test_folders_of_configurations_and_splits(tmp_path):
    touch(tmp_path, "default/train/0000.parquet", "default/test/0000.parquet")
    found = nested_row_files(tmp_path, "test")
    assert relative(found, tmp_path) == ["default/test/0000.parquet"]
    touch(tmp_path, "small/train-0.parquet")
    with pytest.raises(ValueError, match=r"several sets, default, small; give one .*default'"):
        nested_row_files(tmp_path, "train")


def test_a_folder_of_converted_parquet_files_is_opened(tmp_path):
    (tmp_path / "default" / "train").mkdir(parents=True)
    table = pa.table({"image": [b"1", b"2"], "label": ["a", "b"]})
    parquet.write_table(table, tmp_path / "default" / "train" / "0000.parquet")
    assert open_source(str(tmp_path)).labels.tolist() == [0, 1]


def saved(folder, values, features=None, **state):
    """Write what save_to_disk of `datasets` does."""
    folder.mkdir(parents=True)
    names = [f"data-0000{number}-of-00002.arrow" for number in range(2)]
    for name, part in zip(names, (values[:1], values[1:]), strict=True):
        table = pa.table({"image": [b"x"] * len(part), "label": part})
        with pa.OSFile(str(folder / name), "wb") as sink:
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
    files = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None} | state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {}}))
    (folder / "cache-12.arrow").touch()


def test_folders_of_save_to_disk(tmp_path):
    """folder_of_save_to_disk"""
    features = {"image": {"_type": "Image"}, "label": {"names": ["b", "a"], "_type": "ClassLabel"}}
    saved(tmp_path / "set" / "train", [1, 0, 1], features)
    source = open_source(str(tmp_path / "set" / "train"))
    assert (source.labels.tolist(), source.class_names) == ([1, 0, 1], ["b", "a"])
    assert source.name(2) == "data-00001-of-00002.arrow[1]"
    saved(tmp_path / "set" / "test", [0, 1], features)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(open_source(str(tmp_path / "set"), split="train")) == 3
    assert len(open_source(str(tmp_path / "set"), split="test")) == 2
    with pytest.raises(ValueError, match=r"several sets \(test, train\); name one .*set/train'"):
        open_source(str(tmp_path / "set"))


def test_a_selection_of_saved_rows_is_refused(tmp_path):
    saved(tmp_path / "a", [1, 0], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(ValueError, match=r"holds a selection of its rows.*flatten_indices\(\)"):
        open_source(str(tmp_path / "a"))
    (tmp_path / "a" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"state\.json: not readable as JSON"):
        open_source(str(tmp_path / "a"))


@pytest.mark.parametrize("place", ["x.parquet", "data/X.PARQUET"])
def test_a_parquet_file_beside_images(place, tmp_path, caplog):
    caplog.set_level(logging.INFO, "beit")
    for number, name in enumerate(("cats/0.png", "dogs/1.png", "dogs/2.png")):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (number, 0, 0)).save(tmp_path / "set" / name)
    path = tmp_path / "set" / place
    path.parent.mkdir(exist_ok=True)
    # Of names of files: a table beside the images.
    parquet.write_table(pa.table({"file": ["0.png", "1.png"], "label": ["a", "b"]}), path)
    source = open_source(str(tmp_path / "set"))
    assert (source.labels.tolist(), source.class_names) == ([0, 1, 1], ["cats", "dogs"])
    assert "labels from the class folders, not from" in caplog.messages[-1]
    source = open_source(f"{tmp_path / 'set'}?label=label")
    assert (source.labels.tolist(), source.class_names) == ([0, 1, -1], ["a", "b"])
    # Of something else: not read, with a word.
    parquet.write_table(pa.table({"name": ["Ann"], "label": ["a"]}), path)
    assert open_source(str(tmp_path / "set")).class_names == ["cats", "dogs"]
    assert any("names none of the images; its first is 'Ann'" in m for m in caplog.messages)
    parquet.write_table(pa.table({"vector": [0.5, 0.25]}), path)
    assert open_source(str(tmp_path / "set")).class_names == ["cats", "dogs"]
    assert any(": not read: " in m and "no column of images" in m for m in caplog.messages)
    # Of images: taken, with a word.
    parquet.write_table(pa.table({"image": [b"x"], "label": ["a"]}), path)
    assert open_source(str(tmp_path / "set")).class_names == ["a"]
    assert any("takes the rows of" in m and "not the 3 image files" in m for m in caplog.messages)


def test_splits_that_nobody_named(tmp_path):
    for splits in ("[]", "[1]", '"train"'):
        (tmp_path / "dataset_dict.json").write_text(f'{{"splits": {splits}}}')
        with pytest.raises(ValueError, match=r"dataset_dict\.json: 'splits' is .*; expected a"):
            open_source(str(tmp_path), split="train")


def test_endings_in_capitals_and_folders_with_brackets(tmp_path):
    (tmp_path / "[p]").mkdir()
    path = tmp_path / "[p]" / "A.PARQUET"
    parquet.write_table(pa.table({"image": [b"x", b"y"]}), path)
    for name in (path, path.parent, path.parent / "*.PARQUET", path.parent / "A*"):
        assert len(open_source(str(name))) == 2

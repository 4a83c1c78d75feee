import io
import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from beit.data.cached import CachedSource
from beit.data.source import PartSource, UnreadableImage
from beit.data.sources import open_images, open_source, open_test_split
from beit.data.tabular.rows import RowSource


def save(path, value, size=(5, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (value, 2, 3)).save(path)


@pytest.fixture
def classes(tmp_path):
    root = tmp_path / "pictures"
    save(root / "dog" / "a.PNG", 10)
    save(root / "cat" / "deep" / "b.png", 20)
    save(root / "cat" / "c.jpeg", 30)
    save(root / "cat" / ".hidden.png", 40)
    (root / "dog" / "notes.txt").write_text("not an image")
    return root


def png(value, size=(5, 7)):
    buffer = io.BytesIO()
    Image.new("RGB", size[::-1], (value, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, values, labels=None, rows=2, column="image", names=None):
    images = [{"bytes": None if v is None else png(v), "path": f"{v}.png"} for v in values]
    table = pyarrow.table({column: images})
    if labels is not None:
        table = table.append_column("label", pyarrow.array(labels, pyarrow.int64()))
    if names:
        features = {"info": {"features": {"label": {"names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, path, row_group_size=rows)
    return path


def first_pixels(source):
    return [int(source.image(index)[0, 0, 0]) for index in range(len(source))]


def test_class_folders_give_labels(classes):
    source = open_source(str(classes))
    names = [source.name(index) for index in range(len(source))]
    assert names == [os.path.join("cat", "c.jpeg"), os.path.join("cat", "deep", "b.png"),
                     os.path.join("dog", "a.PNG")]  # fmt: skip
    assert source.labels.tolist() == [0, 0, 1]
    assert source.class_names == ["cat", "dog"]
    assert source.image(2).shape == (3, 5, 7)
    assert source.image(2)[:, 0, 0].tolist() == [10, 2, 3]


def test_an_image_beside_the_class_folders_means_no_labels(classes):
    save(classes / "z.png", 50)
    source = open_source(str(classes))
    assert len(source) == 4
    assert source.labels is None
    assert source.class_names is None


def test_links_in_a_circle_end(classes):
    (classes / "dog" / "back").symlink_to(classes, target_is_directory=True)
    assert len(open_source(str(classes))) == 3


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such .* expected a folder of images"):
        open_source(str(tmp_path / "nowhere"))
    (tmp_path / "Photos 2019" / "may").mkdir(parents=True)
    for wrong in ("photos 2019", "Photo 2019"):  # the rest of the path exists below it
        with pytest.raises(FileNotFoundError, match=r"folder; did you mean .*/Photos 2019/may\?"):
            open_source(str(tmp_path / wrong / "may"))
        with pytest.raises(FileNotFoundError, match="no such file or folder; expected"):
            open_source(str(tmp_path / wrong / "june"))
    (tmp_path / "shot.sh").touch()  # too far from "Photos"
    with pytest.raises(FileNotFoundError, match="no such file or folder; expected"):
        open_source(str(tmp_path / "Photos"))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"empty: no images .* not read: 1 .txt; expected"):
        open_source(str(empty))
    with pytest.raises(ValueError, match=r"neither a folder nor a table of images"):
        open_source(str(empty / "notes.txt"))
    with pytest.raises(ValueError, match="no data given"):
        open_source("")
    with pytest.raises(ValueError, match="unknown kind of data; expected"):
        open_source("nowhere://bucket")


def test_unreadable_files_are_named(classes):
    (classes / "dog" / "a.PNG").write_text("a text file named .png")
    (classes / "cat" / "c.jpeg").unlink()
    (classes / "cat" / "c.jpeg").symlink_to(classes / "gone.jpeg")
    source = open_source(str(classes))
    with pytest.raises(UnreadableImage, match=r"dog.a\.PNG: not an image"):
        source.image(2)
    with pytest.raises(UnreadableImage, match=r"cat.c\.jpeg: No such file"):
        source.image(0)


def test_parquet_rows_in_any_order_over_files(tmp_path):
    write_parquet(
        tmp_path / "train-0.parquet", [0, 1, 2, 3, 4], [5, 6, 7, 8, 9], names=list("abcdefghij")
    )
    write_parquet(tmp_path / "train-1.parquet", [5, 6], [1, None])
    source = open_source(str(tmp_path))
    assert len(source) == 7
    assert first_pixels(source) == list(range(7))
    assert [int(source.image(i)[0, 0, 0]) for i in (6, 0, 4, 1)] == [6, 0, 4, 1]
    assert source.labels.tolist() == [5, 6, 7, 8, 9, 1, -1]
    assert source.class_names == list("abcdefghij")
    assert source.name(6) == "train-1.parquet[1]"
    assert len(open_source(str(tmp_path / "train-*.parquet"))) == 7
    assert len(open_source(str(tmp_path / "train-1.parquet"))) == 2


def test_parquet_holds_few_row_groups(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", list(range(20)))
    source = RowSource([path], cached_bytes=3 * 2 * len(png(0)))
    assert first_pixels(source) == list(range(20))
    assert 1 <= len(source._cache) <= 3
    assert source.labels is None


def test_parquet_faults_are_named(tmp_path):
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"broken\.parquet: not a readable Parquet file"):
        open_source(str(broken))
    other = tmp_path / "other.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"]}), other)
    with pytest.raises(ValueError, match=r"other\.parquet: no column of images .*; it has text"):
        open_source(str(other))
    source = RowSource([write_parquet(tmp_path / "hole.parquet", [1, None, 3])])
    with pytest.raises(UnreadableImage, match=r"hole\.parquet\[1\], None\.png: No such file"):
        source.image(1)
    with pytest.raises(FileNotFoundError, match=r"none-\*\.parquet: no such file matches$"):
        open_source(str(tmp_path / "none-*.parquet"))


def test_a_pattern_names_image_files_with_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (2, 1, 3):
        values = np.full((4, 6), number * 819, np.uint16)  # fifths of 4095
        Image.fromarray(values).save(f"cell_{number}.tif")
    (tmp_path / "labels.csv").write_text("file,label\n")
    asked = "?range=0:4095"
    for spec, names, levels in (
        (f"cell_*.tif{asked}", ["cell_1.tif", "cell_2.tif", "cell_3.tif"], [51, 102, 153]),
        (f"cell_?.tif{asked}", ["cell_1.tif", "cell_2.tif", "cell_3.tif"], [51, 102, 153]),
        (f"cell_{{3,1}}.tif{asked}", ["cell_3.tif", "cell_1.tif"], [153, 51]),
        ([f"cell_3.tif{asked}", f"*_[12].tif{asked}"], None, [153, 51, 102]),
    ):
        source = open_source(spec)
        assert first_pixels(source) == levels
        assert names is None or [source.name(each) for each in range(len(source))] == names
    for spec in ("cell_9*.tif", ["cell_1.tif", "cell_9*.tif"], "cell_{1,9}.tif"):
        with pytest.raises(FileNotFoundError, match=r"^cell_9.*no such file"):
            open_source(spec)


def test_a_missing_file_is_the_only_cause(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^new\.jpg: no such file or folder$"):
        open_source("new.jpg")
    save(tmp_path / "newt.jpg", 1)
    with pytest.raises(FileNotFoundError, match=r"folder; did you mean newt\.jpg\?$"):
        open_source("new.jpg")
    with pytest.raises(FileNotFoundError, match=r"^photos: no such .*expected a folder of images"):
        open_source("photos")


def test_splits_with_images_of_the_same_names_and_number_are_two(tmp_path):
    for place, split in enumerate(("train", "test")):
        (tmp_path / split).mkdir()
        write_parquet(tmp_path / split / "0.parquet", [place, place, place])
    train = open_source(str(tmp_path), split="train")
    test = open_test_split(str(tmp_path), train)
    assert (len(train), train.name(0)) == (len(test), test.name(0)) == (3, "0.parquet[0]")
    assert int(test.image(0)[0, 0, 0]) == 1
    assert open_test_split(f"{tmp_path}/train", train) is None


def test_a_folder_of_several_parquet_sets_asks_which(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1])
    write_parquet(tmp_path / "test.parquet", [1])
    with pytest.raises(ValueError, match=r"several sets \(test, train\); name one"):
        open_source(str(tmp_path))


def test_limit_is_a_fixed_nested_subset():
    whole = open_source("shapes://40?size=8")
    ten, twenty = (open_source("shapes://40?size=8", limit=limit) for limit in (10, 20))
    names = [{source.name(i) for i in range(len(source))} for source in (ten, twenty, whole)]
    assert [len(part) for part in names] == [10, 20, 40]
    assert names[0] < names[1] < names[2]
    index = int(ten.name(3).removeprefix("shapes://").split("?")[0])
    assert torch.equal(ten.image(3), whole.image(index))
    assert int(ten.labels[3]) == int(whole.labels[index])
    assert len(open_source("shapes://40?size=8", limit=99)) == 40
    with pytest.raises(ValueError, match="limit must be at least 1 image, got 0"):
        open_source("shapes://40?size=8", limit=0)


def test_cache_holds_equal_sizes_in_one_block(caplog):
    caplog.set_level(logging.INFO, "beit")
    plain = open_source("shapes://9?size=8x12", limit=7)
    source = open_source("shapes://9?size=8x12", limit=7, cache_gigabytes=1e-5)
    assert isinstance(plain, PartSource)
    assert isinstance(source, CachedSource)
    assert caplog.messages == ["decoding 7 images into memory"]  # which may take minutes
    assert source._images.shape == (7, 3, 8, 12)
    assert all(torch.equal(source.image(i), plain.image(i)) for i in range(7))
    assert source.labels.tolist() == plain.labels.tolist()
    assert source.name(4) == plain.name(4)


def test_cache_takes_no_more_than_its_budget():
    assert not isinstance(open_source("shapes://9?size=8", cache_gigabytes=1e-6), CachedSource)
    with pytest.raises(ValueError, match="cache_gigabytes must not be negative"):
        open_source("shapes://9?size=8", cache_gigabytes=-1)


def test_cache_of_several_sizes_and_an_unreadable_image(tmp_path, caplog):
    for number, size in enumerate([(5, 7), (5, 7), (6, 9), (5, 7)]):
        save(tmp_path / "p" / f"{number}.png", number, size)
    (tmp_path / "p" / "4.png").write_bytes(b"")
    source = open_source(str(tmp_path / "p"), cache_gigabytes=0.001)
    assert isinstance(source, CachedSource)
    assert "1 of the 5 images cannot be read, as 4.png: not an image (empty)" in caplog.text
    assert [tuple(source.image(i).shape[1:]) for i in range(4)] == [(5, 7), (5, 7), (6, 9), (5, 7)]
    assert [int(source.image(i)[0, 0, 0]) for i in range(4)] == [0, 1, 2, 3]
    with pytest.raises(UnreadableImage, match=r"4\.png: not an image \(empty\)"):
        source.image(4)


def test_folder_names_survive_odd_bytes(tmp_path):
    save(tmp_path / "p" / "naïve ☃.png", 1)
    assert open_source(str(tmp_path / "p")).name(0) == "naïve ☃.png"
    assert np.all(first_pixels(open_source(str(tmp_path / "p"))) == [1])


def test_the_parts_of_a_source_are_disjoint_and_make_up_the_whole() -> None:
    train, test = open_source("shapes://50?size=8[:80%]"), open_source("shapes://50?size=8[80%:]")
    names = [[part.name(i) for i in range(len(part))] for part in (train, test)]
    assert [len(part) for part in names] == [40, 10]
    whole = open_source("shapes://50?size=8")
    assert {*names[0], *names[1]} == {whole.name(i) for i in range(50)}


def test_a_removed_image_leaves_the_others_in_their_part(tmp_path: Path) -> None:
    for value in range(40):
        save(tmp_path / "all" / f"{value:02}.png", value)
        save(tmp_path / "moved" / f"{value:02}.png", value)

    def names(spec: str) -> set[str]:
        source = open_source(spec)
        return {source.name(index) for index in range(len(source))}

    before = names(f"{tmp_path}/all[:90%]"), names(f"{tmp_path}/all[90%:]")
    assert [len(part) for part in before] == [36, 4]
    assert names(f"{tmp_path}/moved[90%:]") == before[1]
    for gone in (min(before[0]), min(before[1])):
        (tmp_path / "all" / gone).unlink()
        after = names(f"{tmp_path}/all[:90%]"), names(f"{tmp_path}/all[90%:]")
        assert len((before[0] & after[1]) | (before[1] & after[0])) <= 1
        save(tmp_path / "all" / gone, 0)


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"none of the 50 images is in this part"):
        open_source("shapes://50?size=8[40%:40%]")


# ── standard input ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def image_paths(tmp_path: Path) -> list[str]:
    names = [str(tmp_path / f"{number}.png") for number in range(3)]
    for name in names:
        Image.fromarray(np.zeros((4, 5, 3), dtype=np.uint8)).save(name)
    return names


@pytest.mark.parametrize("data", ["-", ["-"]])
def test_a_dash_reads_a_list_from_standard_input(
    data: str | list[str], image_paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [image_paths[2], image_paths[0], image_paths[2]]
    for limit, count in ((None, 3), (2, 2)):
        stdin = SimpleNamespace(buffer=io.BytesIO("\n".join(names).encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        source = open_images(data, limit)
        assert len(source) == count
        if limit is None:
            assert [source.name(index) for index in range(count)] == names


def test_other_data_are_opened_as_everywhere(image_paths: list[str]) -> None:
    assert open_images(image_paths, None).name(1) == image_paths[1]
    assert len(open_images("shapes://9?size=24", 4)) == 4


def test_files_are_read_by_the_options_after_each_of_them(image_paths: list[str]) -> None:
    for path, level in zip(image_paths, (0, 50, 100), strict=True):
        Image.fromarray(np.full((4, 5, 3), level, dtype=np.uint8)).save(path)
    source = open_images([f"{path}?range=0:100" for path in image_paths], None)
    assert [int(source.image(i)[0, 0, 0]) for i in range(3)] == [0, 128, 255]
    assert source.name(1) == image_paths[1]
    with pytest.raises(
        ValueError, match=r"0\.png.*: give the same options after each of the files"
    ):
        open_images([f"{image_paths[0]}?range=0:100", image_paths[1]], None)


def test_an_empty_list_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n")))
    with pytest.raises(ValueError, match="standard input: the list is empty"):
        open_images("-", None)


@pytest.mark.parametrize(
    "end",
    "[:50%]?range=0:255 [:5%]?label=x ?Range=0:1 ?label [:50] [:0.5%] [-10%:] ?A=1[:5%]".split(),
)
def test_options_in_another_spelling_are_told_how_to_write_them(end, tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "0.png")
    with pytest.raises(FileNotFoundError, match=r"SOURCE\?option=value\[:90%\], the part last"):
        open_source(f"{tmp_path}{end}")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("?range=0:1&range=0:2", "an option is given twice; expected label=COLUMN"),
        ("[:200%]", r"\[:200%\]: expected a part of at most 100%"),
    ],
)
def test_options_that_cannot_be_are_refused(end, message, tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=message):
        open_source(f"{tmp_path}{end}")

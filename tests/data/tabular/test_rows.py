import io
import json
import logging
import os
import pickle

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from beit.data.source import UnreadableImage, file_of
from beit.data.sources import open_source
from beit.data.tabular.rows import RowSource

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FRUIT = ["fig", "lime", "plum"]


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(values):
    return pa.array([{"bytes": png(value), "path": None} for value in values], IMAGE)


def made(columns, names=None):
    """A table with the class names of columns as `datasets` writes them."""
    features = {column: {"names": list(n), "_type": "ClassLabel"} for column, n in names or ()}
    about = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    return pa.table(columns).replace_schema_metadata(about)


def write(path, columns, names=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(made(columns, names), path, **options)
    return path


def write_arrow(path, table, new=pa.ipc.new_stream, rows=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def pixels(source):
    return [int(source.image(index)[0, 0, 0]) for index in range(len(source))]


# ── labels ──────────────────────────────────────────────────────────────────────────────────────


def test_files_that_number_classes_differently_are_matched_by_name(tmp_path):
    """parquet_files_that_number_classes_differently"""
    order = ["plum", "lime", "fig"]
    write(tmp_path / "a.parquet", {"image": encoded([0, 1]), "label": [0, 2]}, [("label", FRUIT)])
    write(tmp_path / "b.parquet", {"image": encoded([2, 3]), "label": [0, 2]}, [("label", order)])
    source = open_source(str(tmp_path))
    assert pixels(source) == [0, 1, 2, 3]
    assert [source.class_names[label] for label in source.labels] == ["fig", "plum", "plum", "fig"]


def test_a_file_without_the_column_has_unknown_labels(tmp_path):
    write(tmp_path / "a.parquet", {"image": encoded([0])})
    write(tmp_path / "b.parquet", {"image": encoded([1, 2]), "label": ["x", "w"]})
    source = open_source(str(tmp_path))
    assert (source.labels.tolist(), source.class_names) == ([-1, 1, 0], ["w", "x"])


@pytest.mark.parametrize(
    ("columns", "query", "labels"),
    [
        ({"labels": [2, 0]}, "", [2, 0]),
        ({"fine_label": [2, 0]}, "", [2, 0]),
        ({"Class": ["b", "a"]}, "", [1, 0]),
        ({"label": [2, 0], "coarse_label": [1, 1]}, "", [2, 0]),
        ({"kind": [2, 0]}, "?label=kind", [2, 0]),
        ({"fine_label": [2, 0], "coarse_label": [1, 1]}, "?label=coarse_label", [1, 1]),
        ({"label": pa.array(["b", "a"]).dictionary_encode()}, "", [1, 0]),
        ({"label": [1.0, None]}, "", [1, -1]),
    ],
)
def test_the_column_of_labels(columns, query, labels, tmp_path):
    """label_column_called_labels, ..._fine_label, text, dictionary and float labels"""
    path = write(tmp_path / "a.parquet", {"image": encoded([7, 8]), **columns})
    source = open_source(f"{path}{query}")
    assert source.labels.tolist() == labels
    assert source.why_unlabelled == ""
    assert pixels(source) == [7, 8]


def test_class_names_are_read_beside_a_column_of_lists(tmp_path):
    """The `datasets` library describes a column of lists by a list."""
    features = {"boxes": [{"dtype": "float32", "_type": "Value"}], "label": {"names": FRUIT}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": encoded([0]), "boxes": [[0.5]], "label": [1]})
    parquet.write_table(table.replace_schema_metadata(about), tmp_path / "A.PARQUET")
    assert open_source(str(tmp_path / "A.PARQUET")).class_names == FRUIT


def test_the_only_column_with_class_names_is_that_of_labels(tmp_path, caplog):
    caplog.set_level(logging.INFO, "beit")
    path = write(tmp_path / "a.parquet", {"image": encoded([7]), "sort": [1]}, [("sort", FRUIT)])
    source = open_source(str(path))
    assert (source.labels.tolist(), source.class_names) == ([1], FRUIT)
    said = f"{path}: 1 images from column 'image'; labels of 1 from column 'sort'"
    assert caplog.messages == [said]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({}, "a.parquet has no column of labels"),
        (
            {"fine_label": [1, 1], "coarse_label": [0, 0]},
            "name one: ?label=fine_label, ?label=coarse_label",
        ),
        ({"label": [[1], [2]]}, "column 'label' of "),
        ({"label": [0.5, 1.0]}, "holds 0.5; expected whole numbers or names"),
        ({"label": [None, -1]}, "is empty"),
    ],
)
def test_images_without_labels_say_why(columns, why, tmp_path):
    path = write(tmp_path / "a.parquet", {"image": encoded([7, 8]), **columns})
    source = open_source(str(path))
    assert source.labels is source.class_names is None
    assert why in source.why_unlabelled
    assert pixels(source) == [7, 8]


def test_catalogue_numbers_become_classes(tmp_path):
    """huge_label_numbers"""
    numbers = [1_900_000_001, 30_000_017, 1_900_000_001]
    path = write(tmp_path / "a.parquet", {"image": encoded(range(3)), "label": numbers})
    source = open_source(str(path))
    assert source.labels.tolist() == [1, 0, 1]
    assert source.class_names == ["30000017", "1900000001"]


# ── images ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("columns", "query"),
    [
        ({"img": encoded([7, 8])}, ""),
        ({"image": [png(7), png(8)]}, ""),
        ({"id": [1, 2], "scan": pa.array([png(7), png(8)], pa.large_binary())}, ""),
        ({"image": encoded([1, 1]), "mask": encoded([7, 8])}, "?image=mask"),
        ({"path": ["1.png", "2.png"], "content": [png(7), png(8)]}, ""),
    ],
)
def test_the_column_of_images(columns, query, tmp_path):
    path = write(tmp_path / "a.parquet", columns)
    assert pixels(open_source(f"{path}{query}")) == [7, 8]


def test_rows_that_hold_paths_are_read_from_files(tmp_path, monkeypatch):
    """parquet_of_paths_without_bytes"""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("rows/p/0.png", "here/1.png", "2.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(number))
    names = ["p/0.png", "here/1.png", str(tmp_path / "2.png")]
    structs = pa.array([{"bytes": None, "path": name} for name in names], IMAGE)
    for column in (structs, pa.array(names), pa.array(names).dictionary_encode()):
        path = write(tmp_path / "rows" / "a.parquet", {"image": column})
        assert pixels(open_source(str(path))) == [0, 1, 2]
    (tmp_path / "2.png").unlink()
    with pytest.raises(UnreadableImage, match=r"a\.parquet\[2\], .*2\.png: No such file"):
        open_source(str(path)).image(2)


def test_encoded_bytes_as_text_are_no_path(tmp_path):
    source = RowSource([write(tmp_path / "a.parquet", {"image": ["iVBO" * 1000]})])
    with pytest.raises(
        UnreadableImage, match=r"^a\.parquet\[0\], (iVBO){50}...: File name too long$"
    ):
        source.image(0)


@pytest.mark.parametrize(
    ("columns", "query", "message"),
    [
        ({"image": pa.array([[{"bytes": b"", "path": ""}]], pa.list_(IMAGE)), "n": [1]}, "",
         r"column 'image' holds list<.*one image per row.*it has image, n; name the right"),
        ({"image": [[1, 2]], "thumb": [b""]}, "", "column 'image' holds list"),
        ({"left": [b""], "right": [b""]}, "", "several columns hold images; it has left, right"),
        ({"number": [1], "text": ["a"]}, "", r"no column of images .*; it has number, text; name"),
        ({"image": [b""]}, "?image=imag", r"no column 'imag'; it has image; did you mean image"),
        ({"image": [b""], "kind": [1]}, "?label=knd", "did you mean kind"),
        ({"image": [b""], "kind": [1]}, "?image=kind", "column 'kind' holds int64; expected one"),
        ({"image": encoded([])}, "", "no rows in this file"),
        ({"image": [{"bytes": [1, 2], "path": "a"}]}, "", "'image' holds struct<bytes: list"),
        ({"image": [{"bytes": b"a", "path": 3}]}, "", "holds struct<bytes: binary, path: int64"),
    ],
)  # fmt: skip
def test_tables_without_usable_images_are_refused(columns, query, message, tmp_path):
    """parquet_of_lists_of_images, among others"""
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(ValueError, match=message):
        open_source(f"{path}{query}")


def test_an_empty_row_is_unreadable(tmp_path):
    rows = pa.array([None, {"bytes": None, "path": None}, {"bytes": png(5), "path": "x"}], IMAGE)
    source = RowSource([write(tmp_path / "a.parquet", {"image": rows})])
    for index in (0, 1):
        with pytest.raises(UnreadableImage, match=r"a\.parquet\[.\]: the row holds no bytes"):
            source.image(index)
    assert int(source.image(2)[0, 0, 0]) == 5


# ── Arrow, and reading in any order ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_files_are_read_like_parquet(new, tmp_path):
    columns = {"image": encoded(range(7)), "label": [0, 1, 2, 0, 1, 2, None]}
    write_arrow(tmp_path / "a.arrow", made(columns, [("label", FRUIT)]), new)
    write_arrow(tmp_path / "b.arrow", made({"image": encoded([9])}), new)
    source = pickle.loads(pickle.dumps(open_source(str(tmp_path / "*.arrow"))))
    order = [6, 0, 7, 3, 1]
    assert [int(source.image(index)[0, 0, 0]) for index in order] == [6, 0, 9, 3, 1]
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, -1, -1]
    assert source.class_names == FRUIT
    assert source.name(7) == "b.arrow[0]"


def test_broken_files_are_named(tmp_path):
    (tmp_path / "a.arrow").write_bytes(b"no Arrow file at all")
    with pytest.raises(ValueError, match=r"a\.arrow: not a readable Arrow file"):
        open_source(str(tmp_path / "a.arrow"))
    (tmp_path / "b.parquet").write_text("version https://git-lfs.github.com/spec/v1\nsize 1\n")
    with pytest.raises(ValueError, match="a pointer of Git LFS; run git lfs pull"):
        open_source(str(tmp_path / "b.parquet"))


def test_large_row_groups_are_told_with_the_remedy(tmp_path, caplog):
    caplog.set_level(logging.INFO, "beit")
    noise = np.random.default_rng(0).bytes(9 << 20)
    files = [write(tmp_path / f"{n}.parquet", {"image": [noise, png(n)]}) for n in range(2)]
    assert int(RowSource(files, cached_bytes=30 << 20).image(3)[0, 0, 0]) == 1
    assert caplog.messages == [f"{files[0]} and 1 more: 4 images from column 'image'; no labels"]
    RowSource(files, cached_bytes=1 << 20)
    _, message = caplog.messages
    assert message.startswith(f"{files[0]} and 1 more: a row group of 9 MB is read for nearly ")
    code = message.partition("python -c '")[2].partition("'")[0]
    copy = tmp_path / "copy"
    exec(code.replace("FILES", repr(list(map(str, files)))).replace("NEW_FOLDER", str(copy)))
    source = open_source(str(copy))
    assert [int(source.image(index)[0, 0, 0]) for index in (1, 3)] == [0, 1]
    assert os.listdir(copy) == ["part-0.arrow"]


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_two_columns_of_one_name_are_refused(ending, tmp_path):
    table = pa.table([encoded([1]), pa.array([1]), pa.array([2])], ["image", "label", "label"])
    path = tmp_path / f"a.{ending}"
    parquet.write_table(table, path) if ending == "parquet" else write_arrow(path, table)
    with pytest.raises(ValueError, match=rf"a\.{ending}: several columns are named 'label'"):
        open_source(str(path))


def test_paths_that_cannot_be_are_unreadable_rows(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": ["a\0b.png", "x" * 5000, "y/" * 5000]})
    source = RowSource([path])
    for index in range(3):
        with pytest.raises(UnreadableImage, match=rf"a\.parquet\[{index}\], ") as caught:
            source.image(index)
        assert len(str(caught.value)) < 300


def test_a_column_of_splits_over_several_files(tmp_path, caplog):
    caplog.set_level(logging.INFO, "beit")
    names = [("split", ["train", "validation"]), ("label", FRUIT)]
    for number in range(2):
        rows = {"image": encoded([number, number + 2]), "label": [number, 2], "split": [number, 0]}
        write(tmp_path / f"{number}.parquet", rows, names)
    train, test = (open_source(str(tmp_path), split=split) for split in ("train", "test"))
    assert (pixels(train), train.labels.tolist()) == ([0, 2, 3], [0, 2, 2])
    assert (pixels(test), test.labels.tolist(), test.name(0)) == ([1], [1], "1.parquet[0]")
    assert pixels(open_source(str(tmp_path))) == [0, 2, 1, 3]
    assert any("1 of 4 rows, those of the split validation" in m for m in caplog.messages)


def test_files_of_one_name_in_several_folders_have_different_names(tmp_path):
    files = [write(tmp_path / part / "0.parquet", {"image": encoded([1])}) for part in "ab"]
    source = RowSource(files)
    assert [source.name(index) for index in range(2)] == ["a/0.parquet[0]", "b/0.parquet[0]"]
    assert RowSource(files[1:]).name(0) == "0.parquet[0]"


def test_the_file_of_a_row_that_names_one_is_that_file(tmp_path):
    """An index or a pack notices by it that an image was replaced."""
    (tmp_path / "b.png").write_bytes(png(7))
    rows = write(tmp_path / "a.parquet", {"image": ["b.png", None]})
    whole = write(tmp_path / "whole.parquet", {"image": encoded([1])})
    source = open_source(str(rows))
    assert [file_of(source, index) for index in (0, 1)] == [tmp_path / "b.png", rows]
    assert file_of(open_source(str(whole)), 0) == whole

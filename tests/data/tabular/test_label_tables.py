import logging
import pathlib
import unicodedata

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from beit.data.folders.listing import say_once, warn_once
from beit.data.sources import open_source
from beit.data.tabular.label_tables import open_table

NAMES = ["0.png", "1.png", "2.png"]


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    """Three images without class folders."""
    say_once.cache_clear()
    warn_once.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return save("photos", NAMES)


def save(folder, names):
    for number, name in enumerate(names):
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (number, 2, 3)).save(path)
    return pathlib.Path(folder)


def write(path, *lines, encoding="utf-8"):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_bytes("\n".join(lines).encode(encoding))
    return str(path)


def classes(source):
    """The class of each image by its name; its number without names, None if unknown."""
    names = source.class_names
    labels = [int(n) if names is None or n < 0 else names[n] for n in source.labels]
    return {source.name(i): None if n == -1 else n for i, n in enumerate(labels)}


FRUIT = {"0.png": "plum", "1.png": None, "2.png": "fig"}


@pytest.mark.parametrize(
    "lines",
    [
        ("filename,label", "0.png,plum", "1.png,", "2.png,fig"),
        ("label;path;note", "plum;0.png;a,b", ";1.png;c", "", "fig;2.png;d"),
        ("Image\tClass", "0.png\tplum", "1.png\t", '2.png\t"fig"', ""),
        ('"file_name" , "category"', '"0.png","plum"', '"./1.png",""', '"2.png"," fig"'),
        ("0.png,plum", "1.png,", "2.png,fig"),  # no line of names
        (",file,target", "0,0.png,plum", "1,1.png,", "2,2.png,fig"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_files_and_labels(lines, encoding, photos):
    """csv_of_labels_as_data"""
    source = open_source(write(photos / "labels.csv", *lines, encoding=encoding))
    assert {name.removeprefix("./"): fruit for name, fruit in classes(source).items()} == FRUIT
    assert [int(source.image(index)[0, 0, 0]) for index in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("10", "2", ""), [10, 2, None]),
        (("1.0", "", "0.0"), [1, None, 0]),
        (("007", "7", "7"), ["007", "7", "7"]),
        (("40000001", "7", "-1"), ["40000001", "7", None]),
    ],
)
def test_numbers_written_as_text_are_numbers(values, expected, photos):
    lines = [f"{name},{value}" for name, value in zip(NAMES, values, strict=True)]
    source = open_source(write(photos / "labels.csv", "file,label", *lines))
    assert list(classes(source).values()) == expected


def test_json_lines_order_repetitions_and_columns(photos):
    rows = [
        '{"file_name": "2.png", "label": "fig", "text": "a", "kind": 1}',
        '{"file_name": "0.png", "kind": 0}',
        "",
        '{"file_name": "2.png", "label": "fig", "text": "a", "kind": 1}',
    ]
    path = write(photos / "rows.jsonl", *rows)
    source = open_source(path)
    assert [source.name(i) for i in range(3)] == ["2.png", "0.png", "2.png"]
    assert (source.labels.tolist(), source.class_names) == ([0, -1, 0], ["fig"])
    assert open_source(f"{path}?label=kind").labels.tolist() == [1, 0, 1]
    sums = write(photos / "sums.csv", "file,a+b&c", "0.png,1")
    assert open_source(f"{sums}?label=a+b%26c").labels.tolist() == [1]
    mixed = write(photos / "mixed.jsonl", '{"file": "0.png", "label": 3}',
                  '{"file": "1.png", "label": "b"}')  # fmt: skip
    assert list(classes(open_source(mixed)).values()) == ["3", "b"]
    rows = [f'{{"file": "{n}.png", "label": {v}}}' for n, v in enumerate(("7", '"NA"', "NaN"))]
    assert open_source(write(photos / "unknown.jsonl", *rows)).labels.tolist() == [7, -1, -1]


def test_paths_may_be_relative_to_a_folder_beside_or_to_the_working_directory(photos):
    save("set/train", NAMES)
    rows = ("file,label", *(f"{name},a" for name in NAMES))
    assert open_source(write("set/train.csv", *rows)).image(1).shape == (3, 3, 4)
    save("set/test", ["3.png", *NAMES])  # no longer the only folder with these files
    assert int(open_source("set/train.csv").image(0)[0, 0, 0]) == 0
    assert int(open_source(write("set/test_labels.csv", *rows)).image(0)[0, 0, 0]) == 1
    with pytest.raises(
        ValueError,
        match=r"first file, '0\.png', is in several .* table: test, train; .*, as test/0\.png$",
    ):
        open_source(write("set/all.csv", *rows))
    (pathlib.Path("set/test") / "2.png").unlink()  # its own folder, although another has the file
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 .*first is '2\.png' in set/test"):
        open_source("set/test_labels.csv")
    with pytest.raises(FileNotFoundError, match=r"1 of the 1 .*first is '2\.png' in set, line 2;"):
        open_source(write("set/val.csv", "file,label", "2.png,a"))
    rows = ("file,label", *(rf"photos\{name},a" for name in NAMES))
    assert open_source(write("lists/train.csv", *rows)).name(1) == "photos/1.png"


@pytest.mark.parametrize(
    ("lines", "query", "message"),
    [
        (
            ("id,label", "0,a"),
            "",
            r"no column of images .*; it has id, label; name .*\?image=COLUMN",
        ),
        (
            ("id,label", "0,a"),
            "?image=id",
            r"1 of the 1 image files .*; the first is '0' in photos",
        ),
        (("file,label", "0.png,a", "9.png,b"), "", r"1 of the 2 .* the first is '9\.png'"),
        (("file,label", f"{'x' * 300},a"), "", r"1 of the 1 .* the first is 'x+...x+' in photos"),
        (
            ("file,label", "0.png,a"),
            "?label=lable",
            r"no column 'lable'; .*did you mean label\?",
        ),
        (("file,label", "0.png,a", "1.png"), "", "cannot read line 3: 1 fields, but 2 in the"),
        (("file,label", "0.png,a", ",b"), "", "line 3 names no file in column 'file'"),
        (("file,label",), "", "no rows in this table"),
        ((), "", "no rows in this table"),
        (("file,label", '"0.png,a', "1.png,b"), "", "cannot read line 2: unexpected end of data"),
        (("file,label", '"0.png,a', '"1.png,b'), "", "cannot read line 2: "),
        (
            ("file,label", "0.png,a", '1.png,"b', '2.png,c"'),
            "",
            "line 3 has a line break in .*'label'",
        ),
        (("file,label", '"0.png', '1.png",b'), "", "line 2 has a line break in column 'file'"),
        (("file,label", "0\0.png,a"), "", r"1 of the 1 image files .*'0\\x00\.png'"),
        (("file,label", "0" * 999 + ",a"), "", r"1 of the 1 image files .* '0+\.\.\.0+'"),
        (("file,label,label", "0.png,a,b"), "", "two columns have the same name"),
    ],
)
def test_tables_that_cannot_be_are_refused(lines, query, message, photos):
    path = write(photos / "labels.csv", *lines)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_source(f"{path}{query}")


def test_other_tables_that_cannot_be_are_refused(photos):
    with pytest.raises(
        ValueError, match=r"labels\.csv: .* not text in UTF-8; save it .*Excel, CSV UTF-8"
    ):
        open_table(pathlib.Path(write("labels.csv", "file,label", "ä,b", encoding="latin-1")))
    with pytest.raises(ValueError, match=r"a\.jsonl: cannot read line 2"):
        open_table(pathlib.Path(write("a.jsonl", '{"file": "0.png"}', "[1]")))


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (
            ("file,size", "0.png,3"),
            "has no column of labels; name one: ?label=size",
        ),
        (("file,label", "0.png,"), "column 'label' of photos/labels.csv is empty"),
        (("file,label", "0.png,a", "0.png,b"), "has several labels for 0.png"),
        (("file,label", "./0.png,a", ".//0.png,b"), "has several labels for .//0.png"),
        (("file;label", "0.png;0,5", "1.png;1,0"), "holds 0,5; expected whole numbers or names"),
        (("file,label", "0.png,0.5", "1.png,2"), "holds 0.5; expected whole numbers or names"),
        (
            ("file,class,target", "0.png,a,b"),
            "has several columns of labels; name one: ?label=class, ?label=target",
        ),
    ],
)
def test_tables_without_labels_say_why(lines, why, photos):
    source = open_source(write(photos / "labels.csv", *lines))
    assert source.labels is source.class_names is None
    assert why in source.why_unlabelled


def test_spaces_around_quotes_and_line_breaks_in_other_columns(photos):
    rows = ('"file" ; "label" ; note', '"0.png" ; "a" ; "one\ntwo ; "" ; three" ', '1.png;b;5" x')
    assert [*classes(open_source(write(photos / "a.csv", *rows))).values()] == ["a", "b"]


def test_values_of_several_types_in_json_lines(photos):
    rows = ('{"file": "0.png", "label": 2}', '{"file": "1.png", "label": 2.0}',
            '{"file": "2.png", "label": "a"}')  # fmt: skip
    assert [*classes(open_source(write(photos / "a.jsonl", *rows))).values()] == ["2", "2", "a"]
    rows = ('{"file": "0.png", "label": [1]}', '{"file": "1.png", "label": "[2]"}')
    assert "holds lists, [1]" in open_source(write(photos / "b.jsonl", *rows)).why_unlabelled


def test_files_that_a_table_names_twice_are_counted(photos, caplog):
    caplog.set_level(logging.INFO, "beit")
    table = write(photos / "labels.csv", "file,label", "0.png,a", "1.png,b", "0.png,a")
    assert len(open_source(table)) == 3
    assert any("labels.csv: 3 images, 1 of them repeated in " in m for m in caplog.messages)


SPLITS = ("path,label,Data Set", "0.png,b,train", "1.png,a,val", "2.png,c,Train")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_column_of_splits_is_honoured(ending, photos, caplog):
    caplog.set_level(logging.INFO, "beit")
    path = f"photos/a.{ending}"
    if ending == "csv":
        write(path, *(line.replace("Train", "train") for line in SPLITS))
    else:
        splits = pa.array(["train", "val", "train"]).dictionary_encode()
        image = pa.array(NAMES)
        parquet.write_table(pa.table({"image": image, "label": [*"bac"], "fold": splits}), path)
    train, test, every = (open_source(path, split=split) for split in ("train", "test", None))
    assert [int(train.image(index)[0, 0, 0]) for index in range(len(train))] == [0, 2]
    assert (train.labels.tolist(), train.class_names) == ([1, 2], ["a", "b", "c"])
    assert [int(test.image(index)[0, 0, 0]) for index in range(len(test))] == [1]
    assert (test.labels.tolist(), len(every)) == ([0], 3)
    assert any("2 of 3 rows, those of the split train in column" in m for m in caplog.messages)


def test_columns_that_are_not_of_splits(photos, caplog):
    caplog.set_level(logging.INFO, "beit")
    for values, said in (
        (("val", "test", "val"), "column 'set' has test, val, but no rows for training: all rows"),
        (("1", "0", "2"), "column 'set' has 0, 1, 2, which are no names of splits: all rows are"),
        (("", "", ""), ""),
    ):
        lines = [f"{name},a,{value}" for name, value in zip(NAMES, values, strict=True)]
        path = write(photos / "a.csv", "file,label,set", *lines)
        caplog.clear()
        assert len(open_source(path)) == 3 and "column 'set'" not in caplog.text
        assert len(open_source(path, split="train")) == 3
        assert said in caplog.text and bool(said) == ("column 'set'" in caplog.text)
    path = write(photos / "a.csv", "file,label,set", "0.png,a,train")
    with pytest.raises(ValueError, match=r"a\.csv, column 'set', has the splits train, none of"):
        open_source(path, split="test")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_column_of_splits_with_another_value_is_refused(ending, beside, photos, caplog):
    path, splits, place = photos / f"a.{ending}", ["train", "train", "tset"], "line 4"
    if ending == "csv":
        rows = [f"{name},a,{split}" for name, split in zip(NAMES, splits, strict=True)]
        write(path, "file,label,split", *rows)
    elif ending == "jsonl":
        rows = ('{"file": "0.png", "split": "train"}', "", '{"file": "1.png", "split": "tset"}')
        write(path, *rows)
        place = "line 3"
    else:
        parquet.write_table(pa.table({"file": NAMES, "split": splits}), path)
        place = "row 3"
    source = "photos" if beside else str(path)
    fault = rf"a\.{ending}: column 'split' has 'tset' \({place}\), which is no name of a split"
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=rf"{fault} .*; did you mean test\? expected one in"):
            open_source(source, split=split)
    assert len(open_source(source)) == (3 if beside or ending != "jsonl" else 2)
    open_source(source)
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len([text for text in warned if f"has 'tset' ({place})" in text]) == 1


def test_rows_without_a_split_are_left_out_and_other_values_have_no_wrong_hint(photos, caplog):
    caplog.set_level(logging.INFO, "beit")
    rows = ("file,label,fold", "0.png,a,train", "1.png,b,", "2.png,a,val")
    assert len(open_source(write(photos / "gaps.csv", *rows), split="train")) == 1
    assert "it has train, val; left out, without a split: 1 row" in caplog.text
    rows = ("file,label,fold", "0.png,a,train", "1.png,b,extra", "2.png,a,1")
    with pytest.raises(
        ValueError, match=r"has '1' \(line 4\), 'extra' \(line 3\), which .*\); expected one in"
    ):
        open_source(write(photos / "extra.csv", *rows), split="train")


@pytest.mark.parametrize("named", [True, False])
def test_lines_are_counted_as_an_editor_shows_them(named, photos):
    rows = ["0.png,a", "", '1.png,"b"', "9.png,a"]
    table = write(photos / "labels.csv", *(["file,label"] if named else []), *rows)
    with pytest.raises(FileNotFoundError, match=rf"'9\.png' in photos, line {4 + named};"):
        open_source(table)
    table = write(photos / "notes.csv", "note,file", '"one', 'two",0.png', ",1.png", "x,9.png")
    with pytest.raises(FileNotFoundError, match=r"'9\.png' in photos, line 5;"):
        open_source(table)


# ── beside the images of a folder ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["labels.csv", "metadata.csv", "list.tsv"])
def test_a_table_labels_the_images_beside_it(name, photos, caplog):
    """csv_of_labels_beside_images, metadata_csv_of_an_image_folder"""
    caplog.set_level(logging.INFO, "beit")
    write(photos / name, "file_name,label", "2.png,fig", "0.png,plum", "7.png,pear")
    assert classes(open_source("photos")) == FRUIT
    assert caplog.messages[-1] == (
        f"photos: labels of 2 of 3 images from photos/{name}, column 'label'; the table also names "
        "1 file not among them: 7.png"
    )


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_metadata_comes_before_other_tables(ending, photos):
    path = photos / f"metadata.{ending}"
    if ending == "parquet":
        parquet.write_table(pa.table({"file_name": NAMES, "class": ["plum", None, "fig"]}), path)
    else:
        write(
            path,
            '{"file_name": "0.png", "class": "plum"}',
            '{"file_name": "2.png", "class": "fig"}',
        )
    write(photos / "a.csv", "file,label", "0.png,x", "1.png,y")
    assert classes(open_source("photos")) == FRUIT
    assert classes(open_source("photos?label=label"))["1.png"] == "y"
    path.unlink()
    write(photos / "b.csv", "file,label", "0.png,x", "1.png,y")
    source = open_source("photos")
    assert source.labels is None
    assert "several tables have labels (a.csv, b.csv); give one" in source.why_unlabelled


def test_tables_of_other_things_leave_the_images_as_they_are(photos):
    write(photos / "people.csv", "name,label", "Ann,a")
    write(photos / "torn.csv", "file,label", "0.png")
    write(photos / "sizes.csv", "file,size", "0.png,3")
    source = open_source("photos")
    assert source.labels is None
    assert "people.csv names none of the images; its first is 'Ann'" in source.why_unlabelled
    assert "sizes.csv has no column of labels" in source.why_unlabelled
    assert "line 2: 1 fields" in source.why_unlabelled
    empty = photos / "metadata.parquet"
    parquet.write_table(pa.table({"file_name": pa.array([], pa.string())}), empty)
    assert "metadata.parquet: no rows in this table" in open_source("photos").why_unlabelled
    empty.unlink()
    with pytest.raises(ValueError, match="no column 'kind'"):
        open_source("photos?label=kind")
    for path in photos.glob("*.csv"):
        path.unlink()
    with pytest.raises(ValueError, match=r"photos\?label=: there is no table beside the images"):
        open_source("photos?label=kind")


def test_class_folders_count_more_than_a_table(caplog):
    caplog.set_level(logging.INFO, "beit")
    save("fruit", ["fig/0.png", "plum/1.png"])
    write("fruit/metadata.csv", "file_name,label", "fig/0.png,ripe", "plum/1.png,raw")
    assert classes(open_source("fruit")) == {"fig/0.png": "fig", "plum/1.png": "plum"}
    assert any("labels from the class folders, not from fruit/meta" in m for m in caplog.messages)
    source = open_source("fruit?label=label")
    assert classes(source) == {"fig/0.png": "ripe", "plum/1.png": "raw"}


@pytest.mark.parametrize("first", ["pictures/0.png", "0.png", "fruit/pictures/0.png"])
def test_images_in_a_single_folder_below_the_table(first, tmp_path):
    save("fruit", [f"pictures/{name}" for name in NAMES])
    first = str(tmp_path / first) if first.startswith("fruit") else first
    write("fruit/labels.csv", "file,label", f"{first},fig")
    assert classes(open_source("fruit")) == {
        "pictures/0.png": "fig", "pictures/1.png": None, "pictures/2.png": None
    }  # fmt: skip


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_another_unicode_form_are_matched(form):
    save("fruit", ["pictures/\xe9.png", "pictures/1.png"])
    write("fruit/labels.csv", "file,label", unicodedata.normalize(form, "\xe9.png") + ",fig")
    assert classes(open_source("fruit"))["pictures/\xe9.png"] == "fig"


@pytest.mark.parametrize("folders", [(), ("fig/", "plum/", "fig/")])
def test_a_column_of_splits_leaves_images_of_others_out(folders):
    names = [folder + name for folder, name in zip(folders or [""] * 3, NAMES, strict=True)]
    save("fruit", [*names, "fig/3.png"] if folders else names)
    rows = (
        f"{name},a,{split}" for name, split in zip(names, ("train", "val", "train"), strict=True)
    )
    write("fruit/metadata.csv", "file_name,label,split", *rows)
    known = classes(open_source("fruit", split="train"))
    unlisted = {"fig/3.png": "fig"} if folders else {}
    assert (
        known
        == {names[0]: "fig" if folders else "a", names[2]: "fig" if folders else "a"} | unlisted
    )
    assert names[1] in classes(open_source("fruit", split="test"))
    assert len(open_source("fruit")) == len(open_source("fruit", split="train")) + 1
    write("fruit/a.csv", "file_name,kind", f"{names[0]},x", f"{names[1]},y")
    known = classes(open_source("fruit?label=kind", split="train"))
    assert known[names[0]] == "x" and names[1] not in known
    write("fruit/other.csv", "file_name,subset", f"{names[0]},train", f"{names[1]},train")
    assert names[1] not in classes(open_source("fruit", split="train"))  # metadata comes first
    (pathlib.Path("fruit") / "metadata.csv").rename("fruit/more.csv")
    with pytest.raises(ValueError, match=r"several tables name splits \(more\.csv, other\.csv\)"):
        open_source("fruit", split="train")


def test_a_table_above_folders_of_splits_labels_no_other_split_by_bare_names():
    for split in ("train", "test"):
        save("kg", [f"{split}/{name}" for name in NAMES])
    write("kg/train.csv", "image,label", *(f"{name},a" for name in NAMES))
    source = open_source("kg", split="test")
    assert source.labels is None and "train.csv names none of the images" in source.why_unlabelled
    assert set(classes(open_source("kg", split="train")).values()) == {"a"}
    assert [*classes(open_source("kg")).values()] == [None] * 3 + ["a"] * 3
    write("kg/test.csv", "image,label", *(f"{name},b" for name in NAMES))
    assert set(classes(open_source("kg", split="test")).values()) == {"b"}
    assert set(classes(open_source("kg", split="train")).values()) == {"a"}
    assert "several tables" in open_source("kg").why_unlabelled
    for name in ("train.csv", "test.csv"):
        (pathlib.Path("kg") / name).unlink()
    write("kg/all.csv", "image,label", *(f"{name},c" for name in NAMES))
    assert open_source("kg", split="train").labels is None
    write("kg/all.csv", "image,label", *(f"test/{name},c" for name in NAMES))
    assert set(classes(open_source("kg", split="test")).values()) == {"c"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("photso/0.png", r"directory; did you mean photos/0\.png\?$"),
        ("old/0.png", r"directory; there is no folder old$"),
        ("photos/8.png", r"directory$"),
        ("photos/O.png", r"'photos/O\.png' in \., line 3; .*directory$"),
        ("photos/scan_O3.png", r"directory; did you mean photos/scann_O3\.png\?$"),
        ("photos/scan_O4.png", r"directory$"),  # another number, not a mistake
    ],
)
def test_a_folder_that_a_table_names_and_that_does_not_exist_is_said(name, hint):
    save("photos", ["0.png", "scann_O3.png"])
    table = write("labels.csv", "file,label", "photos/0.png,b", f"{name},a")
    with pytest.raises(FileNotFoundError, match=hint):
        open_source(table)

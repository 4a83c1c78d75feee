"""The tables of docs/data.md: a test for each row, found by its first cell."""

import csv
import io
import json
import logging
import shutil
import struct
import tarfile
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, features
from pyarrow import ipc, parquet

from beit.data.classes import (
    Classes,
    Labelled,
    RenumberedSource,
    known_classes,
    known_labels,
    renumbered,
)
from beit.data.folders.listing import say_once, warn_once
from beit.data.pixels.decoding import MAX_PIXELS, decode, extensions
from beit.data.source import Source, UnreadableImage
from beit.data.sources import open_source
from beit.data.spec import Reading
from beit.data.views import EvalView

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
TABLES = ("Layouts", "Labels", "Pixels", "Classes of two sets")
HEADERS = ("what it is", "the sets have")
RULES: dict[tuple[str, str], Callable[..., None]] = {}
CLASSES = ("apple", "lime")


class Place(NamedTuple):
    """A folder to work in, and what was logged."""

    path: Path
    said: Callable[[], str]

    def image(self, name: str, level: int = 0) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (level,) * 3).save(path)
        return path

    def open(self, name: str, split: Any = None) -> Source:
        return open_source(str(self.path / name), split=split)


def rows_of_page() -> list[tuple[str, str]]:
    """List (table, first cell) of every row."""
    found, table = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            table = line[3:]
        elif line.startswith("| ") and table in TABLES:
            first_cell = line.split("|")[1].strip()
            if first_cell not in HEADERS:
                found.append((table, first_cell))
    return found


def rule(table: str, first_cell: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def keep(test: Callable[..., None]) -> Callable[..., None]:
        RULES[table, first_cell] = test
        return test

    return keep


@pytest.fixture
def place(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "beit")
    say_once.cache_clear()
    warn_once.cache_clear()
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, lambda: caplog.text)


@pytest.mark.parametrize("row", rows_of_page(), ids=": ".join)
def test_the_page_is_right(row, place):
    RULES[row](place)


def test_every_rule_is_on_the_page():
    assert {*RULES} == {*rows_of_page()}


def names(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def levels(source: Source) -> list[int]:
    """List the red of a corner of each image."""
    return [int(source.image(index)[0, 0, 0]) for index in range(len(source))]


def classes(source: Source) -> list[str | None]:
    assert source.labels is not None and source.class_names is not None
    return [source.class_names[n] if n >= 0 else None for n in source.labels.tolist()]


def refusal(source: Source) -> str:
    """Return the error of what needs labels."""
    with pytest.raises(ValueError) as caught:
        known_labels(Labelled("data", "set", source))
    return str(caught.value)


# ── layouts ─────────────────────────────────────────────────────────────────────────────────────


@rule("Layouts", "flat folder")
def _(place):
    place.image("photos/b.png")
    place.image("photos/a.png")
    source = place.open("photos")
    assert names(source) == ["a.png", "b.png"] and source.labels is None


@rule("Layouts", "class folders")
def _(place):
    for form in ("NFC", "NFD"):
        place.image(f"fruit/{unicodedata.normalize(form, 'é')}/{form}.png")
    place.image("store/0.png")
    for link in ("x", "y"):
        (place.path / "fruit" / link).symlink_to(place.path / "store")
    source = place.open("fruit")
    assert source.class_names == ["x", "y", "é"] and len(source) == 4


@rule("Layouts", "class folders and an image beside them")
def _(place):
    for name in ("apple/0.png", "lime/1.png", "cover.png"):
        place.image(f"fruit/{name}")
    source = place.open("fruit")
    assert len(source) == 3 and "cover.png" in refusal(source)


@rule("Layouts", "`train/`, `val/`, `test/`")
def _(place):
    for split, count in (("Train", 3), ("val", 2), ("test", 1)):
        for number in range(count):
            for name in CLASSES:
                place.image(f"fruit/{split}/{name}/{number}.png")
                place.image(f"more/images/{split}2017/{name}/{number}.png")
                place.image(f"sets/{split}_set/{name}/{number}.png")
                place.image(f"words/fruit_{split}/{name}/{number}.png")
    for root in ("fruit", "more", "sets", "words"):
        lengths = [len(place.open(root, split)) for split in ("train", "test", None)]
        assert lengths == [6, 4, 12]
        assert place.open(root, "train").class_names == [*CLASSES]
        assert place.open(root).labels is None


@rule("Layouts", "splits inside each class folder")
def _(place):
    for name in CLASSES:
        place.image(f"parts/{name}/train/0.png")
        place.image(f"parts/{name}/test/1.png")
        place.image(f"deeper/red/{name}/train/0.png")
        place.image(f"deeper/red/{name}/test/1.png")
    assert classes(place.open("parts", "train")) == [*CLASSES]
    place.image("parts/apple/extra.png")
    place.image("deeper/green/fig/2.png")
    for root in ("parts", "deeper"):
        for split in ("train", "test"):
            with pytest.raises(ValueError, match="holds splits"):
                place.open(root, split)
        assert place.open(root).labels is None


@rule("Layouts", "splits beside other folders of images")
def _(place):
    for name in ("train/apple/0.png", "train/lime/0.png", "val/apple/0.png", "cat/0.png"):
        place.image(f"fruit/{name}")
    assert classes(place.open("fruit/train", "train")) == [*CLASSES]
    for split in ("train", "test"):
        with pytest.raises(ValueError, match="fruit"):
            place.open("fruit", split)


@rule("Layouts", "`images/` beside `masks/`, `labels/`, `annotations/` …")
def _(place):
    for other in ("masks", "labels", "annotations"):
        place.image(f"{other}-set/images/0.png")
        place.image(f"{other}-set/{other}/0.png")
        assert names(place.open(f"{other}-set", "train")) == ["images/0.png"]
        assert f"not {other}" in place.said()
    for name in CLASSES:
        place.image(f"fruit/{name}/images/0.png")
        place.image(f"fruit/{name}/masks/0.png")
        place.image(f"named/{name}/0.png")
        place.image(f"named/{name}/0_mask.png")
        place.image(f"faces/{'no_' * (name == 'lime')}mask/0.png")
    for root in ("fruit", "named"):
        assert classes(place.open(root)) == [*CLASSES]
    assert classes(place.open("faces")) == ["mask", "no_mask"]


@rule("Layouts", "hidden files, `@eaDir`, `__MACOSX`, `lost+found`, `Thumbs.db` …")
def _(place):
    place.image("fruit/apple/0.png")
    place.image("fruit/apple/@eaDir/0.png/thumb.jpg")
    place.image("fruit/.thumbnails/0.png")
    place.image("fruit/__MACOSX/apple/._0.png")
    (place.path / "fruit" / "lost+found").mkdir()
    (place.path / "fruit" / "apple" / "Thumbs.db").touch()
    source = place.open("fruit")
    assert names(source) == ["apple/0.png"] and source.class_names == ["apple"]
    assert "@eaDir" in place.said() and ".thumbnails" in place.said()


@rule("Layouts", "raw, video and other files")
def _(place):
    place.image("photos/0.png")
    for name in ("1.CR2", "2.mov", "3"):
        (place.path / "photos" / name).write_bytes(b"x")
    assert names(place.open("photos")) == ["0.png"]
    assert "1 .cr2" in place.said() and "1 .mov" in place.said() and "4 files" in place.said()


@rule("Layouts", "name that begins with `~`")
def _(place):
    place.image("~holiday/0.png")
    assert len(open_source("~holiday")) == 1
    with pytest.raises(FileNotFoundError, match="~nobody-of-this-name"):
        open_source("~nobody-of-this-name")


@rule("Layouts", "list of files")
def _(place):
    for level in (1, 2):
        place.image(f"{level}.png", level)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        Path("list").write_bytes("2.png\r\n\r\n1.png\r\n2.png".encode(encoding))
        assert levels(open_source("@list")) == [2, 1, 2]
    Path("list").write_bytes(b"2.png\x001.png\0")
    assert levels(open_source("@list")) == [2, 1]


@rule("Layouts", "table of files")
def _(place):
    place.image("set/a.png", 1)
    place.image("set/b.png", 2)
    pairs = [("b.png", "lime"), ("a.png", "apple")]
    for delimiter, encoding, name in (
        (",", "utf-8", "t.csv"),
        (";", "utf-16", "t.csv"),
        ("\t", "utf-8-sig", "t.tsv"),
    ):
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter).writerows([("file", "label"), *pairs])
        (place.path / "set" / name).write_bytes(text.getvalue().encode(encoding))
        source = place.open(f"set/{name}")
        assert (levels(source), classes(source)) == ([2, 1], ["lime", "apple"])
    lines = "".join(json.dumps({"file_name": f, "class": c}) + "\n" for f, c in pairs)
    (place.path / "set" / "t.jsonl").write_text(lines)
    assert classes(place.open("set/t.jsonl")) == ["lime", "apple"]
    (place.path / "t.csv").write_text("file,label\nb.png,lime\n")
    assert levels(place.open("t.csv")) == [2]
    (place.path / "t.csv").write_text("file,label\nb.png,lime\nc.png,lime\n")
    with pytest.raises(FileNotFoundError, match=r"t\.csv: 1 of the 2 .* 'c\.png'"):
        place.open("t.csv")
    (place.path / "t.csv").write_text('file,label\nb.png,"lime\na.png,lime\n')
    with pytest.raises(ValueError, match=r"t\.csv: cannot read line 2"):
        place.open("t.csv")
    place.image("both/train/b.png", 7)
    place.image("both/test/b.png", 8)
    (place.path / "both" / "test.csv").write_text("file,label\nb.png,lime\n")
    assert levels(place.open("both/test.csv")) == [8]


@rule("Layouts", "table beside images")
def _(place):
    for level in range(3):
        place.image(f"photos/{level}.png", level)
    for name in ("metadata.csv", "classes.csv"):
        path = place.path / "photos" / name
        path.write_text("file_name,label\n1.png,apple\n0.png,lime\n")
        assert classes(place.open("photos")) == ["lime", "apple", None]
        path.unlink()
    for name in CLASSES:
        place.image(f"fruit/{name}/0.png")
    text = "file_name,label\napple/0.png,lime\nlime/0.png,lime\n"
    (place.path / "fruit" / "metadata.csv").write_text(text)
    assert classes(place.open("fruit")) == [*CLASSES]
    assert "not from" in place.said()
    for split in ("train", "test"):
        place.image(f"both/{split}/0.png")
    (place.path / "both" / "train.csv").write_text("file,label\n0.png,lime\n")
    assert classes(place.open("both", "train")) == ["lime"]
    assert place.open("both", "test").labels is None
    write(place.path / "named" / "x.parquet", {"file": ["0.png"], "label": ["lime"]})
    for level in range(2):
        place.image(f"named/{level}.png")
    assert classes(place.open("named")) == ["lime", None]


@rule("Layouts", "column `split`, `fold`, `subset`, `set`, `partition` … in a table or rows")
def _(place):
    for level in range(3):
        place.image(f"photos/{level}.png", level)
    files, splits = [f"{level}.png" for level in range(3)], ["train", "val", "test"]
    for name in ("split", "fold", "subset", "set", "partition"):
        write(place.path / "photos" / "x.parquet", {"file": files, name: splits})
        for source in ("photos", "photos/x.parquet"):
            assert levels(place.open(source, "train")) == [0]
            assert levels(place.open(source, "test")) == [1]
            assert levels(place.open(source)) == [0, 1, 2]
    write(place.path / "photos" / "x.parquet", {"file": files, "set": ["train", "val", "tset"]})
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"x\.parquet: column 'set' has 'tset' \(row 3\), "):
            place.open("photos", split)
    assert "did you mean test?" not in place.said()
    assert levels(place.open("photos/x.parquet")) == [0, 1, 2]
    assert "did you mean test?" in place.said()
    write(place.path / "photos" / "x.parquet", {"file": files, "set": ["train", "val", None]})
    assert levels(place.open("photos", "train")) == [0]
    assert "left out, without a split: 1 row" in place.said()
    write(place.path / "photos" / "x.parquet", {"file": files, "set": [0, 1, 2]})
    assert levels(place.open("photos", "train")) == [0, 1, 2]
    assert "column 'set' has 0, 1, 2, which are no names of splits: all rows" in place.said()


def encoded(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (level,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, columns: dict[str, Any], class_names: list[str] | None = None) -> Path:
    """Write Parquet or Arrow rows; `class_names` are those of a column `label`."""
    table = pa.table(columns)
    if class_names:
        kinds = {"label": {"names": class_names, "_type": "ClassLabel"}}
        about = json.dumps({"info": {"features": kinds}})
        table = table.replace_schema_metadata({"huggingface": about})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    return path


@rule("Layouts", "Parquet or Arrow files")
def _(place):
    place.image("rows/2.png", 2)
    write(place.path / "rows" / "0.parquet", {"image": [{"bytes": encoded(0), "path": None}]})
    write(place.path / "rows" / "1.parquet", {"image": [encoded(1), encoded(3)]})
    assert levels(open_source("rows/*.parquet")) == levels(open_source("rows")) == [0, 1, 3]
    assert "not the 1 image files" in place.said()
    write(place.path / "rows" / "2.parquet", {"image": ["2.png"]})
    assert levels(open_source("rows/2.parquet")) == [2]
    write(place.path / "5.arrow", {"image": [encoded(5)]})
    assert levels(open_source("5.arrow")) == [5]


@rule("Layouts", "clone of a hub repository")
def _(place):
    for level, split in enumerate(("train", "test")):
        file = place.path / "repo" / "data" / f"{split}-00000-of-00001.parquet"
        write(file, {"image": [encoded(level)]})
    (place.path / "repo" / "README.md").write_text("# Fruit\n")
    assert [levels(place.open("repo", split)) for split in ("train", "test")] == [[0], [1]]
    with pytest.raises(ValueError, match=r"train.*test|test.*train"):
        place.open("repo")


@rule("Layouts", "folder of `save_to_disk`")
def _(place):
    file = "data-00000-of-00001.arrow"
    columns = {"image": [encoded(1), encoded(2)], "label": [1, 0]}
    write(place.path / "saved" / file, columns, [*CLASSES])
    state: dict[str, Any] = {"_data_files": [{"filename": file}], "_split": None}
    (place.path / "saved" / "state.json").write_text(json.dumps(state))
    (place.path / "saved" / "dataset_info.json").write_text("{}")
    source = place.open("saved")
    assert (levels(source), classes(source)) == ([1, 2], ["lime", "apple"])
    state["_indices_files"] = [{"filename": "indices.arrow"}]
    (place.path / "saved" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="flatten_indices"):
        place.open("saved")


@rule("Layouts", "zip archive")
def _(place):
    for level, name in enumerate(CLASSES):
        place.image(f"fruit/{name}/{level}.png", level)
    shutil.make_archive("fruit", "zip", place.path, "fruit")
    source, folder = place.open("fruit.zip"), place.open("fruit")
    assert names(source) == names(folder) and levels(source) == [0, 1]
    assert classes(source) == classes(folder) == [*CLASSES]


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@rule("Layouts", "tar shards")
def _(place):
    for shard in range(2):
        number = 2 * shard
        files = {f"{n}.png": encoded(n) for n in (number + 1, number)}
        pack(Path(f"x-{shard}.tar"), files | {f"{n}.cls": b"5" for n in (number, number + 1)})
    for spec in ("x-{0..1}.tar", "x-*.tar", "."):
        source = open_source(spec)
        assert levels(source) == [0, 1, 2, 3] and source.labels.tolist() == [5] * 4
    assert levels(open_source("x-1.tar")) == [2, 3]
    Path("shards").mkdir()
    for split in ("train", "val"):
        pack(Path(f"shards/x-{split}-0.tar"), {"0.png": encoded(len(split))})
    assert [levels(place.open("shards", split)) for split in ("train", "test")] == [[5], [3]]
    pack(Path("y.tar"), {f"{name}/0.png": encoded(1) for name in CLASSES})
    assert classes(open_source("y.tar")) == [*CLASSES]


@rule("Layouts", "shards that `beit pack` wrote")
def _(place):
    about = {"class_names": ["b", "a"], "names": {"1.png": "x/one.png"}}
    members = {"1.png": encoded(1), "1.cls": b"0", "0.png": encoded(0), "0.cls": b"1"}
    Path("shards").mkdir()
    pack(Path("shards/x.tar"), members | {"__beit__": json.dumps(about).encode()})
    source = place.open("shards")
    assert names(source) == ["x/one.png", "0.png"]
    assert (levels(source), classes(source)) == ([1, 0], ["b", "a"])
    Path("shards/pack.json").write_text('{"complete": false}')
    with pytest.raises(ValueError, match="has not written all of its shards; repeat the command"):
        place.open("shards")


@rule("Layouts", "damaged tar shard")
def _(place):
    path = pack(Path("x.tar"), {"0.png": encoded(0), "1.png": b"no image", "2.png": encoded(2)})
    source = open_source("x.tar")
    with pytest.raises(UnreadableImage, match=r"1\.png: not an image"):
        source.image(1)
    data = path.read_bytes()
    path.write_bytes(data[:2100])
    with pytest.raises(UnreadableImage, match="has changed since it was opened"):
        source.image(0)
    with pytest.raises(ValueError, match=r"x\.tar: cut or damaged.* after 1\.png"):
        open_source("x.tar")
    path.write_bytes(data[:1024] + bytes([1] * 512) + data[1536:])
    with pytest.raises(ValueError, match=r"no header of a file at byte 1024, after 0\.png"):
        open_source("x.tar")


@rule("Layouts", "compressed tar")
def _(place):
    for ending, form in (("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.xz", "w:xz")):
        tarfile.open(f"x.{ending}", form).close()
        with pytest.raises(ValueError, match="decompress it once"):
            open_source(f"x.{ending}")


@rule("Layouts", "data set in Python")
def _(place):
    place.path.joinpath("rule_set.py").write_text(
        "from PIL import Image\nclass Set:\n"
        "    targets, classes = [1, 0, 0, 1], ['apple', 'lime']\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, index): return Image.new('RGB', (4, 3))\n"
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(place.path)
        source = open_source("python:rule_set:Set[:50%]")
    assert len(source) == 2 and source.class_names == ["apple", "lime"]
    assert source.labels.sum() >= 0 and source.image(1).shape == (3, 3, 4)


@rule("Layouts", "drawn shapes")
def _(place):
    first, again = (open_source("shapes://12?size=16&seed=1") for _ in range(2))
    assert torch.equal(first.image(7), again.image(7)) and len(first.class_names or ()) == 10


# ── labels ──────────────────────────────────────────────────────────────────────────────────────


def labelled(place: Place, columns: dict[str, Any], query: str = "") -> Source:
    count = len(next(iter(columns.values())))
    file = write(place.path / "t.parquet", {"image": [encoded(0)] * count} | columns)
    return open_source(f"{file}{query}")


@rule("Labels", "column of labels")
def _(place):
    for name in ("label", "labels", "fine_label", "class", "category", "target"):
        assert classes(labelled(place, {name: ["b", "a"]})) == ["b", "a"]
    both = {"fine_label": ["b", "a"], "coarse_label": ["x", "x"]}
    assert "?label=" in refusal(labelled(place, both))
    assert classes(labelled(place, both, "?label=coarse_label")) == ["x", "x"]


@rule("Labels", "column of images")
def _(place):
    for name in ("image", "img", "picture", "photo", "scan"):
        file = write(place.path / "t.parquet", {name: [encoded(9)]})
        assert levels(open_source(str(file))) == [9]
    place.image("3.png", 3)
    file = write(place.path / "t.parquet", {"file_name": ["3.png"]})
    assert levels(open_source(str(file))) == [3]
    file = write(place.path / "t.parquet", {"image": [[encoded(1)]], "other": [encoded(2)]})
    with pytest.raises(ValueError, match=r"'image' holds list.*\?image=COLUMN"):
        open_source(str(file))
    assert levels(open_source(f"{file}?image=other")) == [2]


@rule("Labels", "text, dictionaries, booleans")
def _(place):
    assert labelled(place, {"label": ["b", "a"]}).class_names == ["a", "b"]
    assert classes(labelled(place, {"label": pa.array(["b", "a"]).dictionary_encode()})) == [*"ba"]
    assert classes(labelled(place, {"label": [True, False]})) == ["True", "False"]


@rule("Labels", "names that differ in case, blanks, `-` or `_` only")
def _(place):
    table = labelled(place, {"label": ["Animals", "animals"]})
    for name in ("a-1", "A_1"):
        place.image(f"fruit/{name}/0.png")
    for source, names in ((table, "'Animals' and 'animals'"), (place.open("fruit"), "'A_1' and")):
        assert known_classes(Labelled("data", "set", source)).number == 2
        assert known_classes(Labelled("test", "set", source)).number == 2
        assert place.said().count(f"set: classes {names}") == 1


@rule("Labels", "whole numbers, also as floats or text")
def _(place):
    for values in ([10, 2], [10.0, 2.0], ["10", "2"]):
        source = labelled(place, {"label": values})
        assert source.labels is not None and source.labels.tolist() == [10, 2]
        assert source.class_names is None
    assert classes(labelled(place, {"label": ["007", "2"]})) == ["007", "2"]


@rule("Labels", "numbers above 1,000,000")
def _(place):
    numbers = [2_000_000_000, 5, 1_000_001]
    assert classes(labelled(place, {"label": numbers})) == [*map(str, numbers)]


@rule("Labels", "empty, null, -1, `NA`, `N/A`, `nan`, `NaN`")
def _(place):
    assert classes(labelled(place, {"label": ["a", "", None]})) == ["a", None, None]
    unknown = ["NA", "N/A", "nan", "NaN"]
    assert classes(labelled(place, {"label": ["none", *unknown]})) == ["none", *[None] * 4]
    source = labelled(place, {"label": [3, -1, None]})
    assert source.labels is not None and source.labels.tolist() == [3, -1, -1]


@rule("Labels", "lists, fractions, also as text")
def _(place):
    for values in ([[1], [2]], [0.5, 1.0], ["[1]", "[2]"], ["0.5", "1"]):
        source = labelled(place, {"label": values})
        assert levels(source) == [0, 0] and "column 'label'" in refusal(source)


@rule("Labels", "files that number the classes differently")
def _(place):
    for number, order in enumerate((["a", "b"], ["b", "a"])):
        columns = {"image": [encoded(0)] * 2, "label": [0, 1]}
        write(place.path / "set" / f"{number}.parquet", columns, order)
    write(place.path / "set" / "2.parquet", {"image": [encoded(0)], "label": ["b"]})
    assert classes(place.open("set")) == ["a", "b", "b", "a", "b"]


# ── pixels ──────────────────────────────────────────────────────────────────────────────────────


def saved(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if kind == "TIFF" and isinstance(image, np.ndarray):
        tifffile.imwrite(buffer, image, **options)
    else:
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        picture.save(buffer, kind, **options)
    return buffer.getvalue()


def corner(data: bytes, reading: Reading = Reading()) -> list[int]:  # noqa: B008
    """Decode an image. Returns: red, green and blue of its first pixel."""
    return decode(data, "x", reading)[:, 0, 0].tolist()


def refused(data: bytes, match: str, reading: Reading = Reading()) -> None:  # noqa: B008
    with pytest.raises(UnreadableImage, match=match):
        decode(data, "x", reading)


def grey(*values: float, dtype: Any = np.uint16) -> np.ndarray:
    """Make an image (1, n) of these values."""
    return np.array([values], dtype=dtype)


@rule("Pixels", "8 bits, palette, CMYK, 1 bit")
def _(place):
    red = Image.new("RGB", (4, 3), (255, 0, 0))
    for mode, kind in (("RGB", "PNG"), ("P", "PNG"), ("CMYK", "TIFF")):
        assert corner(saved(red.convert(mode), kind)) == [255, 0, 0]
    assert corner(saved(Image.new("1", (4, 3), 1), "PNG")) == [255, 255, 255]


@rule("Pixels", "JPEG 2000, AVIF")
def _(place):
    for name, ending, kind in (("jpg_2000", ".jp2", "JPEG2000"), ("avif", ".avif", "AVIF")):
        assert (ending in extensions()) == features.check(name)
        if features.check(name):
            value = corner(saved(Image.new("RGB", (16, 16), (200, 0, 0)), kind))
            assert value == pytest.approx([200, 0, 0], abs=4)


@rule("Pixels", "HEIC, JPEG XL")
def _(place):
    import pillow_heif
    import pillow_jxl  # noqa: F401 - registers the format

    assert {".heic", ".jxl"} <= extensions()
    image, buffer = Image.new("RGB", (64, 64), (200, 0, 0)), io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer)
    for data in (buffer.getvalue(), saved(image, "JXL", lossless=True)):
        assert corner(data) == pytest.approx([200, 0, 0], abs=4)


@rule("Pixels", "16 bits, grey or colours")
def _(place):
    for data in (saved(grey(65535, 0), "PNG"), saved(grey(65535, 0), "TIFF")):
        assert decode(data, "x")[0].tolist() == [[255, 0]]
    colours = np.array([[[65535, 0, 32896]]], dtype=np.uint16)
    assert corner(saved(colours, "TIFF", photometric="rgb")) == [255, 0, 128]
    assert corner(b"P5 2 1 4095\n" + struct.pack(">2H", 4095, 0)) == [255] * 3
    dark = saved(grey(4095, 0), "PNG")
    refused(dark, r"range=0:4095")
    assert corner(dark, Reading(range=(0, 4095))) == [255] * 3
    assert corner(dark, Reading(range=(0, 65535))) == [16] * 3


@rule("Pixels", "10 or 12 bits that the file declares")
def _(place):
    data = saved(grey(4095, 0, 4095, 0), "TIFF", bitspersample=12)
    assert decode(data, "x")[0].tolist() == [[255, 0, 255, 0]]


@rule("Pixels", "floats")
def _(place):
    data = saved(grey(1, 0.5, np.nan, dtype=np.float32), "TIFF")
    assert decode(data, "x")[0].tolist() == [[255, 128, 0]]
    refused(saved(grey(0.01, 0, dtype=np.float32), "TIFF"), "range=")
    refused(saved(grey(-3, 7, dtype=np.float32), "TIFF"), "range=")


@rule("Pixels", "signed or 32-bit integers")
def _(place):
    for dtype in (np.int16, np.uint32):
        data = saved(grey(0, 300, dtype=dtype), "TIFF")
        refused(data, "range=")
        assert decode(data, "x", Reading(range=(0, 300)))[0].tolist() == [[0, 255]]


@rule("Pixels", "`range=LOW:HIGH`")
def _(place):
    data = saved(grey(50, 100, 150, 200, 250, dtype=np.uint8), "PNG")
    values = decode(data, "x", Reading(range=(100, 200)))[0].tolist()
    assert values == [[0, 0, 128, 255, 255]]
    refused(data, "too few for range=0:4095", Reading(range=(0, 4095)))


@rule("Pixels", "four bands")
def _(place):
    pixels = np.array([[[10, 20, 30, 0]]], dtype=np.uint8)
    assert corner(saved(Image.fromarray(pixels), "PNG")) == [255] * 3
    data = saved(pixels, "TIFF", photometric="rgb", extrasamples=["unassalpha"])
    assert corner(data) == [255] * 3
    data = saved(pixels, "TIFF", photometric="rgb", extrasamples=["unspecified"])
    refused(data, r"4 bands, of which 3 are red, green and blue.*bands=1-3")
    assert corner(data, Reading(bands=(1, 2, 3))) == [10, 20, 30]


@rule("Pixels", "other numbers of bands, several pages of a TIFF")
def _(place):
    bands = np.arange(5, dtype=np.uint8)[None, None].repeat(2, axis=1) * 10
    data = saved(bands, "TIFF", photometric="minisblack", planarconfig="contig")
    refused(data, r"5 bands.*bands=")
    assert corner(data, Reading(bands=(5, 1, 2))) == [40, 0, 10]
    assert corner(data, Reading(bands=(3,))) == [20] * 3
    pages = saved(np.stack([grey(n, n, dtype=np.uint8) for n in (1, 2)]), "TIFF", metadata=None)
    refused(pages, "2 bands or pages")
    assert corner(pages, Reading(bands=(2,))) == [2] * 3


@rule("Pixels", "two, four or more `bands`")
def _(place):
    data = saved(np.full((5, 2, 3), 65535, np.uint16), "TIFF", photometric="minisblack")
    assert decode(data, "x", Reading(bands=(1, 2, 3, 5))).shape == (4, 2, 3)
    halves = decode(data, "x", Reading(bands=(1, 5), range=(0, 65535, 0, 131070)))
    assert halves[:, 0, 0].tolist() == [255, 128]
    refused(data, "bands=1,6, but there are 5", Reading(bands=(1, 6)))
    dark = saved(np.full((5, 2, 3), 99, np.uint16), "TIFF", photometric="minisblack")
    refused(dark, "band 1: .*range=", Reading(bands=(1, 2, 3, 4)))


@rule("Pixels", "`.npy` arrays")
def _(place):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((5, 4, 4), np.uint8))
    assert decode(buffer.getvalue(), "x", Reading(bands=(1, 2))).shape == (2, 4, 4)
    (place.path / "a.npy").write_bytes(buffer.getvalue())
    assert len(open_source(str(place.path))) == 1
    Image.new("RGB", (4, 3)).save(place.path / "b.png")
    assert open_source(str(place.path)).name(0) == "b.png"
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((8, 12, 10), np.uint8))
    refused(buffer.getvalue(), "could be")


@rule("Pixels", "animations")
def _(place):
    first, second = (Image.new("L", (4, 3), level) for level in (7, 90))
    assert corner(saved(first, "GIF", save_all=True, append_images=[second])) == [7] * 3


@rule("Pixels", "colour profile (ICC)")
def _(place):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"none").replace(b"gXYZ", b"rXYZ").replace(b"none", b"gXYZ")
    assert swapped != profile  # of a device whose red is green
    image = Image.new("RGB", (4, 3), (200, 40, 10))
    for kind in ("PNG", "TIFF", "JPEG", "WEBP"):
        exact = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
        plain = corner(saved(image, kind, **exact))
        assert corner(saved(image, kind, icc_profile=swapped, **exact)) == plain


@rule("Pixels", "orientation in EXIF, TIFF, HEIC")
def _(place):
    import pillow_heif

    image, exif = Image.new("RGB", (64, 32)), Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, exif=exif.tobytes())
    for data in (
        saved(image, "JPEG", exif=exif),
        saved(image, "TIFF", tiffinfo={0x0112: 6}),
        buffer.getvalue(),
    ):
        assert decode(data, "x").shape == (3, 64, 32)


@rule("Pixels", "PNG with long texts or colour profiles")
def _(place):
    data, text = encoded(9), b"Comment\0\0" + zlib.compress(bytes(1 << 24))
    chunk = b"zTXt" + text
    long = struct.pack(">I", len(text)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert corner(data[:33] + long + data[33:]) == [9] * 3


@rule("Pixels", "more than 64 megapixels, or a million pixels a side")
def _(place):
    assert MAX_PIXELS == 64_000_000
    header = struct.pack(">IIBBBBB", 8001, 8000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    refused(data + struct.pack(">I", zlib.crc32(chunk)) + encoded(0)[33:], "8001 x 8000")


@rule("Pixels", "over 32 times longer than the view")
def _(place):
    image = torch.zeros(3, 50_000, 1, dtype=torch.uint8)
    image[:, 20_000:30_000] = 200
    view = EvalView((224, 224))(image)
    assert view.shape == (3, 224, 224) and int(view.min()) == 200


# ── classes of two sets ─────────────────────────────────────────────────────────────────────────


def set_of(place: Place, labels: list[Any], class_names: list[str] | None = None) -> Labelled:
    """Open a labelled set of as many images."""
    count = len(list(place.path.glob("*.parquet")))
    path = place.path / f"{count}.parquet"
    write(path, {"image": [encoded(0)] * len(labels), "label": labels}, class_names)
    return Labelled("data", path.name, open_source(str(path)))


def aligned(place: Place, ours: list[Any], theirs: list[Any]) -> list[int]:
    """Number the labels of our set as in theirs, as validation does in training."""
    reference = known_classes(set_of(place, theirs))
    return known_labels(renumbered(set_of(place, ours), reference, "train")).tolist()


@rule("Classes of two sets", "names, both")
def _(place):
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    reference = Classes(3, ("b", decomposed, "07"))
    part = set_of(place, [composed, " b", "007"])
    assert known_labels(renumbered(part, reference, "train")).tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match=r"a.*did you mean A"):
        aligned(place, ["a", "b"], ["A", "b"])


@rule("Classes of two sets", "names that are whole numbers, and numbers")
def _(place):
    for number in range(12):
        place.image(f"folders/{number}/0.png")
    folders = place.open("folders")
    assert (folders.class_names or [])[:4] == ["0", "1", "10", "11"]
    part = Labelled("data", "folders", folders)
    labels = known_labels(renumbered(part, Classes(12, None), "train"))
    assert labels.tolist() == [int(name) for name in folders.class_names or []]


@rule("Classes of two sets", "other names, and numbers")
def _(place):
    assert aligned(place, [1, 0], ["a", "b"]) == [1, 0]
    assert "0 is a, 1 is b" in place.said()
    with pytest.raises(ValueError):
        aligned(place, ["a", "b"], [0, 1, 2])
    with pytest.raises(ValueError):
        aligned(place, [0, 1, 2], ["1", "2", "none"])


@rule("Classes of two sets", "a class less")
def _(place):
    assert aligned(place, ["c", "a"], ["a", "b", "c"]) == [2, 0]
    assert "1 of 3 classes has no image: b" in place.said()
    assert aligned(place, ["animals"], ["animal", "animals"]) == [1]
    assert "1 of 2 classes has no image: animal (did you mean animals?)" in place.said()


@rule(
    "Classes of two sets", "images of a class that the other does not know, or no class in common"
)
def _(place):
    with pytest.raises(ValueError, match=r"appel; did you mean apple\?"):
        aligned(place, ["lime", "appel"], [*CLASSES])
    with pytest.raises(ValueError, match="no class in common"):
        aligned(place, ["x", "y"], [*CLASSES])


@rule("Classes of two sets", "one class twice, or a name that is not UTF-8")
def _(place):
    twice = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    for names in (twice, ["a", "pfl\udce4ume"]):
        part = set_of(place, [0, 1])
        source = RenumberedSource(part.source, part.source.labels, tuple(names))
        with pytest.raises(ValueError, match=r"\\u0301|\\udce4"):
            known_classes(Labelled("data", "set", source))


@rule("Classes of two sets", "labels above 100,000 of which under 1% occur")
def _(place):
    part = set_of(place, [0, 150_000])
    with pytest.raises(ValueError, match="the largest label is 150000"):
        known_classes(part)
    assert known_classes(part, 200_000).number == 200_000

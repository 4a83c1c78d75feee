import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from beit.rows import table as tables
from beit.rows.files import Column
from beit.rows.table import RowTable, check_output, smallest_unsigned

NUM_IMAGES, BATCH_SIZE = 17, 3  # in parts of two batches: 6, 6 and 5 images
COLUMNS = [
    Column("codes", "uint16", (4,)),
    Column("says", "str", (4,), tuple(f"code {i}" for i in range(40)), numbers="codes"),
    Column("patches", "float16", (2, 3)),
    Column("score", "float32"),
]


class Named:
    """Seventeen images with names and labels."""

    def __init__(self, labels: bool = True, first_name: str = "a/été.png") -> None:
        self.labels = torch.arange(NUM_IMAGES) % 5 if labels else None
        self.class_names = ["v", "w", "x", "y", "z"] if labels else None
        self.why_unlabelled = ""
        self.first_name = first_name

    def __len__(self) -> int:
        return NUM_IMAGES

    def name(self, index: int) -> str:
        return f"a/{index}.png" if index else self.first_name


def values(indices: Tensor) -> dict[str, Tensor]:
    """The rows of images, computed from their indices."""
    steps = torch.arange(6).view(2, 3) / 8
    return {
        "codes": indices[:, None] + torch.arange(4),  # (B, 4)
        "patches": (indices[:, None, None] + steps).double(),  # (B, 2, 3)
        "score": indices / 3,
    }


def table(output: Path, images: Named | None = None, **changes: Any) -> RowTable:
    settings = {"columns": COLUMNS, "about": {"model": "m", "grid": (2, 2)}} | changes
    about, columns = settings.pop("about"), settings.pop("columns")
    settings = {"batch_size": BATCH_SIZE, "part_size": 8} | settings
    return RowTable(output, images or Named(), columns, about, **settings)


def compute(made: RowTable, number: int, holes: tuple[int, ...] = ()) -> None:
    """Compute a part; images in `holes` are unreadable."""
    with made.part(number) as part:
        for batch in made.batches(number):
            indices = range(batch * BATCH_SIZE, min((batch + 1) * BATCH_SIZE, NUM_IMAGES))
            read = torch.tensor([i for i in indices if i not in holes], dtype=torch.int64)
            unreadable = [f"a/{i}.png: broken" for i in indices if i in holes]
            part.add(read, values(read), unreadable)


def whole(output: Path, holes: tuple[int, ...] = ()) -> Path:
    made = table(output)
    for number in made.begin():
        compute(made, number, holes)
    made.merge()
    return output


# ── parts ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("part_size", "sizes"), [(1, [3] * 5 + [2]), (8, [6, 6, 5]), (50, [17])])
def test_parts_are_whole_batches(tmp_path: Path, part_size: int, sizes: list[int]) -> None:
    made = table(tmp_path / "t.npz", part_size=part_size)
    numbers = range(made.num_parts)
    assert [len(made.indices(number)) for number in numbers] == sizes
    assert [batch for number in numbers for batch in made.batches(number)] == list(range(6))


def test_wide_rows_make_smaller_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = 4 * 2 + 6 * 2 + 4
    monkeypatch.setattr(tables, "PART_BYTES", 7 * row)
    assert len(table(tmp_path / "t.npz", part_size=50).indices(0)) == 6
    monkeypatch.setattr(tables, "PART_BYTES", 1)  # a batch at least
    assert len(table(tmp_path / "t.npz", part_size=50).indices(0)) == 3


def test_an_interrupted_part_leaves_nothing(tmp_path: Path) -> None:
    made = table(tmp_path / "t.npz")
    made.begin()
    with pytest.raises(InterruptedError), made.part(0) as part:
        part.add(torch.arange(3), values(torch.arange(3)))
        raise InterruptedError
    assert [file.name for file in made.directory.iterdir()] == ["settings.json"]


# ── the file ────────────────────────────────────────────────────────────────────────────────────


def test_parquet_holds_the_values(tmp_path: Path) -> None:
    read = parquet.read_table(whole(tmp_path / "new" / "t.parquet"))
    expected = values(torch.arange(NUM_IMAGES))
    names = ["index", "path", "label", "codes", "says", "patches", "score"]
    assert read.column_names == names
    assert read["index"].to_pylist() == list(range(NUM_IMAGES))
    assert read["path"].to_pylist()[:2] == ["a/été.png", "a/1.png"]
    assert read["label"].to_pylist() == [i % 5 for i in range(NUM_IMAGES)]
    assert read["says"].to_pylist()[6] == ["code 6", "code 7", "code 8", "code 9"]
    for name, dtype in (("codes", np.uint16), ("patches", np.float16)):
        array = read[name].combine_chunks().to_numpy_ndarray()
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, expected[name].numpy().astype(dtype))
    np.testing.assert_array_equal(read["score"].to_numpy(), expected["score"].numpy())
    about = json.loads(read.schema.metadata[b"beit"])
    assert about == {
        "model": "m",
        "grid": [2, 2],
        "batch_size": 3,
        "images": 17,
        "rows": 17,
        "unreadable": [],
        "label_names": ["v", "w", "x", "y", "z"],
    }
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["t.parquet"]  # no parts left


def test_npz_holds_what_parquet_holds(tmp_path: Path) -> None:
    rows = parquet.read_table(whole(tmp_path / "t.parquet"))
    with np.load(whole(tmp_path / "t.npz"), allow_pickle=False) as arrays:
        assert [*arrays][:-1] == rows.column_names
        assert json.loads(str(arrays["about"])) == json.loads(rows.schema.metadata[b"beit"])
        assert arrays["codes"].dtype == np.uint16
        assert arrays["patches"].shape == (17, 2, 3)
        assert arrays["patches"].dtype == np.float16
        for name in ("index", "path", "label", "says", "score"):
            assert arrays[name].tolist() == rows[name].to_pylist(), name
        for name in ("codes", "patches"):
            tensors = rows[name].combine_chunks().to_numpy_ndarray()
            np.testing.assert_array_equal(arrays[name], tensors)


def test_npz_holds_no_time(tmp_path: Path) -> None:
    with zipfile.ZipFile(whole(tmp_path / "t.npz")) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.testzip() is None


def test_images_without_labels_have_no_such_column(tmp_path: Path) -> None:
    made = table(tmp_path / "t.parquet", Named(labels=False))
    for number in made.begin():
        compute(made, number)
    assert made.merge() == NUM_IMAGES
    assert "label" not in parquet.read_schema(tmp_path / "t.parquet").names


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_name_that_is_not_utf8_is_escaped(tmp_path: Path, suffix: str) -> None:
    made = table(tmp_path / f"t{suffix}", Named(first_name="caf\udce9.png"))
    for number in made.begin():
        compute(made, number)
    made.merge()
    if suffix == ".npz":
        with np.load(made.output) as arrays:
            assert arrays["path"][0] == r"caf\udce9.png"
    else:
        assert parquet.read_table(made.output)["path"][0].as_py() == r"caf\udce9.png"


# ── resuming ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_interruptions_and_order_do_not_change_a_byte(tmp_path: Path, suffix: str) -> None:
    whole(tmp_path / f"one{suffix}")
    made = table(tmp_path / f"two{suffix}")
    assert made.begin() == [0, 1, 2]
    compute(made, 2)
    (made.directory / ".part-000000.npz.partial").write_bytes(b"half")  # of a killed writer
    made = table(tmp_path / f"two{suffix}")
    assert made.begin() == [0, 1]
    assert made.status([0, 1]) == "17 images in 3 parts, 1 of them done before"
    for number in (1, 0):
        compute(made, number)
    assert made.merge() == NUM_IMAGES
    assert (tmp_path / f"two{suffix}").read_bytes() == (tmp_path / f"one{suffix}").read_bytes()
    assert len([*tmp_path.iterdir()]) == 2


def test_unreadable_images_have_no_row_even_where_they_fill_a_batch(tmp_path: Path) -> None:
    holes = (4, 12, 13, 14)
    read = parquet.read_table(whole(tmp_path / "t.parquet", holes=holes))
    read_indices = [i for i in range(NUM_IMAGES) if i not in holes]
    assert read["index"].to_pylist() == read_indices
    assert read["path"].to_pylist()[4] == "a/5.png"
    assert read["codes"].to_pylist() == [[i, i + 1, i + 2, i + 3] for i in read_indices]
    about = json.loads(read.schema.metadata[b"beit"])
    unreadable = [f"a/{i}.png: broken" for i in holes]
    assert (about["rows"], about["images"], about["unreadable"]) == (13, 17, unreadable)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (
            lambda output: table(output, about={"model": "n", "grid": (2, 2)}),
            "model was 'm', is now 'n'",
        ),
        (
            lambda output: table(output, batch_size=4),
            "batch_size was 3, is now 4",
        ),
        (
            lambda output: table(output, part_size=3),
            "batches_a_part was 2, is now 1",
        ),
        (lambda output: table(output, columns=COLUMNS[:1]), r"columns was \[\{'name'"),
        (
            lambda output: table(output, Named(first_name="b.png")),
            "checksum_of_images was",
        ),
    ],
)
def test_parts_of_another_table_are_refused(
    tmp_path: Path, other: Callable[[Path], RowTable], difference: str
) -> None:
    made = table(tmp_path / "t.npz")
    made.begin()
    compute(made, 0)
    with pytest.raises(
        ValueError, match=rf"t.npz.parts holds .* another table: {difference}.*; repeat .* delete"
    ):
        other(tmp_path / "t.npz").begin()
    assert table(tmp_path / "t.npz").begin() == [1, 2]


def test_parts_of_a_replaced_image_are_refused(tmp_path: Path) -> None:
    class Files(Named):
        def file(self, index: int) -> Path:
            return tmp_path / f"{index}.png"

    for index in range(NUM_IMAGES):
        (tmp_path / f"{index}.png").write_bytes(b"an image")
    made = table(tmp_path / "t.npz", Files())
    made.begin()
    compute(made, 0)
    assert table(tmp_path / "t.npz", Files()).begin() == [1, 2]
    (tmp_path / "4.png").write_bytes(b"another one")
    with pytest.raises(ValueError, match=r"parts of another table: checksum_of_images was"):
        table(tmp_path / "t.npz", Files()).begin()


# ── refusals ────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_text("mine")
    for refuses in (lambda: check_output(tmp_path / "t.npz"), table(tmp_path / "t.npz").begin):
        with pytest.raises(FileExistsError, match=r"t\.npz exists and is not overwritten"):
            refuses()
    made = table(tmp_path / "u.npz")
    for number in made.begin():
        compute(made, number)
    (tmp_path / "u.npz").write_text("written meanwhile")
    with pytest.raises(FileExistsError, match=r"u\.npz\.parts is left over and can be"):
        made.merge()
    assert (tmp_path / "u.npz").read_text() == "written meanwhile"


def test_other_formats_are_refused() -> None:
    with pytest.raises(ValueError, match=r"output is 'codes\.txt'; expected .* \.parquet or \.npz"):
        check_output("codes.txt")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "t.npz.parts").mkdir()
    (tmp_path / "t.npz.parts" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"t\.npz\.parts holds other files than the parts"):
        table(tmp_path / "t.npz").begin()


def test_other_files_in_the_folder_of_parts_stay(tmp_path: Path) -> None:
    made = table(tmp_path / "t.npz")
    for number in made.begin():
        compute(made, number)
    (made.directory / "notes.txt").touch()
    made.merge()
    assert [file.name for file in made.directory.iterdir()] == ["notes.txt"]


def test_a_table_with_parts_missing_is_not_merged(tmp_path: Path) -> None:
    made = table(tmp_path / "t.npz")
    made.begin()
    compute(made, 1)
    with pytest.raises(ValueError, match=r"lacks part-000000\.npz; part-000002\.npz; all proc"):
        made.merge()
    assert not (tmp_path / "t.npz").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a part", b"[]"])
def test_a_damaged_part_is_named(tmp_path: Path, content: bytes) -> None:
    made = table(tmp_path / "t.npz")
    for number in made.begin():
        compute(made, number)
    (made.directory / "part-000001.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"part-000001\.npz is damaged .*; delete it and run"):
        made.merge()


@pytest.mark.parametrize("content", ["{", "3", '["a"]'])
def test_damaged_settings_are_named(tmp_path: Path, content: str) -> None:
    made = table(tmp_path / "t.npz")
    made.begin()
    (made.directory / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"settings\.json cannot be read .*; repeat .* delete"):
        made.begin()


def test_sizes_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0 and 8"):
        table(tmp_path / "t.npz", batch_size=0)


# ── types ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("count", "name"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_smallest_unsigned_holds_the_last_number(count: int, name: str) -> None:
    assert smallest_unsigned(count) == name
    assert np.iinfo(name).max >= count - 1

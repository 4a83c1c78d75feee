import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from beit.data.source import UnreadableImage
from beit.rows.files import Column
from beit.rows.lines import Line, LineStream, json_lines, write_csv
from beit.rows.table import RowTable

COLUMNS = [
    Column("best", "uint8", (2,)),
    Column("called", "str", (2,), ("ant", "bee", "cät"), numbers="best"),
    Column("score", "float32"),
]
VALUES = {
    "best": torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1], [1, 2]]),
    "score": torch.tensor([0.1, 1e-8, 1 / 3, 1.0, 0.7]),
}


class Named:
    """Five images; one file name is not UTF-8."""

    labels: torch.Tensor | None = None
    class_names = None
    why_unlabelled = ""

    def __len__(self) -> int:
        return 5

    def name(self, index: int) -> str:
        return "\udcff.png" if index == 3 else f"{index}.png"


def test_an_error_is_found_by_a_name_with_a_colon() -> None:
    class Colons(Named):
        def name(self, index: int) -> str:
            return f"day: {index}.png"

    reason = str(UnreadableImage("day: 1.png", "broken: badly"))
    content = {"index": np.array([0]), "unreadable": np.array(json.dumps([reason]))}
    lines = json_lines(Colons(), range(2), [], content)
    assert [json.loads(line).get("error") for line in lines] == [None, "broken: badly"]


def fill(table: RowTable | LineStream) -> None:
    """In batches of two; image 1 cannot be read."""
    for number in table.begin():
        with table.part(number) as part:
            for batch in table.batches(number):
                indices = range(2 * batch, min(2 * batch + 2, 5))
                read = torch.tensor([index for index in indices if index != 1])
                unreadable = ["1.png: broken: badly"] if 1 in indices else []
                part.add(read, {name: rows[read] for name, rows in VALUES.items()}, unreadable)
    assert table.merge() == 4


def test_lines_hold_every_image_in_order(tmp_path) -> None:
    output = tmp_path / "rows.jsonl"
    fill(RowTable(output, Named(), COLUMNS, {}, batch_size=2, part_size=4))
    text = output.read_bytes().decode("ascii")
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[0] == {
        "path": "0.png",
        "index": 0,
        "best": [0, 2],
        "called": ["ant", "cät"],
        "score": 0.1,
    }
    assert lines[1] == {"path": "1.png", "index": 1, "error": "broken: badly"}
    assert lines[3]["path"] == "\\udcff.png"
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
    scores = np.array([lines[i]["score"] for i in (0, 2, 3, 4)], dtype=np.float32)
    assert scores.tolist() == VALUES["score"][[0, 2, 3, 4]].tolist()  # to the last bit
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]

    stream = io.StringIO()
    table = LineStream(stream, Named(), COLUMNS, batch_size=2)
    fill(table)
    assert stream.getvalue() == text
    assert [len(table.indices(number)) for number in table.begin()] == [2, 2, 1]


def test_csv_has_a_column_for_each_value(tmp_path: Path) -> None:
    def best(row: Line) -> Line:
        best, called = row.pop("best"), row.pop("called")
        return row | {"top": [{"class": b, "name": c} for b, c in zip(best, called, strict=True)]}

    for compose, names in (
        (dict, ["best_1", "best_2", "called_1", "called_2", "score"]),
        (best, ["score", "class_1", "name_1", "class_2", "name_2"]),
    ):
        output = tmp_path / f"{compose.__name__}.csv"
        fill(RowTable(output, Named(), COLUMNS, {}, batch_size=2, part_size=4, compose=compose))
        with output.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["path", "index", *names, "error"]
        assert [row[names[0]] for row in rows][1] == ""
        assert [row["error"] for row in rows] == ["", "broken: badly", "", "", ""]
    assert [row["name_2"] for row in rows] == ["cät", "", "bee", "bee", "cät"]


@pytest.mark.parametrize(("last", "start"), [("cat", b"path,"), ("cät", b"\xef\xbb\xbfpath,")])
def test_csv_has_a_byte_order_mark_only_if_its_text_needs_one(
    tmp_path: Path, last: str, start: bytes
) -> None:
    columns = [COLUMNS[0], replace(COLUMNS[1], texts=("ant", "bee", last)), COLUMNS[2]]
    fill(RowTable(tmp_path / "rows.csv", Named(), columns, {}, batch_size=2, part_size=4))
    assert (tmp_path / "rows.csv").read_bytes().startswith(start)


def test_csv_of_unreadable_images_alone() -> None:
    file = io.StringIO()
    write_csv(file, ['{"path": "a, b.png", "index": 0, "error": "no"}'])
    assert file.getvalue().splitlines() == ["path,index,error", '"a, b.png",0,no']


def test_labels_and_another_form() -> None:
    images = Named()
    images.labels = torch.tensor([4, 3, -1, 1, 0])
    images.class_names = ["ant", "b\udcff"]
    content = {"index": np.array([2]), "unreadable": np.array("[]"), "score": np.float16([0.1])}
    lines = json_lines(
        *(images, range(2, 4), [Column("score", "float16")], content),
        lambda row: {"where": row["path"], "is": row["label_name"], "tens": 10 * row["score"]},
    )
    assert [json.loads(line) for line in lines] == [
        {"where": "2.png", "is": None, "tens": 1.0},
        {"path": "\\udcff.png", "index": 3, "label": 1}
        | {"label_name": "b\\udcff", "error": "cannot be read"},
    ]


# ── a stream ────────────────────────────────────────────────────────────────────────────────────


def stream_to(stream: io.StringIO, batch_size: int) -> LineStream:
    return LineStream(stream, Named(), [Column("score", "float32")], batch_size=batch_size)


def test_lines_appear_when_their_batch_is_done() -> None:
    stream = io.StringIO()
    with stream_to(stream, 2).part(0) as part:
        part.add(torch.tensor([0, 1]), {"score": torch.tensor([0.5, 2.0])})
        assert stream.getvalue() == ""
    assert len(stream.getvalue().splitlines()) == 2


def test_a_part_is_a_batch() -> None:
    table = stream_to(io.StringIO(), 2)
    assert [[*table.batches(number)] for number in table.begin()] == [[0], [1], [2]]
    assert [len(table.indices(number)) for number in table.begin()] == [2, 2, 1]
    assert table.status(table.begin()) == "5 images"


def test_an_empty_batch_size_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        stream_to(io.StringIO(), 0)

"""The loop of every table, with a model that sums pixels."""

import io
import json
import re
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import beit
from beit.data.source import UnreadableImage
from beit.data.unreadable import TooManyUnreadable
from beit.data.views import EvalView
from beit.rows.compute import about_table, compute_table, fingerprint, summary
from beit.rows.files import Column
from beit.rows.lines import LineStream
from beit.rows.table import RowTable
from beit.run.device import DeviceConfig
from beit.run.launch import launch
from beit.tables.tokenize import Config

NUM_IMAGES = 11  # batches of 2, 2, ... and 1; parts of 4, 4 and 3
COLUMNS = [Column("total", "int64")]


class Pictures:
    """Image i has all pixels i; those in `holes` are unreadable."""

    labels: Tensor | None = None
    class_names = None
    why_unlabelled = ""

    def __init__(self, *holes: int) -> None:
        self.holes = holes

    def __len__(self) -> int:
        return NUM_IMAGES

    def name(self, index: int) -> str:
        return f"{index}.png"

    def image(self, index: int) -> Tensor:
        if index in self.holes:
            raise UnreadableImage(self.name(index), "broken")
        return torch.full((3, 4, 5), index, dtype=torch.uint8)


class Processes:
    """What the processes of a run share."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.barrier = threading.Barrier(world_size, timeout=30)
        self.value: Any = None


class Process:
    """A Fabric of one process; several of them run in threads."""

    def __init__(self, processes: Processes | None = None, rank: int = 0) -> None:
        self._processes = processes or Processes(1)
        self.world_size, self.global_rank = self._processes.world_size, rank
        self.is_global_zero, self.device = rank == 0, torch.device("cpu")

    def barrier(self) -> None:
        self._processes.barrier.wait()

    def broadcast(self, value: Any) -> Any:
        if self.is_global_zero:
            self._processes.value = value
        self.barrier()
        return self._processes.value

    def autocast(self) -> Any:
        return nullcontext()


class Totals:
    """The model: sums pixels, and keeps the images that it was given."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self._stop_at = stop_at

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        assert images.shape[1:] == (3, 2, 5)
        indices = images[:, 0, 0, 0].tolist()
        if self._stop_at in indices:
            raise InterruptedError
        self.batches.append(indices)
        return {"total": images.sum(dim=(1, 2, 3))}


def upper_half(image: Tensor) -> Tensor:
    return image[:, :2]


def row_table(output: Path, source: Pictures) -> RowTable:
    return RowTable(output, source, COLUMNS, {"model": "m"}, batch_size=2, part_size=5)


def compute(table: RowTable | LineStream, model: Totals, fabric: Any = None, **changes: Any) -> Any:
    options = {"num_workers": 0, "max_unreadable": 0.5} | changes
    return compute_table(fabric or Process(), table, upper_half, model, **options)


def totals(output: Path) -> list[tuple[int, int]]:
    with np.load(output) as arrays:
        return [*zip(arrays["index"].tolist(), arrays["total"].tolist(), strict=True)]


@pytest.fixture
def undisturbed(tmp_path: Path) -> Iterator[bytes]:
    source, output = Pictures(3), tmp_path / "undisturbed.npz"
    compute(row_table(output, source), Totals())
    yield output.read_bytes()


def test_every_image_has_its_row_computed_in_its_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, model, output = Pictures(), Totals(), tmp_path / "t.npz"
    assert compute(row_table(output, source), model) == (output, NUM_IMAGES)
    assert totals(output) == [(i, 30 * i) for i in range(NUM_IMAGES)]
    assert model.batches == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]
    shown = capsys.readouterr()
    assert re.search(r"\n11 rows, \d+ images/s\n$", shown.err)
    assert shown.err.startswith("11 images in 3 parts\n")
    assert "step 6/6" in shown.err


@pytest.mark.parametrize(("stop_at", "num_done"), [(1, 0), (5, 1), (10, 2)])
def test_an_interrupted_table_is_resumed_after_its_last_part(
    tmp_path: Path,
    undisturbed: bytes,
    stop_at: int,
    num_done: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, output = Pictures(3), tmp_path / "t.npz"
    with pytest.raises(InterruptedError):
        compute(row_table(output, source), Totals(stop_at))
    assert not output.exists()
    capsys.readouterr()
    model = Totals()
    assert compute(row_table(output, source), model).rows == 10
    assert model.batches[0][0] == 4 * num_done
    assert output.read_bytes() == undisturbed
    assert (f", {num_done} of them done before" in capsys.readouterr().err) == (num_done > 0)


def test_a_table_with_all_parts_is_only_merged(
    tmp_path: Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = Pictures(3), tmp_path / "t.npz"
    with monkeypatch.context() as patched:
        patched.setattr(RowTable, "merge", lambda table: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            compute(row_table(output, source), Totals())
    model = Totals()
    assert compute(row_table(output, source), model) == (output, 10)
    assert model.batches == []
    assert output.read_bytes() == undisturbed


def test_two_processes_share_the_parts(tmp_path: Path, undisturbed: bytes) -> None:
    source, output = Pictures(3), tmp_path / "t.npz"
    processes, models = Processes(2), [Totals(), Totals()]
    results: dict[int, Any] = {}

    def work(rank: int) -> None:
        table, fabric = row_table(output, source), Process(processes, rank)
        results[rank] = compute(table, models[rank], fabric)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: (output, 10), 1: (output, None)}
    assert models[0].batches == [[0, 1], [2], [8, 9], [10]]  # parts 0 and 2
    assert models[1].batches == [[4, 5], [6, 7]]
    assert output.read_bytes() == undisturbed


def test_unreadable_images_are_reported_even_if_they_fill_a_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, model, output = Pictures(1, 4, 5), Totals(), tmp_path / "t.npz"
    assert compute(row_table(output, source), model) == (output, 8)
    assert [index for index, _ in totals(output)] == [0, 2, 3, 6, 7, 8, 9, 10]
    assert model.batches == [[0], [2, 3], [6, 7], [8, 9], [10]]
    shown = capsys.readouterr()
    reports = [line for line in shown.err.splitlines() if line.startswith("unreadable")]
    assert reports == [f"unreadable, left out: {index}.png: broken" for index in (1, 4, 5)]
    assert "step 6/6" in shown.err  # empty batches are steps too
    assert "8 rows, " in shown.err
    assert ", 3 unreadable, " in shown.err
    with np.load(output) as arrays:
        unreadable = json.loads(str(arrays["about"]))["unreadable"]
    assert unreadable == ["1.png: broken", "4.png: broken", "5.png: broken"]


def test_too_many_unreadable_images_stop_the_work_even_over_several_starts(tmp_path: Path) -> None:
    source, output = Pictures(1, 9), tmp_path / "t.npz"  # in the first and the last part
    for _ in range(2):
        with pytest.raises(ValueError, match=r"2 of 11 images cannot be read.*raise max_unread"):
            compute(row_table(output, source), Totals(), max_unreadable=0.1)
        assert sorted(file.name for file in (tmp_path / "t.npz.parts").glob("part-*")) == [
            *("part-000000.npz", "part-000001.npz")
        ]
    assert not output.exists()
    model = Totals()
    assert compute(row_table(output, source), model, max_unreadable=0.2).rows == 9
    assert model.batches == [[8], [10]]


def test_a_table_without_any_row_is_refused(tmp_path: Path) -> None:
    every, output, stream = Pictures(*range(NUM_IMAGES)), tmp_path / "t.npz", io.StringIO()
    for table in (row_table(output, every), LineStream(stream, every, COLUMNS, batch_size=4)):
        with pytest.raises(
            TooManyUnreadable, match=r"none of 11 images can be read: 0\.png: broken"
        ):
            compute(table, Totals(), max_unreadable=1.0)
    assert len(stream.getvalue().splitlines()) == NUM_IMAGES  # with their errors
    assert not output.exists()
    assert compute(row_table(output, every), Totals(), max_unreadable=1.0, empty=True).rows == 0


def test_lines_go_to_the_stream_and_the_rest_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, stream = Pictures(2), io.StringIO()
    table = LineStream(stream, source, COLUMNS, batch_size=4)
    assert compute(table, Totals()) == (None, 10)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[1] == {"path": "1.png", "index": 1, "total": 30}
    assert lines[2] == {"path": "2.png", "index": 2, "error": "broken"}
    assert len(lines) == NUM_IMAGES
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "unreadable, left out: 2.png: broken" in shown.err
    assert "10 rows, 1 unreadable, " in shown.err

    compute(LineStream(stream, source, COLUMNS, batch_size=4), Totals(), show_progress=False)
    assert capsys.readouterr().err == "unreadable, left out: 2.png: broken\n"


def test_summary_counts_the_images_of_this_start(tmp_path: Path) -> None:
    source, output = Pictures(), tmp_path / "t.npz"
    table = row_table(output, source)
    assert summary(table, 9, [0, 2], 0.5) == "9 rows, 2 unreadable, 14 images/s"
    assert summary(table, 1, [0], 4.0) == "1 row, 10 unreadable, 1 images/s"
    assert summary(table, 11, [], 0.5) == "11 rows"
    stream = LineStream(io.StringIO(), source, COLUMNS, batch_size=2)
    assert summary(stream, 11, stream.begin(), 2.0) == "11 rows, 5.5 images/s"


# ── what the values depend on ───────────────────────────────────────────────────────────────────


def test_facts_common_to_all_tables_frame_those_of_the_verb() -> None:
    device = DeviceConfig(accelerator="cpu")
    config = Config("m.safetensors", "images", "t.npz", limit=7, device=device)
    model, view, details = (
        nn.Linear(3, 2),
        EvalView((4, 6), 0.9),
        {"grid": (2, 3), "num_heads": None},
    )
    about: dict[str, Any] = about_table("tokenize", config, view, model, launch(device), details)
    assert list(about.items()) == [
        ("beit", beit.__version__),
        ("verb", "tokenize"),
        ("model", "m.safetensors"),
        ("kind", "Linear"),
        ("weights", fingerprint(model)),
        ("grid", (2, 3)),
        ("num_heads", None),
        ("crop_ratio", 0.9),
        ("data", "images"),
        ("limit", 7),
        ("device", "cpu"),
        ("precision", "32-true"),
        ("compile", False),
    ]


def test_fingerprint_depends_on_the_weights_only() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))  # with a counter of no dimension
    twin = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert fingerprint(model) != fingerprint(twin)
    twin.load_state_dict(model.state_dict())
    assert fingerprint(model) == fingerprint(twin)
    assert len(fingerprint(model)) == 16
    with torch.no_grad():
        twin[0].bias[1].add_(1e-7)
    assert fingerprint(model) != fingerprint(twin)

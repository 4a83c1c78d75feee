"""Trackers show what the logs of a run hold, without doubles after a kill, and never harm it."""

import io
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from beit.draw.report import Gallery, Picture, Section, write_report
from beit.run.directory import RunDirectory
from beit.run.log import read_log
from beit.run.mirror import Logs, pictures_in
from beit.run.tracking import Tracking, tracking
from beit.tokenizer import vqkd

SRC = str(Path(__file__).parents[2] / "src")
SETTINGS = {"model": {"depth": 3}, "data": {"train": "shapes://9"}}
# A run with a check before its first step, two lines of one step, a warning, and no number.
METRICS = [
    {"step": 0, "epoch": 0.0, "knn_cls": 0.1},
    {"step": 2, "epoch": 0.5, "rate": 1e-3, "loss": 0.1},
    {"step": 2, "epoch": 0.5, "val_loss": 0.3},
    {"step": 3, "warning": "few codes are in use"},
    {"step": 4, "epoch": 1.0, "rate": 2e-3, "loss": None},
]
SPEED = [
    {"step": 2, "time": 1e9, "wait_share": 0.25},
    {"step": 4, "time": 1e9 + 5, "wait_share": 0.5},
]


@pytest.fixture
def directory(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = RunDirectory.create(tmp_path / "run", SETTINGS, {"verb": "pretrain"})
    write(run, METRICS, SPEED)
    return run


def write(run, metrics, speed=()):
    for file, records in ((run.metrics_file, metrics), (run.speed_file, speed)):
        file.write_text("".join(json.dumps(record) + "\n" for record in records))


def mirror(run, name, lines):
    """Run the process of a tracker; return its messages."""
    return subprocess.run(
        [sys.executable, "-m", "beit.run.mirror", str(run.path), name],
        input=lines,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": SRC},
        check=True,
    ).stdout


def expected(metrics, speed):
    """Return the numbers of logs by (step, name)."""
    values = {}
    for prefix, records in (("", metrics), ("speed/", speed)):
        for record in records:
            names = record.keys() - {"step", "time"}
            numbers = {k: record[k] for k in names if type(record[k]) in (int, float)}
            values |= {(record["step"], prefix + name): v for name, v in numbers.items()}
    return values


# Of each tracker: read the (step, name) and the value of each point, in their order.


def in_tensorboard(run):
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    files = sorted((run.path / "tensorboard").iterdir())
    events = [event for file in files for event in LegacyEventFileLoader(str(file)).Load()]
    values = [(e.step, v) for e in events for v in e.summary.value]
    return [((s, v.tag), v.simple_value) for s, v in values if v.HasField("simple_value")]


def in_wandb(run):
    """Read the offline files of all starts: protocol buffers in a log as LevelDB writes them."""
    from wandb.proto.wandb_internal_pb2 import Record

    values = []
    for file in sorted(run.path.glob("wandb/offline-run-*/*.wandb")):
        for data in log_records(file.read_bytes()):
            history = Record.FromString(data).history
            names = ((i.key or ".".join(i.nested_key), i.value_json) for i in history.item)
            items = {name: json.loads(value) for name, value in names}
            step = items.pop("_step", history.step.num)
            numbers = {k: v for k, v in items.items() if k[0] != "_" and isinstance(v, int | float)}
            values += [((step, name), value) for name, value in numbers.items()]
    return values


def log_records(data, block=1 << 15):
    """Join the parts of each record: 4 bytes of checksum, 2 of length, 1 of kind, the content."""
    place, record = 7, b""  # after the file's header
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, last; the others are 2, first, and 3, middle
            yield record
            record = b""


def in_mlflow(run):
    from mlflow import MlflowClient

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = MlflowClient(tracking_uri=(run.path / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("beit").experiment_id])
    assert found.data.params == {"model.depth": "3", "data.train": "shapes://9"}
    histories = [client.get_metric_history(found.info.run_id, n) for n in found.data.metrics]
    return [((m.step, m.key), m.value) for history in histories for m in history]


def in_trackio(run):
    """Read the local store in a process of its own: trackio reads TRACKIO_DIR when imported."""
    code = """
import json
from trackio.sqlite_storage import SQLiteStorage
(name,) = {run["name"] for run in SQLiteStorage.get_run_records("beit")}
print("\\n" + json.dumps(SQLiteStorage.get_logs("beit", name)))
"""
    read = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows = json.loads(read.stdout.strip().splitlines()[-1])
    return [
        ((row["step"], name), value)
        for row in rows
        for name, value in row.items()
        if isinstance(value, float)
    ]


READERS = {
    "tensorboard": in_tensorboard,
    "wandb": in_wandb,
    "mlflow": in_mlflow,
    "trackio": in_trackio,
}
every_tracker = pytest.mark.parametrize("name", READERS)


def same(found, metrics, speed):
    """Assert that a record has each value of the logs once, to float32."""
    values = expected(metrics, speed)
    assert sorted(place for place, _ in found) == sorted(values)
    np.testing.assert_allclose([dict(found)[p] for p in values], list(values.values()), rtol=1e-7)


@every_tracker
def test_a_record_equals_the_logs(name, directory):
    pytest.importorskip(name)
    assert mirror(directory, name, "2\n3\nend\n") == ""
    same(READERS[name](directory), METRICS, SPEED)


@every_tracker
def test_a_resumed_run_continues_its_record_without_doubles(name, directory):
    """Killed after step 3, and resumed after step 2, before its validation."""
    pytest.importorskip(name)
    write(directory, METRICS[:-1], SPEED[:1])
    assert mirror(directory, name, "2\n3\n") == ""
    write(directory, METRICS, SPEED)
    assert mirror(directory, name, "3\n4\nend\n") == ""
    assert mirror(directory, name, "end\n") == ""  # resumed at its end: nothing is new
    same(READERS[name](directory), METRICS, SPEED)


def test_a_row_waits_for_the_lines_of_its_step(directory):
    write(directory, METRICS[:2])
    logs = Logs(directory)
    assert logs.rows(1) == [(0, None, {"epoch": 0.0, "knn_cls": 0.1}, [])]
    with directory.metrics_file.open("a") as file:
        file.write('{"step": 2, "val_loss": 0.3}\n{"step": 3, "val')
        file.flush()
        (row,) = logs.rows(3)
        assert row.values == {"epoch": 0.5, "rate": 1e-3, "loss": 0.1, "val_loss": 0.3}
        file.write('_loss": 0.2}\n')
        file.flush()
        assert logs.rows(3) == [(3, None, {"val_loss": 0.2}, [])]


def png():
    file = io.BytesIO()
    Image.new("RGB", (5, 3), "red").save(file, "PNG")
    return file.getvalue()


def report(path, alt):
    items = [Gallery("Some", [Picture("a", alt, png(), "image/png")])]
    return write_report(path, "Title", [Section("One", items=items)], {})


def test_pictures_of_the_report_are_found_again(tmp_path):
    page = report(tmp_path / "report.html", 'two <b> & "quotes"')
    assert pictures_in(page) == [('two <b> & "quotes"', png())]


@every_tracker
def test_the_report_is_passed_on(name, directory):
    pytest.importorskip(name)
    report(directory.report_file, "tokens")
    assert mirror(directory, name, "end\n") == ""
    folder = directory.path if name != "trackio" else directory.path.parent / "trackio"
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "report.html"]
    files += folder.rglob("artifacts/report.html")
    held = [file.read_bytes() for file in files]
    if name == "tensorboard":  # it shows no pages
        assert any(png() in content for content in held)
    else:
        assert any(b"<title>Title" in content for content in held)
        assert any(content.startswith(b"\x89PNG") for content in held)


def test_a_tracker_that_fails_is_left_out_with_one_message(directory):
    pytest.importorskip("tensorboard")
    (directory.path / "tensorboard").write_text("not a folder")
    said = mirror(directory, "tensorboard", "2\n3\nend\n")
    assert said.count("\n") == 1
    assert said.startswith("warning: tensorboard is left out from now on: ")


@pytest.mark.parametrize(
    ("track", "message"),
    [
        ("wandb,tensorbord", "names 'tensorbord'; expected some of .* mean tensorboard?"),
        ("mlflow", "whose package is not installed: pip install mlflow-skinny"),
    ],
)
def test_a_tracker_that_is_not_there_is_refused(track, message, monkeypatch):
    monkeypatch.setattr("beit.run.tracking.find_spec", lambda name: None if name == "mlflow" else 1)
    with pytest.raises(ValueError, match=message):
        tracking(track)


def test_no_tracker_no_callback():
    assert tracking("") == []


@pytest.fixture
def journal(directory):
    return Told(directory)


class Told:
    """What `Tracking` sees of a journal, and the lines that it shows."""

    def __init__(self, directory):
        self.directory, self.step, self.recorded, self.messages = directory, 2, {"loss": 0.1}, []
        self.fabric = SimpleNamespace(is_global_zero=True)

    def message(self, text):
        self.messages.append(text)


def test_a_training_tells_the_process_its_steps_and_waits_for_the_end(journal):
    pytest.importorskip("tensorboard")
    (callback,) = tracking("tensorboard")
    journal.recorded = {}
    callback.after_step(journal)
    assert callback._process is None  # nothing was logged
    journal.recorded = {"loss": 0.1}
    callback.after_step(journal)
    callback.after_finish(journal)
    assert callback._process.returncode == 0
    assert journal.messages == []
    same(in_tensorboard(journal.directory), METRICS, SPEED)


def test_other_processes_track_nothing(journal):
    callback, journal.fabric.is_global_zero = Tracking(["tensorboard"]), False
    callback.after_step(journal)
    callback.after_finish(journal)
    assert callback._process is None


def test_a_process_that_dies_is_named_once(journal, monkeypatch):
    monkeypatch.setattr("beit.run.tracking.sys.executable", "/bin/false")
    callback = Tracking(["wandb", "mlflow"])
    callback.after_step(journal)
    callback._process.wait()
    callback.after_step(journal)
    callback.after_finish(journal)
    (message,) = journal.messages
    log = journal.directory.path / "tracking.log"
    assert message == (
        "warning: wandb, mlflow left out from now on: their process ended with exit code 1; "
        f"see {log}"
    )


def test_a_process_that_hangs_never_holds_the_training_up(journal, monkeypatch, tmp_path):
    hangs = tmp_path / "hangs"
    hangs.write_text("#!/bin/sh\nexec sleep 1000\n")
    hangs.chmod(0o755)
    monkeypatch.setattr("beit.run.tracking.sys.executable", str(hangs))
    monkeypatch.setattr("beit.run.tracking.END_SECONDS", 0.1)
    callback = Tracking(["trackio"])
    for _ in range(40_000):  # more than the pipe holds
        callback.after_step(journal)
    callback.after_finish(journal)
    assert callback._process.returncode == -9
    assert ["they were not done 0.1 seconds" in text for text in journal.messages] == [True]


def test_a_whole_training_is_mirrored_and_its_numbers_stay(tmp_path, tokenizer_config, records):
    pytest.importorskip("tensorboard")
    plain, tracked = (tokenizer_config(tmp_path / name) for name in ("plain", "tracked"))
    vqkd.run(plain)
    vqkd.run(replace(tracked, run=replace(tracked.run, track="tensorboard")))
    assert records(tmp_path / "plain") == records(tmp_path / "tracked")
    run = RunDirectory(tmp_path / "tracked")
    same(in_tensorboard(run), read_log(run.metrics_file), read_log(run.speed_file))

import json
import math
import os
from functools import partial
from pathlib import Path

import pytest

from beit.run.log import MetricsLog, read_log


def write(path: Path, steps: range, resume_step: int | None = None) -> None:
    with MetricsLog(path, resume_step) as log:
        for step in steps:
            log.write({"step": step, "loss": 0.1 / 3**step})


def test_records_come_back_to_the_bit_and_at_once(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.write({"step": 1, "loss": 0.1 + 0.2, "codes": 7, "note": "Übung"})
        assert read_log(tmp_path / "metrics.jsonl") == [
            {"step": 1, "loss": 0.1 + 0.2, "codes": 7, "note": "Übung"}
        ]
        log.write({"step": 2, "norm": math.inf, "loss": math.nan})
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[1]) == {"step": 2, "norm": None, "loss": None}


def test_a_resumed_log_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    write(whole, range(1, 9))
    write(cut, range(1, 7))
    with cut.open("a") as file:
        file.write('{"step": 7, "lo')  # the process was killed while it wrote
    write(cut, range(5, 9), resume_step=4)
    assert cut.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.jsonl", "whole.jsonl"]


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert read_log(path) == [{"step": 1}]
    write(path, range(0), resume_step=9)
    assert path.read_text() == '{"step": 1}\n'


def test_no_path_is_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with MetricsLog(None) as log:
        log.write({"step": 1})
    assert not list(tmp_path.iterdir())


def test_foreign_lines_and_other_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nloss = 3\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl line 2 is not JSON"):
        MetricsLog(path, resume_step=5)
    with pytest.raises(FileExistsError, match=r"metrics.jsonl has lines of another run"):
        MetricsLog(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1 is not a record"):
        read_log(path)


def test_a_record_without_a_step_is_refused(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        with pytest.raises(ValueError, match="needs an integer 'step', got None"):
            log.write({"loss": 1.0})


def test_a_log_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is not text"):
        read_log(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 1 is not JSON"):
        read_log(tmp_path / "metrics.jsonl")


def test_lines_that_cannot_be_written_come_with_the_next_ones(tmp_path: Path, caplog) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    with MetricsLog(path) as log:
        log.write({"step": 1})
        log.write({"step": 2})
        path.unlink()
        log.write({"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    assert [record.message for record in caplog.records] == [
        f"{path}: No space left on device; its lines are kept, and written as soon as possible"
    ]


def test_lines_that_a_disk_has_lost_are_written_again_once(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"step": 1})
        log.flush()
        log.write({"step": 2})
        with monkeypatch.context() as patched, pytest.raises(OSError, match=r"Stale.*metrics"):
            patched.setattr(os, "fsync", partial(failing, 116))
            log.flush()
        log.write({"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_lines_that_are_lost_at_the_end_are_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", partial(failing, 5))
    with pytest.raises(OSError, match=r"Input/output.*metrics"):
        with MetricsLog(tmp_path / "metrics.jsonl") as log:
            log.write({"step": 1})
    with pytest.raises(KeyError), MetricsLog(None, 1), MetricsLog(tmp_path / "other.jsonl"):
        raise KeyError  # and this one stays


def failing(number: int, handle: int) -> None:
    raise OSError(number, os.strerror(number))

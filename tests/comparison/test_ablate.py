"""Whole ablations: results, failures, repetition after a kill.

Most tests replace training by a short script that writes the files of a finished run; the slow
ones at the end train, and kill.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beit import cli
from beit.command import presets
from beit.comparison import ablate, execution
from beit.comparison.plan import unfold
from beit.comparison.planned_runs import Chain, PlannedRun, planned_chains
from beit.comparison.records import Record, hours_of_training, read_metrics

# Writes the files of a finished run; fails if one of its arguments is `failing`.
STAND_IN = """
import json, os, pathlib, sys
name, folder, verb, failing, *arguments = sys.argv[1:]
path = pathlib.Path(folder)
if failing in arguments:
    raise SystemExit("beit: error: told to fail")
path.mkdir(parents=True, exist_ok=True)
seed = int(arguments[-1].partition("=")[2])
about = {"commit": "c0ffee", "torch": "2"}
if verb == "probe":
    row = {"features": "cls", "paper": True, "linear": 0.5 + seed / 10, "knn": 0.25}
    record = {"rows": [row], "attentive": [], "environment": about}
    (path / "probe.json").write_text(json.dumps(record))
else:
    (path / "environment.json").write_text(json.dumps(about))
    (path / "metrics.jsonl").write_text(json.dumps({"step": 1, "val_loss": 3.0 + seed}) + "\\n")
    (path / "speed.jsonl").touch()
    (path / "config.yaml").write_text("run: {}")
    (path / "weights.safetensors").touch()
(path / "report.html").write_text("done")
"""


def stand_in(monkeypatch: pytest.MonkeyPatch, failing: str = "nothing") -> list[str]:
    """Replace all runs by the script; return the names of those started, in order."""
    started = []

    def command(run: PlannedRun, output: Path, launcher: str) -> list[str]:
        started.append(run.name)
        folder = str(run.directory(output))
        call = [sys.executable, "-S", "-c", STAND_IN, run.name, folder, run.stage.verb, failing]
        return [*call, *run.arguments]

    monkeypatch.setattr(execution, "command", command)
    return started


def chains_of(file: Path) -> list[Chain]:
    return planned_chains(unfold(presets.read_yaml(file), str(file), {}))


def mtimes(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.head_layers: 0", "modle.head_layers: 0", "cell 'off', stage 'pretrain': unkn.*did"),
        ("head_layers: 0", "head_layers: x", "cell 'off', stage 'pretrain': .*Expected int"),
        ("preset: shapes-tiny, model", "preset: shape-tiny, model", "there is no preset.*did you"),
        ("run.seed: 0", "run.output: a", "run.output cannot be set in a plan"),
        ("verb: train-tokenizer", "verb: train-tokeniser", "did you mean train-tokenizer"),
        ("figures:", "figrues:", "unknown field 'figrues'; did you mean figures?"),
    ],
)
def test_a_bad_plan_is_refused_before_anything_is_written(
    plan: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    plan.write_text(plan.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        ablate.run(ablate.Config(str(plan), str(tmp_path / "out")))
    assert str(plan) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_plans_are_found_by_name_and_directories_not_taken(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"did you mean table5-small\?"):
        ablate.plan_file("tabel5-small")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter").touch()
    with pytest.raises(FileExistsError, match="holds no ablation; name another"):
        ablate.run(ablate.Config(str(plan), str(tmp_path / "out")))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start it without torchrun"):
        ablate.run(ablate.Config(str(plan), str(tmp_path / "other")))


def test_a_table_and_no_run_twice(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = stand_in(monkeypatch)
    output = tmp_path / "out"
    result = ablate.run(ablate.Config(str(plan), str(output), jobs=2))
    assert result.failures == {}
    assert len(started) == len(set(started)) == 9  # one tokenizer; four times pretraining and probe
    assert result.table.rows == [
        ["off", "55.0 ± 7.1", "3.50 ± 0.71", "2"],
        ["one block", "55.0 ± 7.1", "3.50 ± 0.71", "2"],
    ]
    page = (output / "table.md").read_text()
    assert "- Commit: c0ffee" in page
    assert "| off | 0 |" in page  # the setting that differs
    assert (output / "plot-1.svg").read_text().startswith("<svg")
    assert "Two heads" in (output / "report.html").read_text()
    rows = list(csv.DictReader((output / "runs.csv").read_text().splitlines()))
    assert [row["Loss"] for row in rows] == ["3.0", "3.0", "4.0", "4.0"]
    assert rows[0]["tokenizer"] == rows[3]["tokenizer"]

    before, table = mtimes(output / "runs"), (output / "table.csv").read_bytes()
    removed = chains_of(plan)[1].runs["probe"].directory(output)
    (removed / "report.html").unlink()
    capsys.readouterr()
    ablate.run(ablate.Config(str(plan), str(output), dry_run=True))
    assert capsys.readouterr().out.count("to do  ") == 1
    started.clear()
    ablate.run(ablate.Config(str(plan), str(output)))
    assert started == [removed.name]
    after = mtimes(output / "runs")
    assert {name for name in after if after[name] != before.get(name)} == {
        str(removed / name) for name in ("probe.json", "report.html")
    }
    assert (output / "table.csv").read_bytes() == table


def test_another_machine_goes_on_from_what_was_measured(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = stand_in(monkeypatch)
    here, there = tmp_path / "here", tmp_path / "there"
    expected = ablate.run(ablate.Config(str(plan), str(here), jobs=2)).table
    lines = (here / "measured.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 9
    # The probe of the second row was not measured: it needs the backbone and its tokenizer again.
    runs = chains_of(plan)[1].runs
    others = [line for line in lines if runs["probe"].name not in line]
    there.mkdir()
    (there / "measured.jsonl").write_text("".join(others))
    started.clear()
    assert ablate.run(ablate.Config(str(plan), str(there))).table == expected
    assert started == [runs[stage].name for stage in ("tokenizer", "pretrain", "probe")]
    assert (there / "measured.jsonl").read_text() == "".join(lines)
    page = [(output / "table.md").read_text() for output in (here, there)]
    assert page[0] == page[1]


def test_a_stage_with_its_own_seed_has_no_deviation(plan: Path) -> None:
    plan.write_text(plan.read_text().replace("Loss: pretrain", "Loss: tokenizer"))
    unfolded, chains = unfold(presets.read_yaml(plan), str(plan), {}), chains_of(plan)
    metrics = {"val_loss": 3.0, "linear.paper": 0.5}
    records = {run.name: Record(metrics, 0.0, {}) for c in chains for run in c.runs.values()}
    cells, _ = ablate.measure(unfolded, chains, records)
    assert [cell.once for cell in cells] == [["Loss"], ["Loss"]]


def test_a_line_that_is_no_record_is_named(plan: Path, tmp_path: Path) -> None:
    (tmp_path / "measured.jsonl").write_text('{"run": "probe-1", "metrics": {}}\n')
    with pytest.raises(ValueError, match=r"measured.jsonl, line 1: expected a run with metrics"):
        ablate.run(ablate.Config(str(plan), str(tmp_path)))


def test_a_failing_cell_does_not_stop_the_others(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, failing="--model.head_layers=0")
    output = tmp_path / "out"
    assert cli.main(["ablate", str(plan), "--output", str(output)]) == 1
    page = (output / "table.md").read_text()
    assert "| off | – | – | 0 of 2 |" in page
    assert "| one block | 55.0 ± 7.1 |" in page
    bad = chains_of(plan)[0].runs
    assert f"`{bad['pretrain'].name}`: exit code 1: told to fail" in page
    assert f"`{bad['probe'].name}`: needs {bad['pretrain'].name}, which failed" in page
    assert f"failed: {bad['pretrain'].name}" in capsys.readouterr().out


def test_a_metric_that_no_run_has_is_named(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    plan.write_text(plan.read_text().replace("pretrain.val_loss", "pretrain.val_los"))
    result = ablate.run(ablate.Config(str(plan), str(tmp_path / "out"), jobs=3))
    assert list(result.failures) == ["Loss"]
    assert "has no metric val_los; did you mean val_loss" in result.failures["Loss"]


# ── metrics of runs ─────────────────────────────────────────────────────────────────────────────


def test_metrics_of_a_training_are_the_last_or_the_best(tmp_path: Path) -> None:
    lines = [{"step": 1, "val_top1": 0.4, "loss": 2}, {"step": 2, "val_top1": 0.6, "val_loss": 1}]
    lines += [{"step": 3, "val_top1": 0.5, "val_loss": 3, "loss": None}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    (tmp_path / "config.yaml").write_text("keep: last")
    last = read_metrics(tmp_path)
    assert (last["val_top1"], last["val_loss"]) == (0.5, 3)
    (tmp_path / "config.yaml").write_text("keep: best")
    best = read_metrics(tmp_path)
    assert (best["val_top1"], best["val_loss"]) == (0.6, 1)
    (tmp_path / "metrics.jsonl").write_text(text.replace("top1", "miou"))  # of a segmenter
    best = read_metrics(tmp_path)
    assert (best["val_miou"], best["val_loss"]) == (0.6, 1)


def test_hours_of_a_training_are_those_of_its_steps(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("optim: {batch_size: 36}")
    lines = [{"step": 100, "images_per_second": 1.0}, {"step": 150, "images_per_second": 0.25}]
    (tmp_path / "speed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert hours_of_training(tmp_path) == 1.0 + 2.0


def test_metrics_of_a_probe_have_the_score_and_the_features_in_their_names(tmp_path: Path) -> None:
    rows = [
        {"features": "cls", "paper": False, "linear": 0.5, "knn": 0.25},
        {"features": "mean", "paper": True, "linear": 0.75, "knn": None},
    ]
    attentive = [{"features": "attentive", "attentive": 0.8}]
    record = {"rows": rows, "attentive": attentive, "environment": {}}
    (tmp_path / "probe.json").write_text(json.dumps(record))
    assert read_metrics(tmp_path) == {
        "linear.cls": 0.5,
        "knn.cls": 0.25,
        "linear.mean": 0.75,
        "linear.paper": 0.75,
        "attentive": 0.8,
    }


def test_an_evaluation_is_a_stage(tmp_path: Path) -> None:
    content = {
        "stages": {"finetune": {"preset": "cifar10-ft-cpu"}, "evaluate": {"model": "$finetune"}},
        "cells": {"a": {"evaluate.data": "shapes://8", "evaluate.corruptions": "all"}},
        "figures": {"Error, %": "evaluate.mean_corruption_error"},
    }
    (chain,) = planned_chains(unfold(content, "plan", {}))
    evaluation = chain.runs["evaluate"]
    assert evaluation.references == {"model": chain.runs["finetune"].name}
    assert evaluation.arguments[-1] == "--seed=0" and not evaluation.trains
    (tmp_path / "evaluate.json").write_text('{"figures": {"mean_corruption_error": 0.25}}')
    assert read_metrics(tmp_path) == {"mean_corruption_error": 0.25}


# ── with training ───────────────────────────────────────────────────────────────────────────────

SHORT = {
    "tokenizer.data": {"train": "shapes://96?size=32", "validation": "shapes://32?size=32&seed=1"},
    "tokenizer.optim.epochs": 1,
    "pretrain.data": {"train": "shapes://96?size=32", "validation": "shapes://32?size=32&seed=1"},
    "pretrain.optim.epochs": 3,
    "pretrain.run": {"log_every": 1, "checkpoint_every": 2},
    "probe": {"limit": 64, "test_limit": 32, "epochs": 2},
}


def start(plan: Path, output: Path, jobs: int) -> subprocess.Popen[bytes]:
    call = [sys.executable, "-m", "beit", "ablate", str(plan), "--output", str(output)]
    call += ["--jobs", str(jobs), "--set", json.dumps(SHORT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )


def finish(plan: Path, output: Path, jobs: int) -> None:
    process = start(plan, output, jobs)
    _, errors = process.communicate(timeout=1800)
    assert process.returncode == 0, errors.decode()


def kill_when(plan: Path, output: Path, pattern: str, lines: int) -> None:
    """Start the command, and kill it once so many lines are in a file, or as many files there."""
    process = start(plan, output, 1)
    deadline = time.monotonic() + 1800
    while process.poll() is None and time.monotonic() < deadline:
        if sum(file.read_text().count("\n") for file in output.glob(pattern)) >= lines:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors.decode()


@pytest.mark.slow
def test_killed_and_repeated_ends_with_the_same_table(plan: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(plan, whole, jobs=2)
    kill_when(plan, killed, "runs/pretrain-*/metrics.jsonl", 4)  # in the first pretraining
    (tokenizer,) = killed.glob("runs/tokenizer-*")
    before = mtimes(tokenizer)
    kill_when(plan, killed, "logs/probe-*.log", 1)  # in or before the first probe
    finish(plan, killed, jobs=1)
    assert mtimes(tokenizer) == before  # the stage that all share ran once
    assert len(list(killed.glob("runs/*"))) == 9
    for name in ("table.csv", "runs.csv", "plot-1.svg", "plot-2.svg"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    # Below stands the environment: the sources may have been edited between two runs.
    pages = [
        (folder / "table.md").read_text().partition("- Seeds")[0] for folder in (whole, killed)
    ]
    assert pages[0] == pages[1]

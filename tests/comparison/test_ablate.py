"""Plans, the runs they unfold to, and what becomes of those that are killed or fail.

Most tests put a short script in the place of training, which leaves the files of a finished run;
the slow ones at the end train, and kill.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from beit.command import presets
from beit.comparison import ablate
from beit.comparison.plan import unfold

TINY = """
title: Two heads
seeds: [0, 1]
stages:
  tokenizer: {verb: train-tokenizer, preset: shapes-tiny, run.seed: 0}
  pretrain: {preset: shapes-tiny, tokenizer: $tokenizer}
  probe: {preset: shapes-tiny, model: $pretrain}
cells:
  "off": {pretrain.model.head_layers: 0}
  one block: {}
figures: {"Linear, %": probe.linear.paper, Loss: pretrain.val_loss}
"""
# Leaves what a finished run leaves. A pretraining without aggregation fails if so asked.
STAND_IN = """
import json, os, pathlib, sys
name, folder, verb, failing, *arguments = sys.argv[1:]
path = pathlib.Path(folder)
if failing in arguments:
    raise SystemExit("beit: error: it was asked to fail")
path.mkdir(parents=True)
seed = int(arguments[-1].partition("=")[2])
about = {"commit": "c0ffee", "torch": "2"}
if verb == "probe":
    row = {"features": "cls", "paper": True, "linear": 0.5 + seed / 10, "knn": 0.25}
    record = {"rows": [row], "attentive": [], "environment": about}
    (path / "probe.json").write_text(json.dumps(record))
else:
    (path / "environment.json").write_text(json.dumps(about))
    (path / "metrics.jsonl").write_text(json.dumps({"step": 1, "val_loss": 3.0 + seed}) + "\\n")
    (path / "config.yaml").write_text("run: {}")
    (path / "weights.safetensors").touch()
(path / "report.html").write_text("done")
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return file


def stand_in(monkeypatch: pytest.MonkeyPatch, failing: str = "nothing") -> list[str]:
    """Let scripts stand in for training; returns the names of those started, as they come."""
    made = []

    def command(one: ablate.Run, output: Path, launcher: str) -> list[str]:
        made.append(one.name)
        folder = str(ablate.directory_of(one, output))
        call = [sys.executable, "-S", "-c", STAND_IN, one.name, folder, one.stage.verb, failing]
        return [*call, *one.arguments]

    monkeypatch.setattr(ablate, "command", command)
    return made


def chains_of(file: Path, changes: dict[str, Any] | None = None) -> list[ablate.Chain]:
    found = unfold(presets.read_yaml(file), str(file), ablate.VERBS, changes)
    return ablate.unfolded_runs(found, str(file))


def mtimes(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


# ── from the plan to runs ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", sorted(file.stem for file in ablate.PLANS.glob("*.yaml")))
def test_every_plan_is_made_of_options_that_there_are(name: str) -> None:
    file = ablate.plan_file(f"plans/{name}.yaml")
    chains = chains_of(file)
    figures = presets.read_yaml(file)["figures"]
    assert {f.partition(".")[0] for f in figures.values()} <= {s for c in chains for s in c.runs}
    assert name in file.read_text().partition("title:")[0]  # the head comment says how to run it


def test_equal_settings_are_one_run(plan: Path) -> None:
    chains = chains_of(plan)
    assert [(chain.cell, chain.seed) for chain in chains] == [
        ("off", 0),
        ("one block", 0),
        ("off", 1),
        ("one block", 1),
    ]
    names = {s: {chain.runs[s].name for chain in chains} for s in ("tokenizer", "pretrain")}
    assert [len(found) for found in names.values()] == [1, 4]  # the tokenizer names its own seed
    # What a cell says that is the preset's value, or the default, changes nothing.
    plan.write_text(TINY.replace("one block: {}", "one block: {pretrain.mask.kind: block}"))
    again = {chain.runs["pretrain"].name for chain in chains_of(plan)}
    assert again == names["pretrain"]
    plan.write_text(TINY.replace("run.seed: 0", "run.seed: 7"))  # all later stages build on it
    assert again.isdisjoint(chain.runs["pretrain"].name for chain in chains_of(plan))


def test_arguments_are_those_of_the_command(plan: Path, tmp_path: Path) -> None:
    one = chains_of(plan)[2].runs["pretrain"]
    tokenizer = one.references["tokenizer"]
    assert ablate.command(one, tmp_path, "")[1:] == [
        *("-m", "beit", "pretrain", "--preset=shapes-tiny", "--model.head_layers=0"),
        *("--run.seed=1", f"--tokenizer={tmp_path}/runs/{tokenizer}"),
        f"--run.output={tmp_path}/runs/{one.name}",
    ]
    launched = ablate.command(one, tmp_path, "torchrun --nproc_per_node 2 -m beit")
    assert launched[:5] == ["torchrun", "--nproc_per_node", "2", "-m", "beit"]


def test_what_is_begun_is_resumed_or_begun_anew(plan: Path, tmp_path: Path) -> None:
    runs = chains_of(plan)[0].runs
    begun, probed = (ablate.directory_of(runs[s], tmp_path) for s in ("pretrain", "probe"))
    for directory in (begun, probed):
        directory.mkdir(parents=True)
    ablate.command(runs["pretrain"], tmp_path, "")
    assert not begun.exists()  # it had no configuration, so it had not begun
    begun.mkdir()
    (begun / "config.yaml").write_text("run: {}")
    resumed = ablate.command(runs["pretrain"], tmp_path, "")
    assert resumed[1:] == ["-m", "beit", "pretrain", f"--resume={begun}"]
    (probed / "probe.json").write_text("{}")
    assert "--seed=0" in ablate.command(runs["probe"], tmp_path, "")
    assert not probed.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.head_layers: 0", "modle.head_layers: 0", "cell 'off', stage 'pretrain': unkn.*did"),
        ("head_layers: 0", "head_layers: x", "cell 'off', stage 'pretrain': .*Expected int"),
        ("preset: shapes-tiny, model", "preset: shape-tiny, model", "there is no preset.*did you"),
        ("run.seed: 0", "run.output: a", "run.output is not for a plan"),
        ("verb: train-tokenizer", "verb: train-tokeniser", "did you mean train-tokenizer"),
        ("figures:", "figrues:", "unknown field 'figrues'; did you mean figures?"),
    ],
)
def test_a_bad_plan_is_refused_before_anything_is_written(
    plan: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    plan.write_text(TINY.replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        ablate.run(ablate.Config(str(plan), str(tmp_path / "out")))
    assert str(plan) in str(caught.value)
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


# ── running ─────────────────────────────────────────────────────────────────────────────────────


def test_a_table_and_no_run_twice(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = stand_in(monkeypatch)
    output = tmp_path / "out"
    result = ablate.run(ablate.Config(str(plan), str(output), jobs=2))
    assert result.failures == {}
    assert len(made) == len(set(made)) == 9  # one tokenizer; four times pretraining and probe
    assert result.table.rows == [
        ["off", "55.00 ± 7.07", "3.50 ± 0.71", "2"],
        ["one block", "55.00 ± 7.07", "3.50 ± 0.71", "2"],
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
    lost = ablate.directory_of(chains_of(plan)[1].runs["probe"], output)
    (lost / "report.html").unlink()
    capsys.readouterr()
    ablate.run(ablate.Config(str(plan), str(output), dry_run=True))
    assert capsys.readouterr().out.count("to do  ") == 1
    for file in lost.iterdir():
        file.unlink()
    lost.rmdir()
    made.clear()
    ablate.run(ablate.Config(str(plan), str(output)))
    assert made == [lost.name]
    after = mtimes(output / "runs")
    assert {name for name in after if after[name] != before.get(name)} == {
        str(lost / name) for name in ("probe.json", "report.html")
    }
    assert (output / "table.csv").read_bytes() == table


def test_a_failing_cell_does_not_stop_the_others(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, failing="--model.head_layers=0")
    output = tmp_path / "out"
    with pytest.raises(SystemExit) as left:
        ablate.run(ablate.Config(str(plan), str(output)))
    assert left.value.code == 1
    page = (output / "table.md").read_text()
    assert "| off | – | – | 0 of 2 |" in page
    assert "| one block | 55.00 ± 7.07 |" in page
    bad = chains_of(plan)[0].runs
    assert f"`{bad['pretrain'].name}`: exit code 1: it was asked to fail" in page
    assert f"`{bad['probe'].name}`: needs {bad['pretrain'].name}, which failed" in page
    assert f"failed: {bad['pretrain'].name}" in capsys.readouterr().out


def test_a_figure_that_no_run_has_is_named(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    plan.write_text(TINY.replace("pretrain.val_loss", "pretrain.val_los"))
    result = ablate.ablate(ablate.Config(str(plan), str(tmp_path / "out"), jobs=3))
    assert list(result.failures) == ["Loss"]
    assert "has no figure val_los; did you mean val_loss" in result.failures["Loss"]


def test_figures_of_a_run(tmp_path: Path) -> None:
    lines = [{"step": 1, "val_top1": 0.4, "loss": 2}, {"step": 2, "val_top1": 0.6, "val_loss": 1}]
    lines += [{"step": 3, "val_top1": 0.5, "val_loss": 3, "loss": None}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    (tmp_path / "config.yaml").write_text("keep: last")
    last = ablate.read_figures(tmp_path)
    assert (last["val_top1"], last["val_loss"]) == (0.5, 3)
    (tmp_path / "config.yaml").write_text("keep: best")
    best = ablate.read_figures(tmp_path)
    assert (best["val_top1"], best["val_loss"]) == (0.6, 1)


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate.torch.cuda, "device_count", lambda: 0)
    assert ablate.places(ablate.Config("p")) == [{}]
    assert ablate.places(ablate.Config("p", jobs=2)) == [{"OMP_NUM_THREADS": "1"}] * 2
    monkeypatch.setattr(ablate.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    found = [place["CUDA_VISIBLE_DEVICES"] for place in ablate.places(ablate.Config("p", jobs=3))]
    assert found == ["4", "6", "4"]
    assert ablate.places(ablate.Config("p", jobs=2, launcher="torchrun")) == [{}, {}]


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

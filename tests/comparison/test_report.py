import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from beit.comparison import report
from beit.comparison.report import (
    Config,
    curve_figure,
    file_name,
    markdown_table,
    settings_table,
)
from beit.comparison.runs import Run, flat_settings
from beit.draw import canvas
from beit.draw.report import Table
from beit.pretraining import pretrain

PNG = canvas.png(np.zeros((2, 3, 3), np.uint8))
SAMPLE = (
    f'<img alt="a &lt;b&gt; &quot;c" src="data:image/png;base64,{base64.b64encode(PNG).decode()}">'
)
RECORDS = [{"step": 1, "epoch": 0.5, "loss": 2.0}, {"step": 2, "epoch": 1.0, "loss": 1.5}]


def made(
    path: Path, rate: float = 0.1, records: list[dict[str, Any]] = RECORDS, finished: bool = True
) -> str:
    path.mkdir()
    settings = {"optim": {"rate": rate}, "run": {"output": path.name}}
    (path / "config.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True))
    known = {"verb": "pretrain", "started": "2026-01-01T00:00:00", "cpus": 2, "gpus": []}
    (path / "environment.json").write_text(json.dumps(known))
    lines = "".join(f"{json.dumps(record)}\n" for record in records)
    (path / "metrics.jsonl").write_text(lines + '{"step": 3, "lo')  # a line being written
    if finished:
        (path / "weights.safetensors").touch()
        (path / "report.html").write_text(f"<p>{SAMPLE}<img src='x.png'><script>1</script>")
    return str(path)


def test_runs_side_by_side_in_both_formats_and_renewed(tmp_path: Path) -> None:
    runs = [made(tmp_path / "one"), made(tmp_path / "two", 0.2, RECORDS[:1], finished=False)]
    output = tmp_path / "out"
    page, markdown, _ = report.run(Config(runs, str(output)))
    lines = markdown.read_text().splitlines()
    assert "| optim.rate | 0.1 | 0.2 |" in lines
    assert not [line for line in lines if "run.output" in line]
    assert "| loss | 1.5 | 2.0 |" in lines
    assert [line for line in lines if line.startswith("| two | not finished | 1 | 0.5 | pretrain")]
    assert "![loss over steps, a curve for each of 2 runs](figures/loss.png)" in lines
    assert '![a &lt;b&gt; "c](samples/run1-1.png)' in lines
    assert (output / "samples" / "run1-1.png").read_bytes() == PNG
    assert (output / "figures" / "loss.svg").is_file()
    first = page.read_text()
    assert "a &lt;b&gt; &#34;c" in first
    assert first.count("<script") == 1  # the page's own
    assert first.count("data-hover=") == 1

    with Path(runs[1], "metrics.jsonl").open("w") as file:  # the run continues
        file.writelines(f"{json.dumps(record)}\n" for record in RECORDS)
    report.run(Config(runs, str(output), x="epoch"))
    assert "| loss | 1.5 | 1.5 |" in markdown.read_text().splitlines()


def test_the_validation_of_a_finished_run_is_that_of_its_best_weights(tmp_path: Path) -> None:
    tops, losses = (0.5, 0.75, 0.625), (2.0, 1.5, 1.0)
    records = [
        {"step": step, "loss": loss, "val_top1": top}
        for step, (loss, top) in enumerate(zip(losses, tops, strict=True), 1)
    ]
    runs = [made(tmp_path / name, records=records, finished=name != "c") for name in "abc"]
    for run, keep in zip(runs, ("best", "last", "best"), strict=True):
        with Path(run, "config.yaml").open("a") as file:
            file.write(f"keep: {keep}\n")
    page, markdown, _ = report.run(Config(runs, str(tmp_path / "out"), samples=0))
    lines = markdown.read_text().splitlines()
    assert "| loss | 1 | 1 | 1 |" in lines
    assert "| validation top-1 accuracy | 75.0% | 62.5% | 62.5% |" in lines
    assert "the validation is that of the best weights, which a kept" in page.read_text()


def test_names_of_runs_are_text(tmp_path: Path) -> None:
    run = made(tmp_path / "<img src=x onerror=alert(1)>\"'`$字")
    page, markdown, _ = report.run(Config([run], str(tmp_path / "out"), samples=0))
    assert "<img src=x" not in page.read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;&#34;&#39;`$字" in page.read_text()
    assert "<img" not in markdown.read_text()


def test_runs_that_cannot_be_reported_are_named(tmp_path: Path) -> None:
    good, empty = made(tmp_path / "good"), made(tmp_path / "empty", records=[])
    bare, bad = Path(made(tmp_path / "bare")), Path(made(tmp_path / "bad"))
    (bare / "metrics.jsonl").unlink()
    (bad / "environment.json").write_text("[1]")
    output = tmp_path / "out"
    for runs, error, message in (
        ([str(tmp_path / "none")], FileNotFoundError, "none is not a directory"),
        ([str(tmp_path)], FileNotFoundError, "not a run directory: it has no config.yaml"),
        ([good, str(bare)], ValueError, "bare has no metrics.jsonl, so it has no curves"),
        ([str(bad)], ValueError, "environment.json does not name the command of the run"),
        ([empty], ValueError, "empty: nothing is logged yet"),
        ([good, good], ValueError, "good is named twice"),
    ):
        with pytest.raises(error, match=message):
            report.run(Config(runs, str(output)))
    with pytest.raises(ValueError, match=r"metrics names los, which no run has logged; .* loss"):
        report.run(Config([good], str(output), metrics=("los",)))
    for file in ("metrics.jsonl", "environment.json"):
        (bare / file).write_bytes(b"\xff\xfe\n")
        with pytest.raises(ValueError, match=f"bare/{file} is not "):
            report.run(Config([str(bare)], str(output)))
    assert not output.exists()
    with pytest.raises(FileExistsError, match="good exists and is no earlier report"):
        report.run(Config([good], good))
    with pytest.raises(ValueError, match="no run given"):
        Config([])
    report.run(Config([good, empty], str(output)))  # one that has just begun


def test_a_missing_report_of_a_finished_run_is_drawn_again(
    tmp_path: Path,
    trained_tokenizer: Path,
    pretrain_config: Callable[..., pretrain.Config],
    caplog: pytest.LogCaptureFixture,
) -> None:
    images, tokenizer = tmp_path / "images", tmp_path / "tokenizer"
    shutil.copytree(trained_tokenizer, tokenizer)
    images.mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(256, size=(16, 24, 3), dtype=np.uint8)
        (images / f"{number}.png").write_bytes(canvas.png(pixels))
    trained = pretrain_config(tmp_path / "run", tokenizer)
    pretrain.run(replace(trained, data=replace(trained.data, train=str(images), validation="")))
    own = tmp_path / "run/report.html"
    before = own.read_bytes()

    config = Config([str(tmp_path / "run")], str(tmp_path / "out"), samples=1)
    own.unlink()
    report.run(replace(config, samples=0))
    assert not own.exists()  # nobody reads it
    report.run(config)
    assert own.read_bytes() == before
    assert "samples/run1-1.png" in (tmp_path / "out/report.md").read_text()
    for needed in (images, tokenizer):
        own.unlink(missing_ok=True)
        needed.rename(tmp_path / "elsewhere")
        caplog.clear()
        report.run(config)
        assert "run: no samples, its report cannot be drawn again: " in caplog.text
        assert needed.name in caplog.text
        assert "## Samples" not in (tmp_path / "out/report.md").read_text()
        (tmp_path / "elsewhere").rename(needed)


def test_only_reports_of_trainings_are_drawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Path(made(tmp_path / "run"))
    (run / "report.html").unlink()
    (run / "environment.json").write_text('{"verb": "walk"}')
    report.run(Config([str(run)], str(tmp_path / "out")))
    assert "run is a run of beit walk, expected a training" in caplog.text


# ── tables and curves ───────────────────────────────────────────────────────────────────────────


def as_read(name: str, settings: dict[str, Any], records: list[dict[str, Any]] = RECORDS) -> Run:
    return Run(name, records, flat_settings(settings), {}, {})


def test_settings_that_differ_and_no_others() -> None:
    one = {"optim": {"rate": 1e-3, "betas": [0.9, 0.99]}, "tokenizer": "t", "run": {"output": "a"}}
    two = {"optim": {"rate": 2e-3, "betas": [0.9, 0.99]}, "run": {"output": "b"}, "mask": None}
    table = settings_table([as_read("one", one), as_read("two", two)])
    rows = [["optim.rate", "0.001", "0.002"], ["tokenizer", "t", None], ["mask", None, "null"]]
    assert list(table.rows) == rows
    assert len(settings_table([as_read("one", one)]).rows) == 3


def test_curves_of_any_name_are_drawn() -> None:
    runs = [as_read("_字 $x$ <b>", {}), as_read("two" * 40, {}, [])]
    drawing = curve_figure(runs, "loss", "step", log=["loss"])
    assert drawing.png.startswith(b"\x89PNG")
    assert drawing == curve_figure(runs, "loss", "step", log=["loss"])
    assert curve_figure(runs, "nothing", "epoch").png.startswith(b"\x89PNG")
    assert file_name("../a b/c") == "a-b-c"


def test_names_are_text_in_markdown() -> None:
    words = "<script>|`x` *a* [b](c)\n# d & e"
    lines = markdown_table(Table("T_1", ["File"], [[words], [None]])).splitlines()
    assert lines == [
        "| File |",
        "| --- |",
        r"| &lt;script&gt;\|\`x\` \*a\* \[b\](c) \# d &amp; e |",
        "| – |",
        "",
        r"T\_1.",
    ]

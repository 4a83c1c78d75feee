import math
from pathlib import Path
from typing import Any

from beit.comparison.runs import (
    Run,
    curve_figure,
    figure_keys,
    file_name,
    flat_settings,
    last_table,
    markdown_table,
    points,
    settings_table,
    short_names,
)
from beit.draw.report import Table

RECORDS: list[dict[str, Any]] = [
    {"step": 1, "epoch": 0.5, "loss": 2.0},
    {"step": 2, "epoch": 1.0, "loss": None, "note": "x", "good": True},
    {"step": 3, "epoch": 1.5, "loss": 0.0, "accuracy": 0.25},
]


def made(name: str, settings: dict[str, Any], records: list[dict[str, Any]] = RECORDS) -> Run:
    return Run(name, records, flat_settings(settings), {}, [])


def test_names_are_as_short_as_they_can_be() -> None:
    paths = [Path("/x/a/run"), Path("/x/b/run"), Path("/x/b/other")]
    assert short_names(paths) == ["a/run", "b/run", "b/other"]
    assert short_names(paths[1:]) == ["run", "other"]


def test_settings_that_differ_and_no_others() -> None:
    one = {"optim": {"rate": 1e-3, "betas": [0.9, 0.99]}, "tokenizer": "t", "run": {"output": "a"}}
    two = {"optim": {"rate": 2e-3, "betas": [0.9, 0.99]}, "run": {"output": "b"}, "mask": None}
    table = settings_table([made("one", one), made("two", two)])
    rows = [["optim.rate", "0.001", "0.002"], ["tokenizer", "t", None], ["mask", None, "null"]]
    assert list(table.rows) == rows
    assert len(settings_table([made("one", one)]).rows) == 3


def test_figures_are_numbers_and_the_last_finite_one_counts() -> None:
    runs = [made("one", {}), made("two", {}, [{"step": 1, "loss": math.inf}, {"step": 4}])]
    assert figure_keys(runs) == ["loss", "accuracy"]
    assert points(runs[0], "loss", "epoch") == [(0.5, 2.0), (1.5, 0.0)]
    table = last_table(runs, ["loss", "accuracy"])
    assert list(table.rows) == [["loss", "0", None], ["accuracy", "0.25", None]]


def test_curves_of_any_name_are_drawn() -> None:
    runs = [made("_字 $x$ <b>", {}), made("two" * 40, {}, [])]
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

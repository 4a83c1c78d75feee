import base64
import math
from pathlib import Path
from typing import Any

import numpy as np

from beit.comparison.report import last_table
from beit.comparison.runs import (
    Run,
    figure_keys,
    flat_settings,
    points,
    sample_pictures,
    short_names,
)
from beit.draw import canvas

RECORDS: list[dict[str, Any]] = [
    {"step": 1, "epoch": 0.5, "loss": 2.0},
    {"step": 2, "epoch": 1.0, "loss": None, "note": "x", "good": True},
    {"step": 3, "epoch": 1.5, "loss": 0.0, "accuracy": 0.25},
]


def made(name: str, settings: dict[str, Any], records: list[dict[str, Any]] = RECORDS) -> Run:
    return Run(name, records, flat_settings(settings), {}, {})


def test_names_are_as_short_as_they_can_be() -> None:
    paths = [Path("/x/a/run"), Path("/x/b/run"), Path("/x/b/other")]
    assert short_names(paths) == ["a/run", "b/run", "b/other"]
    assert short_names(paths[1:]) == ["run", "other"]


def test_figures_are_numbers_and_the_last_finite_one_counts() -> None:
    runs = [made("one", {}), made("two", {}, [{"step": 1, "loss": math.inf}, {"step": 4}])]
    assert figure_keys(runs) == ["loss", "accuracy"]
    assert points(runs[0], "loss", "epoch") == [(0.5, 2.0), (1.5, 0.0)]
    table = last_table(runs, ["loss", "accuracy"])
    assert list(table.rows) == [["loss", "0", None], ["accuracy", "25.0%", None]]


def test_samples_are_whole_pngs_and_nothing_else(tmp_path: Path) -> None:
    page, png = tmp_path / "report.html", canvas.png(np.zeros((2, 3, 3), np.uint8))
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    sample = f'<img width="3" alt="a &lt;b&gt; &quot;c" src="{source}">'
    others = '<img src="data:image/png;base64,####"><img src="data:image/png;base64,AAAA"><img>'
    page.write_text(others + sample * 3)
    pictures = sample_pictures(page, 2)
    assert [picture.data for picture in pictures] == [png, png]
    assert pictures[0].alt == 'a <b> "c'
    assert sample_pictures(tmp_path / "none.html", 2) == []

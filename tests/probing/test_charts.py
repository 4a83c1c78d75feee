from typing import Any

import pytest
import torch

from beit.nn.pooling import Kind
from beit.probing.charts import AttentiveRow, Row, accuracy_table, drawings, figures, format_table
from beit.probing.charts import notes as notes_of

RATES = [0.1, 0.01]


def row(layer: int | None, pooling: Any, accuracy: float, **changes: Any) -> Row:
    begun = figures(Kind(layer, pooling), 0.01, torch.tensor([accuracy, 0.25]))
    figures_of = {"paper": False, "linear": accuracy, "knn": 0.5, "knn_each": [0.5, 0.625]}
    return Row(**(begun | figures_of | changes))  # type: ignore[typeddict-item]


ROWS = [row(None, "cls", 0.75, paper=True), row(2, "both", 0.5, rate=0.03)]
ATTENTIVE = [
    AttentiveRow(**figures(Kind(2, "attentive"), 0.1, torch.tensor([0.5, 1])), attentive=1.0)
]


def test_the_table_on_a_terminal() -> None:
    lines = format_table(accuracy_table(ROWS, ATTENTIVE, (5, 20))).split("\n")
    assert lines == [
        "Features                 Probe  5-NN  20-NN  Rate",
        "[CLS] *                   75.0  50.0   62.5  0.01",
        "[CLS] and mean, block 2   50.0  50.0   62.5  0.03",
        "attentive, block 2       100.0     –      –   0.1",
    ]
    plain = accuracy_table([row(None, "mean", 0.5, knn_each=[0.5])], [], (20,))
    assert plain.columns == ["Features", "Linear probe", "k-NN", "Rate"]


def test_notes_name_the_paper_and_the_ends_of_the_grids() -> None:
    lines = notes_of(ROWS, ATTENTIVE, (RATES, RATES))
    assert lines[0].startswith("[CLS] *: the features that the paper probes")
    assert lines[0].endswith("a model pretrained with patch aggregation")
    assert lines[1].startswith("[CLS]: the best rate 0.01 is the smallest of the grid; a wider")
    assert lines[2].startswith("attentive, block 2: the best rate 0.1 is the largest")
    assert len(lines) == 3
    assert notes_of([row(None, "cls", 0.5)], [], ([0.01], RATES)) == []  # nothing was chosen
    (line,) = notes_of([row(None, "cls", 0.25)], [], (RATES, RATES))
    assert line.startswith("[CLS]: on the held-out images all rates are equally good, so the")


def test_depth_is_drawn_where_there_are_several_blocks() -> None:
    assert len(drawings(ROWS, [], (RATES, RATES))) == 1
    deep = [row(block, "cls", block / 4) for block in (1, 2, 3)] + [row(None, "cls", 1.0)]
    *_, gallery = drawings(deep, ATTENTIVE, (RATES, RATES))
    probes, neighbours = (picture.alt for picture in gallery.pictures)
    assert "[CLS] from 25.0% to 75.0%" in probes  # the final features are no block
    assert "attentive from 100.0% to 100.0%" in probes
    assert "k-NN, [CLS] from 50.0% to 50.0%" in neighbours


def test_of_many_kinds_the_best_are_drawn() -> None:
    many = [row(block, "cls", block / 20) for block in range(1, 15)]
    rates = drawings(many, [], (RATES, RATES))[0].pictures[0].alt
    assert "block 14" in rates and "block 7 " in rates
    assert "block 6 " not in rates


def test_a_table_needs_rows_of_its_width() -> None:
    with pytest.raises(ValueError, match="a row has 5 cells for 4 columns"):
        accuracy_table(ROWS, [], (20,))

import csv
from pathlib import Path

import pytest

from beit.comparison.ablation_table import (
    Measured,
    ablation_csv,
    ablation_plots,
    ablation_table,
    as_markdown,
    difference_table,
    settings_table,
    spread,
)
from beit.draw.report import Section, Table, write_report

TOP1, LOSS = "Top-1, %", "Loss"
OFF = Measured(
    "off", {TOP1: {0: 0.5, 1: 0.52, 2: 0.57}, LOSS: {0: 1.5, 1: 2.5}}, {"model.head": "0"}, {}
)
ON = Measured("on", {TOP1: {1: 0.61}, LOSS: {}}, {"model.head": "2"}, {TOP1: "85.0"})


def test_mean_and_deviation_by_hand() -> None:
    mean, deviation = spread([2.0, 4.0, 9.0]) or (0, 0)
    assert mean == 5.0
    assert deviation == pytest.approx(13**0.5)  # (9 + 1 + 16) / (3 - 1)
    assert spread([2.0]) == (2.0, None)
    assert spread([]) is None


def test_the_table_has_means_deviations_and_the_paper_beside() -> None:
    table = ablation_table([OFF, ON], [TOP1, LOSS], seeds=3)
    assert table.columns == ["Cell", TOP1, f"{TOP1}: paper", LOSS, "Seeds"]
    # Mean of 50, 52, 57: 53; squares of -3, -1, 4: 26 / 2. Of 1.5 and 2.5: 0.5 / 1.
    assert table.rows == [
        ["off", "53.0 ± 3.6", "–", "2.00 ± 0.71", "2 of 3"],
        ["on", "61.0", "85.0", "–", "1 of 3"],
    ]


def test_one_run_for_all_seeds_is_one_value() -> None:
    fixed = Measured("fixed", {TOP1: {0: 0.5, 1: 0.5, 2: 0.5}, LOSS: {0: 1.0, 1: 2.0}}, {}, {})
    fixed = fixed._replace(once=[TOP1])
    assert ablation_table([fixed], [TOP1, LOSS], seeds=2).rows[0][:3] == [
        *("fixed", "50.0", "1.50 ± 0.71"),
    ]
    (row,) = csv.DictReader(ablation_csv([fixed], [TOP1]).splitlines())
    assert (row[f"{TOP1} sd"], row[f"{TOP1} n"]) == ("", "1")
    assert difference_table([OFF, fixed], [TOP1], "off").rows == [["fixed", "-3.0 ± 9.0, p 0.29"]]


def test_what_a_paper_reports_of_other_kinds_has_its_own_column() -> None:
    table = ablation_table([OFF, ON._replace(paper={"mIoU": "52.7"})], [LOSS], seeds=3)
    assert table.columns == ["Cell", LOSS, "Paper: mIoU", "Seeds"]
    assert [row[2] for row in table.rows] == ["–", "52.7"]


def test_differences_are_paired_by_seed() -> None:
    # 10, 12 and 8 points: mean 10, deviation 2; the t of 95% with 2 degrees of freedom is 4.303.
    better = Measured("better", {TOP1: {0: 0.6, 1: 0.64, 2: 0.65, 3: 0.0}}, {}, {})
    same = Measured("same", {TOP1: {0: 0.5, 1: 0.52}}, {}, {})
    ten = Measured("ten", {TOP1: {0: 0.6, 1: 0.62, 2: 0.67}}, {}, {})
    table = difference_table([OFF, better, same, ten, ON], [TOP1, LOSS], "off")
    assert table.columns == ["Cell", TOP1, LOSS]
    assert table.rows == [
        ["better", "+10.0 ± 5.0, p 0.013", "–"],
        ["same", "+0.0", "–"],
        ["ten", "+10.0", "–"],  # though 0.67 - 0.57 is not 0.6 - 0.5
        ["on", "+9.0", "–"],  # of one seed
    ]


def test_hours_are_the_mean_over_seeds() -> None:
    cells = [OFF._replace(hours={0: 1.0, 1: 2.0}), ON._replace(paper={})]
    table = ablation_table(cells, [LOSS], seeds=3)
    assert table.columns == ["Cell", LOSS, "Hours of training", "Seeds"]
    assert [row[2] for row in table.rows] == ["1.50", "–"]


def test_settings_and_markdown() -> None:
    table = settings_table([OFF, ON])
    assert (table.columns, table.rows) == (["Cell", "model.head"], [["off", "0"], ["on", "2"]])
    odd = Table("Odd", ["a|b", "n"], [["x", 1]])
    assert as_markdown(odd) == "| a\\|b | n |\n| --- | ---: |\n| x | 1 |\n\nOdd."


def test_csv_keeps_all_digits() -> None:
    rows = list(csv.DictReader(ablation_csv([OFF, ON], [TOP1, LOSS]).splitlines()))
    assert [row["cell"] for row in rows] == ["off", "on"]
    assert float(rows[0][TOP1]) == pytest.approx(53)
    assert float(rows[0][f"{TOP1} sd"]) == pytest.approx(13**0.5)
    assert [row[f"{TOP1} n"] for row in rows] == ["3", "1"]
    assert (rows[1][f"{TOP1} sd"], rows[1][LOSS]) == ("", "")


def test_plots_have_a_mark_for_each_value(tmp_path: Path) -> None:
    gallery = ablation_plots([OFF, ON], [TOP1, LOSS])
    drawn = [picture.data.decode().count("<use") for picture in gallery.pictures]
    assert drawn == [6, 3]  # three values and their mean, one and itself; two and their mean
    assert gallery.pictures[1].alt == "Loss: off 2; on not measured"
    write_report(tmp_path / "report.html", "t", [Section("s", items=[gallery])], {})

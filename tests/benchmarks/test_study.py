"""The tables and plots of the study find what they name."""

import importlib


def test_plots_name_cells_and_columns_of_their_plans():
    study = importlib.import_module("study")
    for name, _, _, curves in study.PLOTS.values():
        plan, measured = study.read(name)
        places = {place for curve in curves for place in curve.points.values()}
        assert {cell for cell, _ in places} <= {cell.name for cell in measured}
        assert {column for _, column in places} <= {*plan.columns}


def test_the_first_part_is_complete():
    study = importlib.import_module("study")
    plan, measured = study.read("study-targets")
    assert [study.seeds_of(cell) for cell in measured] == [len(plan.seeds)] * len(measured)

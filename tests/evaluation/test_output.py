import re

import pytest

from beit.draw.charts import RIGHT, WIDTH
from beit.evaluation.output import calibration_plot, robustness_plots, robustness_table

FOG, SNOW = {1: 0.9, 3: 0.6}, {1: 0.5, 3: 0.25}


def test_the_table_has_accuracies_and_the_mean_error():
    table = robustness_table({"fog": FOG, "motion_blur": SNOW})
    assert table.columns == ["Corruption", "Severity 1", "Severity 3", "Mean error"]
    assert table.rows == [
        ["fog", "90.0", "60.0", "25.0"],
        ["motion blur", "50.0", "25.0", "62.5"],
    ]


def test_a_panel_a_kind_all_on_one_scale():
    gallery = robustness_plots({"b/16": {"fog": FOG, "snow": SNOW}}, {"b/16": 1.0})
    fog, snow = gallery.pictures
    assert fog.alt == "Fog, accuracy by severity in percent: b/16 90.0, 60.0 (clean 100.0)"
    dots = []
    for picture in (fog, snow):
        drawing = picture.data.decode()
        places = re.findall(r'x="([\d.]+)" y="([\d.]+)" style="fill: var\(--series', drawing)
        dots += [tuple(map(float, place)) for place in places]
        assert drawing.count("stroke-dasharray") == 1  # the level of the clean images
    (x1, y90), (x3, y60), (_, y50), (_, y25) = dots
    assert x3 - x1 == pytest.approx((WIDTH - RIGHT - x1) / 2, abs=0.1)  # severities 1 to 5
    assert (y60 - y90) / 30 == pytest.approx((y25 - y50) / 25, abs=0.01)


def test_lines_of_calibration_are_named_without_a_value():
    bins = {"confidence": [0, 0.85, 0.9], "accuracy": [0, 0.5, 1], "number": [0, 4, 9]}
    (picture,) = calibration_plot(bins).pictures
    assert picture.alt.endswith("by confidence in percent: 50.0 at 85.0; 100.0 at 90.0")
    words = re.findall(r"([^<>]+)</text>", picture.data.decode())
    assert {"right", "perfectly calibrated"} <= {part.strip() for part in words}


def test_two_classifiers_share_a_panel_and_have_a_legend():
    gallery = robustness_plots({"a": {"fog": FOG}, "b": {"fog": SNOW}}, {"a": 1.0, "b": 0.6})
    (picture,) = gallery.pictures
    drawing = picture.data.decode()
    assert drawing.count("stroke-width: 1.6") == 2
    assert "series-1" in drawing
    assert "series-2" in drawing
    assert ">a</text>" in drawing

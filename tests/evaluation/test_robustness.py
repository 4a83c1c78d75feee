import re

from beit.evaluation.robustness import robustness_plots, robustness_table

FOG, SNOW = {1: 0.9, 3: 0.6}, {1: 0.5, 3: 0.25}


def test_the_table_has_accuracies_and_the_mean_error():
    table = robustness_table({"fog": FOG, "motion_blur": SNOW})
    assert table.columns == ["Corruption", "Severity 1", "Severity 3", "Mean error"]
    assert table.rows == [
        ["fog", "90.00", "60.00", "25.00"],
        ["motion blur", "50.00", "25.00", "62.50"],
    ]


def test_a_panel_a_kind_all_on_one_scale():
    gallery = robustness_plots({"b/16": {"fog": FOG, "snow": SNOW}}, {"b/16": 1.0})
    fog, snow = gallery.pictures
    assert fog.alt == "Fog, accuracy by severity in percent: b/16 90.0, 60.0 (clean 100.0)"
    ends = []
    for picture in (fog, snow):
        drawing = picture.data.decode()
        first, last = re.search(r'd="M([\d. ]+)L([\d. ]+)"', drawing).groups()
        ends += [tuple(map(float, place.split())) for place in (first, last)]
        assert drawing.count("stroke-dasharray") == 1  # the level of the images as they are
    (x1, y90), (x3, y60), (_, y50), (_, y25) = ends
    assert (x3 - x1) * 2 == 330 - 46  # severities 1 to 5 across the plot, whichever are measured
    assert abs((y60 - y90) / 30 - (y25 - y50) / 25) < 0.01


def test_two_classifiers_share_a_panel_and_have_a_legend():
    gallery = robustness_plots({"a": {"fog": FOG}, "b": {"fog": SNOW}}, {"a": 1.0, "b": 0.6})
    (picture,) = gallery.pictures
    drawing = picture.data.decode()
    assert drawing.count('stroke-width="1.6"') == 2
    assert "series-1" in drawing
    assert "series-2" in drawing
    assert ">a</text>" in drawing

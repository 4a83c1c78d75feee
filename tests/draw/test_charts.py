import math
import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest

from beit.draw.charts import (
    COLUMNS,
    Line,
    label_ticks,
    line_chart,
    log_axis,
    new_chart,
    shortened,
    styled,
    thinned,
)
from beit.draw.colours import SERIES, THEME
from beit.draw.svg import themed_svg

RISING = [(0.0, 1.0), (1.0, 2.0), (2.0, 4.0)]


def ticks(values: list[float], log: bool = False) -> tuple[list[float], list[str]]:
    """Return the ticks and labels of a y axis over these values."""
    with styled():
        axes = new_chart("", 200).add_axes((0, 0, 1, 1))
        axes.plot(range(len(values)), values)
        if log:
            log_axis(axes, np.array(values))
        labels = label_ticks(axes, "y", 5)
        low, high = axes.get_ylim()
        assert all(low <= value <= high for value in values)
        return [float(tick) for tick in axes.get_yticks()], labels


def test_linear_axes_end_on_round_numbers() -> None:
    assert ticks([0.31, 1.9]) == ([0, 0.5, 1.0, 1.5, 2.0], ["0", "0.5", "1.0", "1.5", "2.0"])


@pytest.mark.parametrize("value", [5.0, 0.0, -3.0, 1e-12])
def test_a_single_value_has_room(value: float) -> None:
    assert len(ticks([value])[0]) >= 2


@pytest.mark.parametrize("low", [1e-7, 0.003, 1.0, 9000.0])
@pytest.mark.parametrize("ratio", [1.0, 1.5, 7.0, 1e3, 1e9])
def test_log_ticks_are_in_order_and_few(low: float, ratio: float) -> None:
    places, labels = ticks([low, low * ratio], log=True)
    assert places == sorted(set(places))
    assert 2 <= len(places) <= 9
    assert len(set(labels)) == len(labels)


def test_long_words_are_cut_in_the_middle_and_stay_on_one_line() -> None:
    assert shortened("two\nwords\x00", 20) == "two words"
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcde…hijk"


def test_thinning_keeps_ends_spikes_and_gaps() -> None:
    points = np.stack([np.arange(10_000.0), np.ones(10_000)], axis=1)
    points[7777, 1], points[3333, 1] = 50, math.nan
    kept = thinned(points)
    assert len(kept) <= 3 * COLUMNS + 2
    assert kept[[0, -1], 0].tolist() == [0, 9999]
    assert kept[kept[:, 1] == 50, 0].tolist() == [7777]
    assert kept[np.isnan(kept[:, 1]), 0].tolist() == [3333]
    assert len(thinned(points[:9])) == 9


def test_a_drawing_has_no_names_or_links_and_takes_the_colours_of_the_page() -> None:
    chart = line_chart("<Title> $x$ 字", [Line("_a & b", RISING), Line("c", RISING, 3.0)], "step")
    assert chart == line_chart(
        "<Title> $x$ 字", [Line("_a & b", RISING), Line("c", RISING, 3.0)], "step"
    )
    root = ElementTree.fromstring(chart)
    assert {part.tag.rpartition("}")[2] for part in root} == {"path", "circle", "text"}
    assert not {"id", "clip-path", "class"} & {name for part in root for name in part.attrib}
    assert b"url(" not in chart and b"href" not in chart
    words = [part.text for part in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"<Title> $x$ 字", "_a & b", "c", "step"} <= set(words)
    for colour in re.findall(rb"(?<!,)#[0-9a-f]{6}", chart):
        raise AssertionError(f"{colour!r} is no colour of the page")
    for variable, colour in re.findall(r"var\((--[a-z0-9-]+),(#[0-9a-f]{6})\)", chart.decode()):
        assert THEME[colour] == variable


def test_a_dash_is_a_level_or_a_seventh_line() -> None:
    level = line_chart("", [Line("", RISING, 2.0)], "x").decode()
    many = line_chart("", [Line(f"{n}", RISING) for n in range(7)], "x").decode()
    assert level.count("stroke-dasharray") == 1
    assert many.count("stroke-dasharray") == 2  # in the plot and in the legend
    assert all(colour in many for colour in SERIES)


def test_settings_of_the_user_change_nothing_and_stay() -> None:
    before = line_chart("", [Line("a", RISING)], "x")
    with matplotlib.rc_context({"axes.grid": False, "font.size": 33, "lines.linestyle": ":"}):
        assert line_chart("", [Line("a", RISING)], "x") == before
        assert matplotlib.rcParams["font.size"] == 33


def test_markers_are_circles_and_other_shapes_keep_their_place() -> None:
    with styled():
        figure = new_chart("", 100, 100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.plot([0.25], [0.5], "o", color=SERIES[0], markersize=6)
        axes.scatter([0.25, 0.75] * 4, [0.5] * 8, s=64, marker="s", color=SERIES[1], linewidths=0)
        drawing = themed_svg(figure).decode()
    assert 'cx="25" cy="50" r="3"' in drawing
    assert 'd="M-4 4L4 4L4 -4L-4 -4z" transform="translate(75 50)"' in drawing

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
    themed_svg,
    thinned,
)
from beit.draw.colours import SERIES, THEME

SVG, HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
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


def markers(chart: bytes) -> dict[str | None, str]:
    """Return the outline of each marker by its id, after checking that each id is used."""
    root = ElementTree.fromstring(chart)
    outlines = {
        part.get("id"): ElementTree.tostring(part, encoding="unicode").strip()
        for part in root.iter()
        if "id" in part.attrib
    }
    links = {part.get(HREF) for part in root.iter(f"{SVG}use")}
    assert links == {f"#{name}" for name in outlines}
    return outlines


def test_a_drawing_takes_font_and_colours_of_the_page_and_shares_only_markers() -> None:
    title = '<Title> $x$ 字 id="x" #2867b2 1.23456'
    lines = [Line("_a & b", RISING), Line("c", RISING, 3.0)]
    chart = line_chart(title, lines, "step")
    assert chart == line_chart(title, lines, "step")
    root = ElementTree.fromstring(chart)
    tags = {part.tag.rpartition("}")[2] for part in root.iter()}
    assert tags == {"svg", "g", "defs", "path", "use", "text"}
    assert not {"clip-path", "class"} & {name for part in root.iter() for name in part.attrib}
    assert b"url(" not in chart
    other = line_chart("Other", [Line("d", [(0.0, 3.0), (9.0, 4.0)])], "epoch")
    shared = markers(chart).keys() & markers(other).keys()
    assert len(shared) >= 2  # the tick and the dot of the first colour
    assert all(markers(chart)[name] == markers(other)[name] for name in shared)
    texts = list(root.iter(f"{SVG}text"))
    assert {title, "_a & b", "c", "step"} <= {(part.text or "").strip() for part in texts}
    assert all("var(--sans,system-ui,sans-serif)" in part.attrib["style"] for part in texts)
    assert b"DejaVu" not in chart
    for part in root.iter():
        for value in part.attrib.values():
            assert not re.search(r"\d\.\d{4}", value)
            for colour in re.findall("(?<!,)#[0-9a-f]{6}", value):
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


def test_markers_keep_their_place() -> None:
    with styled():
        figure = new_chart("", 100, 100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.plot([0.25], [0.5], "o", color=SERIES[0], markersize=6)
        axes.scatter([0.25, 0.75] * 4, [0.5] * 8, s=64, marker="s", color=SERIES[1], linewidths=0)
        drawing = themed_svg(figure).decode()
    shapes = re.findall(r'<path id="(\w+)" d="([^"]*)"', drawing)
    square, dot = sorted(shapes, key=lambda shape: "C" in shape[1])
    assert dot[1].startswith("M 0 3 \nC ")  # curved, with radius 3
    assert " ".join(square[1].split()) == "M -4 4 L 4 4 L 4 -4 L -4 -4 z"
    assert f'<use xlink:href="#{dot[0]}" x="25" y="50"' in drawing
    assert f'<use xlink:href="#{square[0]}" x="75" y="50"' in drawing


@pytest.mark.parametrize(("values", "label"), [((58.0, 66.0), "66%"), ((5.0, 98.0), "100%")])
def test_labels_in_a_wide_font_are_whole(values: tuple[float, float], label: str) -> None:
    """DejaVu Sans, the default of Debian: digits of 0.636 em and a percent sign of 0.950 em."""
    chart = line_chart("", [Line("", list(enumerate(values)))], "step", unit="%")
    texts = list(ElementTree.fromstring(chart).iter(f"{SVG}text"))
    (text,) = [text for text in texts if text.text == label]
    assert "text-anchor: end" in text.attrib["style"]
    left = float(text.attrib["x"]) - 11.5 * (0.636 * (len(label) - 1) + 0.950)
    assert 4 < left < 8

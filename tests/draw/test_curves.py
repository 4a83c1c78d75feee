import math
import xml.etree.ElementTree as ElementTree

import pytest

from beit.draw.charts import COLUMNS, RIGHT, WIDTH
from beit.draw.curves import curves

SVG = "{http://www.w3.org/2000/svg}"


def paths(data: bytes) -> list[list[tuple[float, float]]]:
    """Return the points of each drawn curve, by unbroken part; the legend's lines are none."""
    found = []
    for element in ElementTree.fromstring(data.decode()).iter(f"{SVG}path"):
        if "stroke-width: 1.6" in element.get("style", ""):
            for part in element.attrib["d"].split("M")[1:]:
                x_y = (point.split() for point in part.split("L"))
                found.append([(float(x), float(y)) for x, y in x_y])
    return found


def test_a_straight_line_goes_from_corner_to_corner() -> None:
    records = [{"step": step, "loss": step / 100} for step in (0, 50, 100)]
    gallery = curves(records, {"Loss": ["loss"]}, "all of it")
    assert gallery.caption == "all of it"
    (picture,) = gallery.pictures
    assert picture.media_type == "image/svg+xml"
    assert picture.alt == "Loss against step: loss from 0 to 1"
    ((first, middle, last),) = paths(picture.data)
    assert middle == pytest.approx(((first[0] + last[0]) / 2, (first[1] + last[1]) / 2), abs=0.06)
    assert first[0] < last[0]
    assert first[1] - last[1] == pytest.approx(150)  # the whole height of the plot


def test_thinning_keeps_ends_and_spikes() -> None:
    records = [{"step": step, "norm": 1.0} for step in range(10_000)]
    records[7777]["norm"] = 50.0
    (picture,) = curves(records, {"Norm": ["norm"]}, "").pictures
    (points,) = paths(picture.data)
    assert len(points) <= 2 * COLUMNS + 2
    top = min(y for _, y in points)
    assert sum(y == top for _, y in points) == 1
    assert points[0][0] < points[-1][0] == WIDTH - RIGHT


def test_missing_keys_join_and_values_that_are_not_finite_part() -> None:
    records = [{"step": 1, "a": 1.0}, {"step": 2}, {"step": 3, "a": 2.0}]
    records += [{"step": 4, "a": math.nan}, {"step": 5, "a": 3.0}, {"step": 6, "a": 4.0}]
    (picture,) = curves(records, {"A": ["a"]}, "").pictures
    assert [len(run) for run in paths(picture.data)] == [2, 2]
    assert b"a: 1 not finite" in picture.data


def test_log_panel_has_even_decades_and_counts_what_has_no_place() -> None:
    records = [{"step": i, "x": value} for i, value in enumerate([1.0, 10.0, 100.0, 0.0])]
    (picture,) = curves(records, {"X": ["x"]}, "", log=["X"]).pictures
    ((a, b, c),) = paths(picture.data)
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.2)
    assert b"x: 1 not positive" in picture.data
    assert b"X (log)" in picture.data


def test_panels_without_figures_say_so() -> None:
    (picture,) = curves([], {"Probe": ["knn"]}, "").pictures
    assert b"nothing logged" in picture.data
    (single,) = curves([{"step": 3, "knn": 0.5}], {"Probe": ["knn"]}, "").pictures
    assert single.data.count(b'style="fill: var(--series-1') == 1  # a dot


def test_names_are_escaped_and_many_series_have_their_own_line() -> None:
    keys = [f"<series> & number {i}" for i in range(9)]
    record = {"step": 1, **dict.fromkeys(keys, 1.0)}
    (picture,) = curves([record, record | {"step": 2}], {"<Many>": keys}, "").pictures
    root = ElementTree.fromstring(picture.data.decode())
    words = [(element.text or "").strip() for element in root.iter(f"{SVG}text")]
    assert "<Many>" in words
    assert sum("<series> & number" in word for word in words) == 9
    assert picture.data.count(b"stroke-dasharray: 5,3") == 6  # three curves, and in the legend


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no 'step'"):
        curves([{"loss": 1.0}], {"Loss": ["loss"]}, "")
    with pytest.raises(ValueError, match=r"log names \['Los'\]"):
        curves([], {"Loss": ["loss"]}, "", log=["Los"])

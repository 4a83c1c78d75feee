import json
import math
import xml.etree.ElementTree as ElementTree

import pytest

from beit.draw.charts import COLUMNS, RIGHT, WIDTH
from beit.draw.curves import curves, whole_windows
from beit.draw.report import Gallery, Item, Picture, Table

SVG = "{http://www.w3.org/2000/svg}"


def only(items: list[Item]) -> Picture:
    (gallery,) = items
    assert isinstance(gallery, Gallery)
    (picture,) = gallery.pictures
    return picture


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
    (gallery,) = curves(records, {"Loss": ["loss"]}, "all of it")
    assert isinstance(gallery, Gallery)
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
    picture = only(curves(records, {"Norm": ["norm"]}, ""))
    (points,) = paths(picture.data)
    assert len(points) <= 2 * COLUMNS + 2
    top = min(y for _, y in points)
    assert sum(y == top for _, y in points) == 1
    assert points[0][0] < points[-1][0] == WIDTH - RIGHT


def test_missing_keys_join_and_values_that_are_not_finite_part() -> None:
    records = [{"step": 1, "a": 1.0}, {"step": 2}, {"step": 3, "a": 2.0}]
    records += [{"step": 4, "a": math.nan}, {"step": 5, "a": 3.0}, {"step": 6, "a": 4.0}]
    picture = only(curves(records, {"A": ["a"]}, ""))
    assert [len(run) for run in paths(picture.data)] == [2, 2]
    assert b"a: 1 not finite" in picture.data


def test_log_panel_has_even_decades_and_counts_what_has_no_place() -> None:
    records = [{"step": i, "x": value} for i, value in enumerate([1.0, 10.0, 100.0, 0.0])]
    picture = only(curves(records, {"X": ["x"]}, "", log=["X"]))
    ((a, b, c),) = paths(picture.data)
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.2)
    assert b"x: 1 not positive" in picture.data
    assert b"X (log)" in picture.data


def test_what_was_measured_once_is_a_row_and_what_was_not_is_left_out() -> None:
    assert curves([], {"Probe": ["knn_cls"]}, "") == []
    (table,) = curves([{"step": 3, "knn_cls": 0.5}], {"A": ["knn_cls", "b"], "B": ["c"]}, "")
    assert isinstance(table, Table)
    assert table.rows == [["A", "k-NN, [CLS]", "50.0%", 3]]


def test_shares_are_drawn_in_percent() -> None:
    records = [{"step": step, "val_top1": step / 10} for step in (1, 2)]
    picture = only(curves(records, {"Top-1": ["val_top1"]}, ""))
    assert picture.alt.endswith("validation top-1 accuracy from 10.0% to 20.0%")
    assert b">20%<" in picture.data  # a tick
    full = only(curves([{"step": s, "usage": 1.0} for s in (1, 2)], {"U": ["usage"]}, ""))
    assert b">100%<" in full.data and b">105%<" not in full.data
    as_given = only(
        curves([{"step": 1, "a": 4.0}, {"step": 2, "a": 5}], {"A": ["a"]}, "", percent="A")
    )
    assert as_given.alt == "A against step: a from 4.0% to 5.0%"


def test_means_over_few_steps_are_left_out_but_not_their_rates_or_validations() -> None:
    records = [{"step": step, "rate": 0.1, "perplexity": 9.0} for step in (50, 100, 150, 160)]
    records += [{"step": 160, "val_perplexity": 8.0}]
    assert whole_windows(records) == [*records[:3], {"step": 160, "rate": 0.1}, records[4]]
    one = records[3:4]
    assert whole_windows(one) == one  # a short run has no longer window
    records[3]["perplexity"] = 1.0
    picture = only(curves(records, {"P": ["perplexity", "val_perplexity"]}, ""))
    assert "perplexity from 9 to 9" in picture.alt


def test_a_chart_holds_its_values_for_the_pointer() -> None:
    records = [{"step": step, "accuracy": step / 100, "loss": 2.0} for step in (0, 50, 100)]
    picture = only(curves(records, {"Both": ["accuracy"]}, ""))
    hover = json.loads(ElementTree.fromstring(picture.data.decode()).attrib["data-hover"])
    ((name, colour, points),) = hover["lines"]
    assert (name, colour[:14], hover["x"]) == ("accuracy", "var(--series-1", "step")
    assert [point[2:] for point in points] == [["0", "0.0%"], ["50", "50.0%"], ["100", "100.0%"]]
    ((first, *_, last),) = paths(picture.data)
    assert [tuple(points[0][:2]), tuple(points[-1][:2])] == [first, last]


def test_names_are_escaped_and_many_series_have_their_own_line() -> None:
    keys = [f"<series> & number {i}" for i in range(9)]
    record = {"step": 1, **dict.fromkeys(keys, 1.0)}
    picture = only(curves([record, record | {"step": 2}], {"<Many>": keys}, ""))
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
    with pytest.raises(ValueError, match=r"percent names \['Los'\]"):
        curves([], {"Loss": ["loss"]}, "", percent=["Los"])

import re

import pyarrow as pa
import pytest
import torch

from beit.data.tabular.labels import joined


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        (pa.array([2, 0, None, -1]), [2, 0, -1, -1], None),
        (pa.array([1.0, None, 0.0, float("nan")]), [1, -1, 0, -1], None),
        (pa.array([1_000_000, 0], pa.uint32()), [1_000_000, 0], None),
        (pa.array(["0", "10", "1", "-1", ""]), [0, 10, 1, -1, -1], None),
        (pa.array(["1.0", None, "3.0"]), [1, -1, 3], None),
        (pa.array(["007", "7"]), [0, 1], ["007", "7"]),  # codes, not two spellings of a number
        (pa.array(["plum", " fig ", None, "fig", ""]), [1, 0, -1, 0, -1], ["fig", "plum"]),
        (pa.array(["cafe\u0301", "caf\xe9"], pa.large_string()), [0, 0], ["caf\xe9"]),
        (pa.array(["b", "a", None]).dictionary_encode(), [1, 0, -1], ["a", "b"]),
        (pa.chunked_array([["b"], ["a", "c"]]).dictionary_encode(), [1, 0, 2], ["a", "b", "c"]),
        (pa.DictionaryArray.from_arrays([1, None, 1], ["a", "b", "c"]), [0, -1, 0], ["b"]),
        (pa.DictionaryArray.from_arrays([0, 1, 2], ["a", None, "a"]), [0, -1, 0], ["a"]),
        (pa.array([True, None]), [1, -1], ["False", "True"]),
        (pa.array([30_000_017, 5, -1, 5]), [1, 0, -1, 0], ["5", "30000017"]),
        (pa.array([3, -5]), [1, 0], ["-5", "3"]),
        (pa.array(["a", "NA", "N/A", "nan", "NaN", "null", "NULL"]), [0, *[-1] * 6], ["a"]),
        (pa.array(["none", "None"]), [1, 0], ["None", "none"]),
        (pa.array(["1", "NA", "0"]), [1, -1, 0], None),
        (pa.array(["a", "-1", "-1.0"]), [0, -1, -1], ["a"]),
        (pa.array(["0.5", "big"]), [0, 1], ["0.5", "big"]),
        (pa.array(["2.0", "a", "2"]), [0, 1, 0], ["2", "a"]),
        (pa.array(["99999999999999999999", "3"]), [1, 0], ["3", "99999999999999999999"]),
    ],
)
def test_labels_are_numbers_or_names(values, labels, names):
    found, found_names, why = joined([(values, None)], "the labels")
    assert found.dtype == torch.int64
    assert (found.tolist(), found_names, why) == (labels, names, "")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (pa.array([[1, 2], [3]]), r"column 'x' holds list<.*int64>; expected one number or name"),
        (pa.array([{"a": 1}]), "column 'x' holds struct"),
        (pa.array([b"a"]), "column 'x' holds binary"),
        (pa.array([0.5, 1.0]), "column 'x' holds 0.5; expected whole numbers or names"),
        (pa.array([1.0, float("inf")]), "column 'x' holds inf"),
        (pa.array(["1.0", "0.5", None]), "column 'x' holds 0.5; expected whole"),
        (pa.array(["1,0", "0,25"]), "column 'x' holds 0,25; expected whole"),
        (pa.array(["1,000", "2"]), "column 'x' holds 1,000; expected whole"),
        (pa.array(["1e-3", "2"]), "column 'x' holds 1e-3; expected whole"),
        (pa.array(["[0, 1]", "[2]"]), r"column 'x' holds lists, \[0, 1\]; expected one"),
        (pa.array(["True", "1"]), "column 'x' holds True and 1; expected one kind"),
        (pa.array([None, -1], pa.int64()), "column 'x' is empty"),
        (pa.nulls(2), "column 'x' is empty"),
        (pa.array([], pa.string()), "column 'x' is empty"),
    ],
)
def test_a_column_without_labels_says_why(values, why):
    labels, names, reason = joined([(values, None)], "column 'x'")
    assert labels is names is None
    assert re.search(why, reason)


def column(values, kind=None):
    return pa.chunked_array([pa.array(values, kind)])


FRUIT, OTHER = ["fig", "lime", "plum"], ["plum", "fig"]


@pytest.mark.parametrize(
    ("parts", "labels", "names"),
    [
        ([(column([0, 2]), FRUIT), (column([0, 1, None]), OTHER)], [0, 2, 2, 0, -1], FRUIT),
        ([(column([0, 2]), FRUIT), (column([1]), None)], [0, 2, 1], FRUIT),
        ([(column([1]), ["fig", "kiwi"]), (column([1]), ["fig", "pear"])], [1, 2],
         ["fig", "kiwi", "pear"]),
        ([(column([0, 2]), None), (column([None, 7], pa.int32()), None)], [0, 2, -1, 7], None),
        ([(column([0]), FRUIT), (column([None, None]), None)], [0, -1, -1], FRUIT),
        ([(column(["b"]), None), (column(["a"]).dictionary_encode(), None)], [1, 0], ["a", "b"]),
        ([(column(["b"]), None), (column([3]), None)], [1, 0], ["3", "b"]),
        ([(column([3]), None), (column([2_000_000]), None)], [0, 1], ["3", "2000000"]),
        # Whole floats and text of whole numbers are numbers of the declared names.
        ([(column([0, 2]), FRUIT), (column([1.0, None]), OTHER)], [0, 2, 0, -1], FRUIT),
        ([(column([0]), FRUIT), (column([1.0, float("nan")]), None)], [0, 1, -1], FRUIT),
        ([(column(["0", "2", ""]), FRUIT)], [0, 2, -1], FRUIT),
        ([(column(["1", "0"]), ["1", "0"])], [0, 1], ["1", "0"]),  # names of the classes
        # Numbers are joined with text by their names.
        ([(column([0, 2]), FRUIT), (column(["plum", "fig", "lime"]), None)], [0, 2, 2, 0, 1],
         FRUIT),
        ([(column([1]), OTHER), (column(["kiwi", "plum"]), None)], [1, 2, 0],
         ["plum", "fig", "kiwi"]),
        ([(column([2.0]), None), (column(["a"]), None)], [0, 1], ["2", "a"]),
    ],
)  # fmt: skip
def test_files_are_matched_by_the_names_of_classes(parts, labels, names):
    found, found_names, why = joined(parts, "column 'x'")
    assert (found.tolist(), found_names, why) == (labels, names, "")


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([(column([3]), FRUIT)], "column 'x' has the number 3, which has no name"),
        ([(column([0]), FRUIT), (column([0]), OTHER), (column([1]), None)], "number 1, which has"),
        ([(column([-1]), FRUIT)], "column 'x' is empty"),
        ([(column([0.5]), FRUIT)], "column 'x' holds 0.5; expected whole numbers or names"),
        ([(column([True]), None), (column([3]), None)], "holds True and 3; expected one kind"),
        ([(column([True]), None), (column([1]), None), (column(["a"]), None)], "holds True and 1;"),
        ([(column([True]), None), (column([3]), [*FRUIT, "kiwi"])], "holds True; expected whole"),
        (
            [(column([[1]]), None), (column([1]), None)],
            "holds list<.*>; expected one number",
        ),
    ],
)
def test_files_that_cannot_be_joined_say_why(parts, why):
    labels, names, reason = joined(parts, "column 'x'")
    assert labels is names is None
    assert re.search(why, reason)

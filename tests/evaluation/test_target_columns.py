import pytest
import torch

from beit.data.classes import Labelled
from beit.evaluation.target_columns import padded, plain_task


class Labels:
    """A source of labels only."""

    def __init__(self, labels, names=None):
        self.labels = None if labels is None else torch.tensor(labels)
        self.class_names = names
        self.why_unlabelled = ""

    def __len__(self):
        return len(self.labels)

    def name(self, index):
        return f"{index}.png"


def labelled(labels, names=None):
    return Labelled("data", "set", Labels(labels, names))


NAMES = ("ant", "bee", "cat", "dog")


def test_classes_are_matched_by_name_in_any_order():
    task = plain_task(labelled([0, 2, 1], ["dog", "ant", "bee"]), 4, NAMES)
    assert task.columns.tolist() == [0, 1, 2, 3]
    assert task.targets.tolist() == [[3], [1], [0]]
    assert task.labels.tolist() == [3, 1, 0]
    assert task.class_names == [*NAMES]
    said = "data set: 1 of 4 classes has no image: cat; all 4 logits are compared"
    assert task.notes == [said]


def test_only_the_logits_of_classes_that_are_there():
    data = labelled([0, 2, 0], ["dog", "ant", "bee"])  # no ant
    task = plain_task(data, 4, NAMES, present_only=True)
    assert task.columns.tolist() == [1, 3]
    assert task.targets.tolist() == [[1], [0], [1]]
    assert task.class_names == ["bee", "dog"]
    assert task.notes[0].endswith("ant, cat; only the logits of the others are compared")


def test_numbers_where_a_name_is_missing():
    assert plain_task(labelled([1, 0]), 2, ("ant", "bee")).targets.tolist() == [[1], [0]]
    task = plain_task(labelled([1, 0], ["x", "y"]), 2, None)
    assert task.targets.tolist() == [[1], [0]]
    assert task.class_names == ["x", "y"]
    assert task.notes[0].startswith("the classifier has no class names: numbers are taken as those")
    with pytest.raises(ValueError, match=r"and data set has 2 classes, the classifier 3, so that"):
        plain_task(labelled([1, 0], ["x", "y"]), 3, None)


def test_folders_named_by_numbers_for_labels_that_are_numbers():
    folders = sorted(map(str, range(12)))  # 0, 1, 10, 11, 2, ...
    trained_on_folders = plain_task(labelled(range(12)), 12, folders)
    assert [folders[target] for target in trained_on_folders.targets] == [*map(str, range(12))]
    trained_on_numbers = plain_task(labelled(range(12), folders), 12, None)
    assert trained_on_numbers.labels.tolist() == [int(name) for name in folders]
    assert trained_on_numbers.class_names == [*map(str, range(12))]


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"data set has 1 class .* lacks: beee; did you mean bee\?"
    ):
        plain_task(labelled([0, 1], ["ant", "beee"]), 4, NAMES)


def test_two_classes_of_one_name_match_in_their_order_only():
    twice = ("crane", "ant", "crane")
    assert plain_task(labelled([2], list(twice)), 3, twice).targets.tolist() == [[2]]
    with pytest.raises(ValueError, match="two classes named crane"):
        plain_task(labelled([0], ["crane"]), 3, twice)


def test_a_label_out_of_range_or_missing_is_refused_and_named():
    with pytest.raises(ValueError, match=r"1\.png has the label 7, .* 4 classes; expected 0"):
        plain_task(labelled([0, 7]), 4, None)
    with pytest.raises(ValueError, match=r"without a label: 1 of 2, the first is 1\.png"):
        plain_task(labelled([0, -1]), 4, None)
    with pytest.raises(ValueError, match=r"images without a label: .*; all need a class"):
        plain_task(labelled(None), 4, None)


def test_rows_are_filled_up():
    assert padded([[3], [1, 2], []]).tolist() == [[3, -1], [1, 2], [-1, -1]]


def test_the_fingerprint_is_of_names_and_answers():
    task = plain_task(labelled([1, 0]), 2, None)
    assert task.fingerprint() == plain_task(labelled([1, 0]), 2, NAMES[:2]).fingerprint()
    assert task.fingerprint() != plain_task(labelled([1, 1]), 2, None).fingerprint()
    assert task.fingerprint() != plain_task(labelled([1, 0]), 3, None).fingerprint()

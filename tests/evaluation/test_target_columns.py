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
    assert task.notes == ["the images have 3 of 4 classes; all 4 logits are compared"]


def test_only_the_logits_of_classes_that_are_there():
    data = labelled([0, 2, 0], ["dog", "ant", "bee"])  # no ant
    task = plain_task(data, 4, NAMES, present_only=True)
    assert task.columns.tolist() == [1, 3]
    assert task.targets.tolist() == [[1], [0], [1]]
    assert task.class_names == ["bee", "dog"]


def test_numbers_where_a_name_is_missing():
    assert plain_task(labelled([1, 0]), 2, ("ant", "bee")).targets.tolist() == [[1], [0]]
    task = plain_task(labelled([1, 0], ["x", "y"]), 2, None)
    assert task.targets.tolist() == [[1], [0]]
    assert "numbered in the order of their names" in task.notes[0]
    with pytest.raises(ValueError, match="has 2 classes, the classifier has 3 without names"):
        plain_task(labelled([1, 0], ["x", "y"]), 3, None)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"data set: .* no class beee; did you mean bee\?"):
        plain_task(labelled([0, 1], ["ant", "beee"]), 4, NAMES)


def test_two_classes_of_one_name_match_in_their_order_only():
    twice = ("crane", "ant", "crane")
    assert plain_task(labelled([2], list(twice)), 3, twice).targets.tolist() == [[2]]
    with pytest.raises(ValueError, match="two classes named crane"):
        plain_task(labelled([0], ["crane"]), 3, twice)


def test_a_label_out_of_range_or_missing_is_refused_and_named():
    with pytest.raises(ValueError, match=r"1\.png has the label 7, .* 4 classes; expected 0"):
        plain_task(labelled([0, 7]), 4, None)
    with pytest.raises(ValueError, match=r"without a label, the first is 1\.png"):
        plain_task(labelled([0, -1]), 4, None)
    with pytest.raises(ValueError, match="images without a label; the class of every image"):
        plain_task(labelled(None), 4, None)


def test_rows_are_filled_up():
    assert padded([[3], [1, 2], []]).tolist() == [[3, -1], [1, 2], [-1, -1]]


def test_the_fingerprint_is_of_names_and_answers():
    task = plain_task(labelled([1, 0]), 2, None)
    assert task.fingerprint() == plain_task(labelled([1, 0]), 2, NAMES[:2]).fingerprint()
    assert task.fingerprint() != plain_task(labelled([1, 1]), 2, None).fingerprint()
    assert task.fingerprint() != plain_task(labelled([1, 0]), 3, None).fingerprint()

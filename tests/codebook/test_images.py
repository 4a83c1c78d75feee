import torch

from beit.codebook.images import CodebookSource


class Labels:
    """A source of labels only."""

    def __init__(self, labels, names=None):
        self.labels = None if labels is None else torch.tensor(labels)
        self.class_names, self.why_unlabelled = names, ""


def named(labels, names=None):
    source = CodebookSource(Labels(labels, names), 8)
    return source.labels if source.labels is None else source.labels.tolist(), source.class_names


def test_labels_without_a_name_are_those_that_occur():
    """No space is made for the numbers below a large label: statistics are (K, Y)."""
    assert named([900_000, -1, 7, 7]) == ([1, -1, 0, 0], ["label 7", "label 900000"])
    assert named([4, 0, 90], ["a", "b\udce4"]) == (
        *([2, 0, 3],),
        ["a", "b\\udce4", "label 4", "label 90"],
    )
    assert named([0, 1], ["a", "b", "c"]) == ([0, 1], ["a", "b", "c"])
    assert named([-1, -1], ["a"]) == (None, None)
    assert named(None) == (None, None)

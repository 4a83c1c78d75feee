"""The lists of a run's images: what a resumed run notices, and what it says."""

import gzip
import json
import logging
from types import SimpleNamespace

import pytest
import torch

from beit.run.directory import RunDirectory
from beit.run.images import check_images, keep_images, warn_of_changes
from beit.segmentation.label_classes import label_classes


class Named:
    """Images of which only names, labels and classes matter."""

    def __init__(self, names, labels=None, class_names=None):
        self._names = names
        self.labels = None if labels is None else torch.tensor(labels)
        self.class_names = class_names

    def __len__(self):
        return len(self._names)

    def name(self, index):
        return self._names[index]


def numbered(*numbers):
    return Named([f"{number:03}.png" for number in numbers])


@pytest.fixture
def directory(tmp_path):
    return RunDirectory.create(tmp_path / "run", {"a": 1}, {"verb": "pretrain"})


def keep(directory, sets, labelled=False, first=True):
    """Start or resume with these images, changed or not. Returns: the warnings logged."""
    warnings = []
    fabric = SimpleNamespace(is_global_zero=first)
    journal = SimpleNamespace(directory=directory, fabric=fabric, log_warning=warnings.append)
    keep_images(journal, check_images(directory, sets, True, labelled))
    return warnings


def refused(directory, sets, labelled=False):
    with pytest.raises(ValueError, match="have changed since the run started") as caught:
        check_images(directory, sets, False, labelled)
    return str(caught.value)


def test_images_gone_and_new_are_counted_and_named(directory):
    keep(directory, {"data.train": numbered(*range(41))})
    now = {"data.train": numbered(*range(9, 41), *range(60, 65))}
    message = refused(directory, now)
    assert (
        "data.train: 41 images then, 37 now, "
        "9 gone (000.png, 001.png, 002.png, 003.png, 004.png and 4 more), "
        "5 new (060.png, 061.png, 062.png, 063.png, 064.png). Put them back" in message
    )
    assert f"beit pretrain --resume {directory.path} --accept_changed_data true" in message
    (warning,) = keep(directory, now)
    assert "resumed with images that have changed: data.train: 41 images then, 37" in warning
    check_images(directory, now, False)  # the list is of these images since


def test_the_same_images_are_no_change(directory):
    named = {"data.train": Named(["a\udcff.png", "b.png"]), "data.validation": None}
    assert keep(directory, named) == []
    before = directory.images_file.stat().st_mtime_ns
    assert check_images(directory, named, False) == check_images(None, named, False)
    assert keep(directory, named) == []
    assert directory.images_file.stat().st_mtime_ns == before
    # Labels count only in trainings that use them.
    check_images(directory, {"data.train": Named(["a\udcff.png", "b.png"], [0, 1], ["x"])}, False)


def test_order_labels_classes_and_sets_are_compared(directory):
    train = {"data.train": Named(["a", "b", "c"], [0, 1, 1], ["x", "y"])}
    keep(directory, train, labelled=True)
    other = {"data.train": Named(["b", "a", "c"], [1, 0, 1], ["x", "y"])}
    assert "3 images then, 3 now, in another order" in refused(directory, other, True)
    other = {"data.train": Named(["a", "b", "c"], [0, 0, 1], ["x", "y"])}
    expected = "1 gone (b with label 1), 1 new (b with label 0)."
    assert expected in refused(directory, other, True)
    other = {"data.train": Named(["a", "b", "c"], [0, 1, 1], ["x", "z"])}
    assert "3 now, classes x, y then, x, z now." in refused(directory, other, True)
    added = {**train, "data.validation": Named(["d"], [0])}
    expected = "data.validation: 0 images then, 1 now, 1 new (d with label 0)."
    assert expected in refused(directory, added, True)


def test_values_of_classes_in_label_maps_are_compared(directory):
    def maps(*values):
        named = Named(["a"], class_names=["ground", "crack"])
        named.classes = label_classes(["ground", "crack"], values=values)
        return {"data.train": named}

    keep(directory, maps(0, 9), labelled=True)
    assert check_images(directory, maps(0, 9), False, labelled=True)
    changed = "in the maps ground is 0, crack is 9 then, ground is 9, crack is 0 now."
    assert changed in refused(directory, maps(9, 0), True)
    lists = json.loads(gzip.decompress(directory.images_file.read_bytes()))
    del lists["data.train"]["values"]  # as older versions wrote them
    directory.images_file.write_bytes(gzip.compress(json.dumps(lists).encode(), mtime=0))
    assert check_images(directory, maps(9, 0), False, labelled=True)


def test_only_the_first_process_writes(directory):
    keep(directory, {"data.train": numbered(1)}, first=False)
    assert not directory.images_file.exists()


def test_a_run_without_a_list_says_so_and_gets_one(directory, caplog):
    caplog.set_level(logging.INFO)
    assert check_images(directory, {"data.train": numbered(1)}, False)
    assert "has no images.json.gz; whether its images have changed is not known" in caplog.text
    assert keep(directory, {"data.train": numbered(1)}) == []
    assert json.loads(gzip.decompress(directory.images_file.read_bytes())) == {
        "data.train": {"images": "001.png", "classes": []}
    }


@pytest.mark.parametrize(
    "content", [b"", b"words", gzip.compress(b"[]", mtime=0), gzip.compress(b"{", mtime=0)[:-9]]
)
def test_a_damaged_list_is_refused(directory, content):
    directory.images_file.write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.json\.gz is damaged .*; delete it to resume"):
        check_images(directory, {"data.train": numbered(1)}, False)


def test_a_report_of_other_images_says_so(directory, caplog):
    sets = {"data.train": numbered(1), "data.validation": numbered(2, 3)}
    keep(directory, sets)
    warn_of_changes(directory, {"data.validation": numbered(2, 3)})
    assert caplog.text == ""
    warn_of_changes(directory, {"data.validation": numbered(2)})
    assert "figures may differ from the log" in caplog.text
    assert "data.validation: 2 images then, 1 now, 1 gone (003.png)" in caplog.text

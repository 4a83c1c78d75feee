import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from beit.data.batches import EvalBatches
from beit.data.source import UnreadableImage
from beit.data.sources import open_source
from beit.data.views import EvalView

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
EXPECTED = torch.from_numpy(PIXELS).permute(2, 0, 1)


class DataSet:
    def __init__(self, items, **attributes):
        self.items = items
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


@pytest.fixture
def opened(monkeypatch):
    module = ModuleType("own_set")
    monkeypatch.setitem(sys.modules, "own_set", module)

    def opened(items, part="", **attributes):
        module.images = lambda: DataSet(items, **attributes)
        return open_source(f"python:own_set:images{part}")

    return opened


@pytest.mark.parametrize(
    "item",
    [PIXELS, Image.fromarray(PIXELS), EXPECTED, (PIXELS, 3), [EXPECTED]],
    ids=["array", "PIL", "tensor", "pair", "list"],
)
def test_images_of_all_kinds(opened, item):
    image = opened([item]).image(0)
    assert torch.equal(image, EXPECTED) and image.is_contiguous()


def test_grey_images_and_memory_that_is_not_writable(opened):
    grey = PIXELS[..., 0].copy()
    grey.flags.writeable = False
    image = opened([grey]).image(0)  # a warning would be an error
    assert torch.equal(image, torch.from_numpy(PIXELS[..., :1].repeat(3, 2)).permute(2, 0, 1))


def test_labels_names_and_parts(opened):
    items = [PIXELS] * 10
    source = opened(items, targets=[0, 1, -1, 0, 1, 0, 1, 0, 1, 0], classes=["cat", "dog"])
    assert source.labels.tolist()[:3] == [0, 1, -1] and source.class_names == ["cat", "dog"]
    assert source.name(3) == "own_set:images/3"
    parts = [opened(items, part) for part in ("[:80%]", "[80%:]")]
    names = [{part.name(i) for i in range(len(part))} for part in parts]
    assert [len(part) for part in parts] == [8, 2] and not names[0] & names[1]
    assert parts[0].labels is None and "targets" in parts[0].why_unlabelled


def test_a_file_that_is_gone_is_left_out(opened):
    source = opened([PIXELS, FileNotFoundError("b.png is gone")])
    with pytest.raises(UnreadableImage, match=r"own_set:images/1: b\.png is gone"):
        source.image(1)
    (batch,) = EvalBatches(source, EvalView((4, 4), 1.0), 2)
    assert len(batch.images) == 1 and batch.unreadable == ["own_set:images/1: b.png is gone"]


def test_a_missing_entry_names_its_item(opened):
    with pytest.raises(ValueError, match=r"^own_set:images/1: KeyError 'row'$"):
        opened([PIXELS, KeyError("row")]).image(1)


def test_a_file_of_such_a_name_is_a_file(opened, tmp_path, monkeypatch):
    """It may come from somebody else, and be named by a shell's `*`."""
    opened([PIXELS])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "python:own_set:images").mkdir()
    with pytest.raises(ValueError, match="no images"):
        open_source("python:own_set:images")


def test_mistakes_are_refused(opened, monkeypatch):
    with pytest.raises(ZeroDivisionError):  # a mistake in the user's code is no unreadable image
        opened([ZeroDivisionError()]).image(0)
    for item, found in ((PIXELS / 255, "float64"), (PIXELS[:, :, :2], "4, 6, 2"), ("a.png", "str")):
        with pytest.raises(ValueError, match=f"an image is a .*{found}.*; expected a PIL image"):
            opened([item]).image(0)
    with pytest.raises(ValueError, match="has no images"):
        opened([])
    with pytest.raises(ValueError, match="expected an integer for each of 1 images"):
        opened([PIXELS], targets=[0, 1])
    with pytest.raises(ValueError, match=r"targets are 2 to 2; expected -1 .* of 2 classes"):
        opened([PIXELS], targets=[2], classes=["cat", "dog"])
    monkeypatch.setitem(sys.modules, "own_set", SimpleNamespace(images=lambda: 7, __file__=""))
    with pytest.raises(ValueError, match="gives an int; expected a data set with __len__"):
        open_source("python:own_set:images")
    with pytest.raises(ValueError, match="as in python:cells:NAME"):
        open_source("cells.py")

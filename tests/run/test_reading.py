import io

import pytest
import torch

from beit.data.batches import EvalBatches
from beit.data.source import UnreadableImage
from beit.data.unreadable import TooManyUnreadable
from beit.data.views import EvalView
from beit.run.device import DeviceConfig
from beit.run.launch import launch
from beit.run.one_pass import one_pass
from beit.run.progress import Progress
from beit.run.reading import Reading


class Holed:
    """Seven images, some of which cannot be read."""

    labels = None
    class_names = None
    why_unlabelled = ""

    def __init__(self, holes):
        self.holes = holes

    def __len__(self):
        return 7

    def name(self, index):
        return f"{index}.png"

    def image(self, index):
        if index in self.holes:
            raise UnreadableImage(self.name(index), "broken")
        return torch.full((3, 8, 8), index, dtype=torch.uint8)


def reading(holes, share=1.0, warnings=None):
    batches = EvalBatches(Holed(holes), EvalView((8, 8)), 3)
    fabric = launch(DeviceConfig(accelerator="cpu"))
    return Reading(batches, fabric, share, (warnings if warnings is not None else []).append)


def test_images_are_read_once_and_the_others_are_named_and_counted():
    warnings = []
    some = reading({0, 1, 2, 5}, warnings=warnings)
    assert [batch.indices.tolist() for batch in some] == [[3, 4], [6]]
    assert warnings == [f"unreadable, left out: {index}.png: broken" for index in (0, 1, 2, 5)]
    assert some.counts() == {"val_images": 3, "val_unreadable": 4}


def test_nothing_is_counted_where_all_can_be_read():
    whole = reading(set(), share=0.0)
    assert sum(len(batch.indices) for batch in whole) == 7
    assert whole.counts() == {}


def test_too_many_and_all_are_refused():
    with pytest.raises(ValueError, match=r"2 of 7 images cannot be read.*0\.png: broken"):
        list(reading({0, 1}, share=0.2))
    nothing = reading(set(range(7)))
    assert list(nothing) == []
    with pytest.raises(ValueError, match=r"none of 7 validation images can be read: 0\.png"):
        nothing.counts()


def test_what_another_process_cannot_read_counts_here_too(monkeypatch):
    """All processes raise together; one that raised alone would leave the others waiting."""
    some, strict = reading({1}, share=0.3), reading({1}, share=0.2)
    monkeypatch.setattr(type(some._fabric), "world_size", 2)

    def gather(everyone, names):
        everyone[:] = [names, {"5.png: broken"}]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    assert [batch.indices.tolist() for batch in some] == [[0, 2], [3, 4, 5], [6]]
    assert some.counts() == {"val_images": 5, "val_unreadable": 2}
    with pytest.raises(TooManyUnreadable, match=r"2 of 7 images .*1\.png: broken\. Also 5\.png"):
        list(strict)


def test_one_pass_leaves_images_out_and_shows_its_progress():
    batches, stream = EvalBatches(Holed({1, 3, 4, 5}), EvalView((8, 8)), 3), io.StringIO()
    fabric = launch(DeviceConfig(accelerator="cpu"))
    with Progress(len(batches), stream=stream, line_seconds=0.0) as progress:
        passed = one_pass(fabric, batches, 1.0, progress)
        assert [batch.indices.tolist() for batch in passed] == [[0, 2], [6]]
        assert stream.getvalue().count("unreadable, left out: ") == 4
        with pytest.raises(TooManyUnreadable, match="4 of 7 images cannot be read"):
            list(one_pass(fabric, batches, 0.5, progress))
    assert "step 3" in stream.getvalue()

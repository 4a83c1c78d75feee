import pytest
import torch

from beit.data.batches import Batch
from beit.data.source import UnreadableImage
from beit.data.unreadable import TooManyUnreadable, Unreadable, allowed, described, readable


def batch(size, *unreadable):
    images = torch.zeros(size, 3, 4, 5, dtype=torch.uint8)
    return Batch(images, images, torch.zeros(size).long(), torch.arange(size), list(unreadable))


def test_each_is_counted_once_and_too_large_a_share_raises():
    count = Unreadable(total=300, limit_share=0.01)
    assert count.note([]) == []
    assert count.note(["a: x", "b: y", "a: x"]) == ["a: x", "b: y"]
    assert count.note(["a: x", "c: z"]) == ["c: z"]
    restored = Unreadable(total=300, limit_share=0.01)
    restored.load_state_dict(count.state_dict())
    assert restored.note(["b: y"]) == []
    with pytest.raises(ValueError, match=r"4 of 300 images .* 1%: a: x. Also b, c, d"):
        restored.note(["d: w"])


def test_a_name_with_a_colon_is_named_whole():
    names = [str(UnreadableImage(name, "x: y")) for name in ("a", "b: 1", '"c"')]
    assert names == ["a: x: y", '"b: 1": x: y', '"\\"c\\"": x: y']
    with pytest.raises(TooManyUnreadable, match=r'Also "b: 1", a\. Repair'):
        Unreadable(3, 0.0).note(names)


@pytest.mark.parametrize(
    ("total", "share", "most"), [(300, 0.01, 3), (91, 0.01, 1), (20, 0.01, 1), (19, 0.01, 0.19)]
)
def test_one_broken_photo_does_not_stop_a_set_of_some(total, share, most):
    assert allowed(total, share) == pytest.approx(most)
    assert allowed(total, 0.0) == 0


def test_a_missing_option_is_the_only_advice():
    dark = "b.tif: uint16 values up to 9; say which, as in SOURCE?range=0:4095"
    with pytest.raises(TooManyUnreadable, match=r"allowed 0%: b\.tif: .*\?range=0:4095$"):
        Unreadable(3, 0.0).note(["a.png: broken", dark, "c.png: broken"])
    assert described(["b: y", "a: x"], "Repair them") == "a: x. Also b. Repair them"


def test_empty_batches_are_skipped_and_reported():
    batches = [batch(4, "a: x"), batch(0, "b: y", "c: z"), batch(3)]
    warnings = []
    kept = list(readable(batches, Unreadable(10, 0.3), warnings.append))
    assert [len(batch.indices) for batch in kept] == [4, 3]
    assert warnings == [f"unreadable, left out: {name}" for name in ("a: x", "b: y", "c: z")]
    with pytest.raises(
        ValueError,
        match=r"3 of 10 images cannot be read.*doctor DATA --write.*raise max_unreadable",
    ):
        list(readable(batches, Unreadable(10, 0.2), warnings.append))


def test_names_that_stopped_a_run_are_forgotten_since_they_were_repaired():
    count = Unreadable(total=10, limit_share=0.1)
    assert count.add(["a: x", "b: y"]) == ["a: x", "b: y"]
    with pytest.raises(TooManyUnreadable):
        count.check()
    restored = Unreadable(total=10, limit_share=0.1)
    restored.load_state_dict(count.state_dict())
    assert restored.names == set()

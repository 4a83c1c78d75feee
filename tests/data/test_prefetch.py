import pytest
import torch

from beit.data.batch import Batch
from beit.data.prefetch import Prefetch

CPU, META = torch.device("cpu"), torch.device("meta")


def batch(number):
    images = torch.full((2, 3, 4, 5), number, dtype=torch.uint8)
    return Batch(images, images, torch.tensor([1, 2]), torch.tensor([3, number]), ["a: b"])


def test_cpu_batches_pass_unchanged():
    batches = [batch(number) for number in range(3)]
    assert all(out is batch for out, batch in zip(Prefetch(batches, CPU), batches, strict=True))


def test_all_tensors_move_and_equal_ones_move_once():
    label_maps = torch.ones(2, 4, 5, dtype=torch.uint8)
    with_maps = batch(0)._replace(label_maps=label_maps, crops=torch.zeros(2, 5))
    empty = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    none = Batch(empty, empty, torch.empty(0).long(), torch.empty(0).long(), ["a: b"])
    for before, moved in zip((with_maps, none), Prefetch([with_maps, none], META), strict=True):
        assert moved.target_images is moved.images
        assert moved.unreadable == ["a: b"]
        for name in ("images", "labels", "indices", "label_maps", "crops"):
            assert getattr(moved, name).device.type == "meta"
            assert getattr(moved, name).shape == getattr(before, name).shape
    other = batch(0)._replace(target_images=torch.zeros(2, 3, 2, 2, dtype=torch.uint8))
    assert next(Prefetch([other], META)).target_images.shape == (2, 3, 2, 2)


def test_closing_ends_what_reads_ahead():
    ended = []

    class Batches:
        def __iter__(self):
            try:
                yield from map(batch, range(3))
            finally:
                ended.append(True)

    batches = Prefetch(Batches(), CPU)
    batches.begin()
    next(batches)
    assert not ended
    batches.close()
    assert ended


def test_waiting_is_measured(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 14.0])  # the seven between 3 and 10 are the step's own
    monkeypatch.setattr("beit.data.prefetch.time.perf_counter", lambda: next(clock))
    batches = Prefetch([batch(0), batch(1)], CPU)
    next(batches)
    next(batches)
    assert batches.wait_seconds == 7.0


def test_beginning_reads_one_batch_and_loses_none():
    read = []

    def reading():
        for number in range(3):
            read.append(number)
            yield batch(number)

    batches = Prefetch(reading(), CPU)
    batches.begin()
    assert read == [0]
    assert [int(out.indices[1]) for out in batches] == [0, 1, 2]


def test_errors_reach_the_loop():
    def failing():
        yield batch(0)
        raise ValueError("4 images in a row")

    batches = Prefetch(failing(), CPU)
    next(batches)
    with pytest.raises(ValueError, match="4 images in a row"):
        next(batches)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_batches_arrive_whole_and_in_order():
    batches = Prefetch((batch(number) for number in range(20)), torch.device("cuda"))
    for number, moved in enumerate(batches):
        assert moved.images.device.type == "cuda"
        assert moved.target_images is moved.images
        assert moved.images.eq(number).all()
        assert moved.indices.tolist() == [3, number]
        assert moved.unreadable == ["a: b"]

    def failing():
        yield batch(0)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(Prefetch(failing(), torch.device("cuda")))
    abandoned = Prefetch((batch(number) for number in range(20)), torch.device("cuda"))
    next(abandoned)
    del abandoned

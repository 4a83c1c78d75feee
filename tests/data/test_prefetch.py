import time

import pytest
import torch

from beit.data.batches import Batch
from beit.data.prefetch import prefetch


def batch(number):
    images = torch.full((2, 3, 4, 5), number, dtype=torch.uint8)
    return Batch(images, images, torch.tensor([1, 2]), torch.tensor([3, number]), ["a: b"])


def test_cpu_batches_pass_unchanged():
    batches = [batch(number) for number in range(3)]
    assert all(out is given for out, given in zip(prefetch(batches, "cpu"), batches, strict=True))


def test_waiting_is_measured():
    def slow():
        for number in range(2):
            time.sleep(0.02)
            yield batch(number)

    started = time.perf_counter()
    batches = prefetch(slow(), "cpu")
    next(batches)
    time.sleep(0.05)  # the step's own time does not count
    next(batches)
    assert 0.04 <= batches.wait_seconds <= time.perf_counter() - started - 0.05


def test_errors_reach_the_loop():
    def failing():
        yield batch(0)
        raise ValueError("4 images in a row")

    batches = prefetch(failing(), "cpu")
    next(batches)
    with pytest.raises(ValueError, match="4 images in a row"):
        next(batches)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_batches_arrive_whole_and_in_order():
    batches = prefetch((batch(number) for number in range(20)), "cuda")
    for number, moved in enumerate(batches):
        assert moved.student.device.type == "cuda"
        assert moved.tokenizer is moved.student
        assert moved.student.eq(number).all()
        assert moved.indices.tolist() == [3, number]
        assert moved.unreadable == ["a: b"]

    def failing():
        yield batch(0)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(prefetch(failing(), "cuda"))
    abandoned = prefetch((batch(number) for number in range(20)), "cuda")
    next(abandoned)
    del abandoned

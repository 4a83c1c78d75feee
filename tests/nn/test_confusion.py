import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from beit.nn.confusion import map_figures, pixel_confusion


def test_figures_by_hand() -> None:
    """Class 1 is only guessed, class 3 is nowhere; a pixel does not count."""
    truth = torch.tensor([[[0, 0, 0, 255], [0, 2, 2, 2]]], dtype=torch.uint8)
    guess = torch.tensor([[[0, 0, 1, 0], [0, 2, 0, 2]]])
    confusion = pixel_confusion(truth, guess, 4)
    assert confusion.dtype == torch.int64
    assert confusion.tolist() == [[3, 1, 0, 0], [0, 0, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    found = map_figures(confusion)
    assert found.iou[:3].tolist() == pytest.approx([3 / 5, 0, 2 / 3])
    assert found.accuracy[[0, 2]].tolist() == pytest.approx([3 / 4, 2 / 3])
    assert found.iou.isnan().tolist() == [False, False, False, True]
    assert found.accuracy.isnan().tolist() == [False, True, False, True]
    assert found.miou == pytest.approx((3 / 5 + 0 + 2 / 3) / 3)
    assert found.mean_accuracy == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found.pixel_accuracy == pytest.approx(5 / 7)


def some_maps(absent: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random maps of 7 classes; pixels are ignored, and one class is in none of them."""
    generator = torch.Generator().manual_seed(absent)
    truth, guess = (torch.randint(6, (3, 11, 5), generator=generator) for _ in range(2))
    guess = guess.where(torch.rand(guess.shape, generator=generator) < 0.5, truth)
    truth, guess = (maps + (maps >= absent) for maps in (truth, guess))
    ignored = torch.rand(truth.shape, generator=generator) < 0.2
    return truth.masked_fill(ignored, 255), guess


@pytest.mark.parametrize("absent", [0, 3, 6])
def test_it_agrees_with_torchmetrics_and_a_loop(absent: int) -> None:
    truth, guess = some_maps(absent)
    confusion = sum(pixel_confusion(t, g, 7) for t, g in zip(truth, guess, strict=True))
    expected = np.zeros((7, 7), dtype=np.int64)
    for row, column in zip(truth.numpy().ravel(), guess.numpy().ravel(), strict=True):
        if row != 255:
            expected[row, column] += 1
    assert np.array_equal(confusion.numpy(), expected)
    found = map_figures(confusion)
    theirs = MulticlassJaccardIndex(7, average="macro", ignore_index=255)
    assert found.miou == pytest.approx(float(theirs(guess, truth)), rel=1e-6)
    theirs = MulticlassJaccardIndex(7, average="none", ignore_index=255)
    by_class = theirs(guess, truth).double()
    there = found.iou.isfinite()
    assert there.sum() == 6
    torch.testing.assert_close(found.iou[there], by_class[there], rtol=1e-6, atol=0)


def test_nothing_labelled_has_no_figures() -> None:
    nothing = torch.full((2, 3), 255, dtype=torch.uint8)
    found = map_figures(pixel_confusion(nothing, torch.zeros(2, 3, dtype=torch.int64), 2))
    assert math.isnan(found.miou)
    assert math.isnan(found.pixel_accuracy)


def test_labels_out_of_range_are_refused() -> None:
    truth, guess = torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="labels has classes from 0 to 3; expected 0 to 2, or 255"):
        pixel_confusion(torch.tensor([[0, 3]]), guess[:1], 3)
    with pytest.raises(ValueError, match="predicted has classes from -1 to 0"):
        pixel_confusion(truth[:1], torch.tensor([[0, -1]]), 3)
    with pytest.raises(ValueError, match=r"labels are \(1, 2\) and predictions \(2, 2\)"):
        pixel_confusion(truth[:1], guess, 3)

import pytest
import torch

from beit.data.views import EvalView
from beit.evaluation.crops import CropViews


def picture(height: int, width: int) -> torch.Tensor:
    return torch.randint(
        256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def test_one_crop_is_the_evaluation_view():
    image = picture(31, 47)
    views = CropViews((12, 16), 0.8)(image)
    assert torch.equal(views, EvalView((12, 16), 0.8)(image)[None])


def test_five_are_the_centre_and_the_corners():
    image = picture(15, 20)  # the size it is scaled to: nothing is interpolated
    views = CropViews((12, 16), 0.8, crops=5)(image)
    assert views.shape == (5, 3, 12, 16)
    corners = [image[:, :12, :16], image[:, :12, 4:], image[:, 3:, :16], image[:, 3:, 4:]]
    assert torch.equal(views[1:], torch.stack(corners))
    assert torch.equal(views[0], image[:, 2:14, 2:18])


def test_the_border_is_cut_off_first():
    image = picture(16, 20)
    inner = image[:, 2:-2, 2:-2].clone()
    image[:, :2] = image[:, -2:] = 0
    image[:, :, :2] = image[:, :, -2:] = 255
    assert torch.equal(CropViews((12, 16), 1.0, border=2)(image)[0], inner)
    tiny = picture(4, 4)
    assert torch.equal(CropViews((4, 4), 1.0, border=2)(tiny)[0], tiny)  # nothing would be left


def test_other_numbers_of_crops_are_refused():
    with pytest.raises(ValueError, match=r"crops must be 1 \(the centre\) or 5 .*, got 3"):
        CropViews((4, 4), crops=3)

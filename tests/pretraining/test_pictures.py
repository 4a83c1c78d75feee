import io

import numpy as np
import pytest
import torch
from PIL import Image

from beit.nn.targets import PixelTarget
from beit.pretraining.pictures import painted_predictions, predictions, similarity_maps

GRID = (2, 3)
IMAGES = torch.arange(2 * 3 * 4 * 6, dtype=torch.uint8).view(2, 3, 4, 6)
MASKED = torch.tensor([[0, 4], [2, 5]])
SCALE = 256 // 6  # a pixel of the image in the picture
PATCH, WIDE = 2 * SCALE, 6 * SCALE + 8


def middle(picture, panel, patch):
    """The colour in the middle of a patch of a panel, counted from the left."""
    sheet = np.asarray(Image.open(io.BytesIO(picture.data)))
    row, column = divmod(patch, 3)
    return sheet[row * PATCH + PATCH // 2, panel * WIDE + column * PATCH + PATCH // 2].tolist()


def test_predicted_pixels_stand_in_their_place():
    painted = torch.full((2, 3, 4, 6), 0.2)
    gallery = painted_predictions(IMAGES, MASKED, painted, GRID, "Two.")
    assert gallery.caption.startswith("Two. Left to right")
    picture = gallery.pictures[0]
    assert picture.caption == "2 of 6 patches predicted"
    assert middle(picture, 1, 4) == [128, 128, 128, 90]  # hidden
    assert middle(picture, 2, 4) == [51, 51, 51, 255]  # predicted
    assert middle(picture, 2, 1) == middle(picture, 0, 1)  # seen


def test_similarity_is_brightness():
    similarity = torch.tensor([[1.0, 0.2], [-0.5, 0.5]])
    pictures = similarity_maps(IMAGES, MASKED, similarity, GRID, "").pictures
    assert [picture.caption for picture in pictures] == ["mean cosine 0.6", "mean cosine 0"]
    assert middle(pictures[0], 2, 0) == [255, 255, 255, 255]
    assert middle(pictures[0], 2, 4) == [51, 51, 51, 255]
    assert middle(pictures[1], 2, 2) == [0, 0, 0, 255]
    assert middle(pictures[0], 2, 1)[3] == 70


def test_normalised_pixels_are_said_to_borrow_their_brightness():
    for normalised in (True, False):
        target = PixelTarget((4, 6), 2, None, None, normalised)
        targets = target.of(IMAGES)
        gallery = predictions(target, IMAGES, MASKED, torch.zeros(2, 2, 12), targets, GRID)
        assert ("the true patch's mean and deviation" in gallery.caption) == normalised


def test_refusals():
    with pytest.raises(ValueError, match=r"painted \(1, 3, 4, 6\) must be \(2, 3, 4, 6\)"):
        painted_predictions(IMAGES, MASKED, torch.zeros(1, 3, 4, 6), GRID, "")
    with pytest.raises(ValueError, match=r"similarity \(2, 3\) must be \(2, 2\)"):
        similarity_maps(IMAGES, MASKED, torch.zeros(2, 3), GRID, "")

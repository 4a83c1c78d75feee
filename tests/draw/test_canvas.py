import io

import numpy as np
import pytest
import torch
from PIL import Image

from beit.draw import canvas


def test_small_images_grow_by_sharp_squares() -> None:
    image = torch.arange(3 * 4 * 6, dtype=torch.uint8).view(3, 4, 6)
    pixels = canvas.panel(image, side=31)
    assert pixels.shape == (20, 30, 3)
    assert (pixels[::5, ::5] == image.permute(1, 2, 0).numpy()).all()
    assert (pixels[4::5, 4::5] == image.permute(1, 2, 0).numpy()).all()


def test_large_images_shrink_and_floats_are_scaled() -> None:
    pixels = canvas.panel(torch.full((3, 40, 80), 0.5), side=20)
    assert pixels.shape == (10, 20, 3)
    assert (pixels == 128).all()


def test_cells_spread_patches_in_reading_order() -> None:
    like = np.zeros((4, 9, 3), np.uint8)
    spread = canvas.cells(np.arange(6), (2, 3), like)
    assert spread[:, ::3].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]
    assert (spread[:, 0] == spread[:, 2]).all()
    depth = canvas.depth_in_cell((2, 3), like)
    assert depth[0, 1] == 0.5
    assert depth.min() > 0


def test_mosaic_is_transparent_where_nothing_is() -> None:
    red = np.full((2, 3, 3), (200, 0, 0), np.uint8)
    sheet = canvas.mosaic([[red, red], [red]], gap=1)
    assert sheet.shape == (5, 7, 4)
    assert sheet[0, 0].tolist() == [200, 0, 0, 255]
    assert sheet[2, :, 3].tolist() == [0] * 7
    assert (sheet[3:, 4:, 3] == 0).all()
    again = np.asarray(Image.open(io.BytesIO(canvas.png(sheet))))
    assert (again == sheet).all()
    assert canvas.png(sheet) == canvas.png(sheet)


def test_a_batch_is_not_an_image() -> None:
    with pytest.raises(ValueError, match=r"\(c, H, W\), got \(1, 3, 4, 4\)"):
        canvas.panel(torch.zeros(1, 3, 4, 4))


def test_masked_patches_are_grey() -> None:
    image = torch.arange(2 * 3, dtype=torch.uint8).expand(3, 6).reshape(3, 2, 3)
    whole, view, hidden = canvas.masked_view(image, torch.tensor([1, 5]), (2, 3))
    h, w = whole.shape[:2]
    assert hidden.mean() == pytest.approx(2 / 6, abs=0.01)
    assert view[h // 4, w // 2].tolist() == [128, 128, 128, 90]
    assert view[h // 4, 0].tolist() == [*whole[h // 4, 0], 255]


def test_colours_of_masked_patches_stand_over_the_faded_image() -> None:
    whole = np.full((4, 6, 3), 7, np.uint8)
    colours = np.arange(6, dtype=np.uint8)[:, None].repeat(3, axis=1)
    view = canvas.over_masked(
        colours, (2, 3), whole, canvas.cells(np.arange(6) == 4, (2, 3), whole)
    )
    assert view[3, 3].tolist() == [4, 4, 4, 255]
    assert view[0, 0].tolist() == [7, 7, 7, 70]
    assert (view[..., 3] == 255).sum() == 4

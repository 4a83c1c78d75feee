import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from beit.draw.components import codebook_colours
from beit.draw.report import Picture
from beit.draw.tokens import code_examples, masked_predictions, token_maps, usage_plot

GRID = (2, 3)
IMAGES = torch.arange(2 * 3 * 4 * 6, dtype=torch.uint8).view(2, 3, 4, 6)
COLOURS = codebook_colours(torch.randn(7, 3, generator=torch.Generator().manual_seed(0)))
CODES = torch.tensor([[0, 1, 2, 3, 4, 4], [6, 5, 4, 3, 2, 1]])
SCALE = 256 // 6  # a pixel of the image in the picture
PATCH, WIDE, HIGH = 2 * SCALE, 6 * SCALE + 8, 4 * SCALE + 8


def pixels(picture: Picture) -> NDArray[np.uint8]:
    assert picture.media_type == "image/png"
    return np.asarray(Image.open(io.BytesIO(picture.data)))


def middle(sheet: NDArray[np.uint8], panel: tuple[int, int], patch: int) -> list[int]:
    """Return the colour in the middle of a patch of the panel at (row, column)."""
    row, column = divmod(patch, 3)
    y = panel[0] * HIGH + row * PATCH + PATCH // 2
    x = panel[1] * WIDE + column * PATCH + PATCH // 2
    return list(map(int, sheet[y, x]))


def test_token_maps_paint_every_code_its_colour_beside_the_image() -> None:
    gallery = token_maps(IMAGES, CODES, GRID, COLOURS, "Two images.")
    assert gallery.caption.startswith("Two images. Left to right")
    assert [p.caption for p in gallery.pictures] == [
        "5 different codes on 6 patches",
        "6 different codes on 6 patches",
    ]
    for index, picture in enumerate(gallery.pictures):
        sheet = pixels(picture)
        assert sheet.shape == (4 * SCALE, 18 * SCALE + 16, 4)
        assert sheet[0, 0, :3].tolist() == IMAGES[index, :, 0, 0].tolist()
        for patch in range(6):
            painted = COLOURS[CODES[index, patch]]
            assert middle(sheet, (0, 1), patch) == [*painted.tolist(), 255]
            mixed = middle(sheet, (0, 0), patch)[:3] + painted.astype(float)
            assert np.abs(np.array(middle(sheet, (0, 2), patch)[:3]) - mixed / 2).max() <= 0.5


def logits_of(predicted: torch.Tensor) -> torch.Tensor:
    """Rank the predicted code first, and all others by their distance to it."""
    return -(torch.arange(7) - predicted[..., None]).abs().float()


def test_masked_predictions_show_near_codes_near_and_frame_exact_ones() -> None:
    masked = torch.tensor([[0, 4], [2, 5]])
    predicted = torch.tensor([[0, 6], [3, 3]])  # one hit in the first image, none in the second
    logits = logits_of(predicted)
    gallery = masked_predictions(IMAGES, masked, logits, CODES, GRID, COLOURS, "")
    assert [p.caption for p in gallery.pictures] == [
        "1 of 2 codes right; rank of the true code: 2 of 7",  # places 1 and 3
        "0 of 2 codes right; rank of the true code: 3 of 7",  # of codes 4 and 1: places 2 and 4
    ]
    sheet = pixels(gallery.pictures[0])
    assert middle(sheet, (0, 1), 0) == [128, 128, 128, 90]  # hidden
    assert middle(sheet, (0, 1), 1)[3] == 255  # seen
    assert middle(sheet, (1, 0), 4) == [*COLOURS[4].tolist(), 255]  # the truth
    assert middle(sheet, (1, 1), 4) == [*COLOURS[6].tolist(), 255]  # the guess
    assert middle(sheet, (1, 1), 0) == [*COLOURS[0].tolist(), 255]
    assert middle(sheet, (1, 1), 1)[3] < 255  # not asked
    hit_edge = sheet[HIGH + 6, WIDE + PATCH // 2]
    miss_edge = sheet[HIGH + PATCH + 6, WIDE + PATCH + PATCH // 2]
    assert hit_edge.tolist() == [255, 255, 255, 255]
    assert miss_edge.tolist() == [*COLOURS[6].tolist(), 255]


def test_pictures_do_not_look_under_the_mask() -> None:
    masked, logits = torch.tensor([[0, 4]]), logits_of(torch.tensor([[1, 1]]))
    other = IMAGES[:1].clone()
    other[:, :, :2, :2] = 255  # patch 0
    before, after = (
        pixels(masked_predictions(x, masked, logits, CODES[:1], GRID, COLOURS, "").pictures[0])
        for x in (IMAGES[:1], other)
    )
    assert (before[:, WIDE:] == after[:, WIDE:]).all()


def test_code_examples_come_from_different_images_and_frame_the_patch() -> None:
    images = torch.zeros(5, 3, 12, 20, dtype=torch.uint8)
    codes = torch.full((5, 15), 1)
    codes[:, 7] = 2  # the middle patch of the 3 x 5 grid
    codes[0, 0] = 3  # in one image only: not shown
    images[:, 0, 4:8, 8:12] = 100
    gallery = code_examples(images, codes, (3, 5), 10, "", num_examples=4)
    captions = [p.caption for p in gallery.pictures]
    assert captions == ["Code 1, used 69 times", "Code 2, used 5 times"]
    assert gallery.pictures[1].alt == "4 patches from different images, all of code 2"
    sheet = pixels(gallery.pictures[1])
    assert sheet.shape == (108, 4 * 114 - 6, 4)
    assert sheet[54, 54].tolist() == [100, 0, 0, 255]  # the patch, in the middle of its neighbours
    assert sheet[36 + 3, 54].tolist() == [255, 255, 255, 255]  # its frame
    assert sheet[30, 54].tolist() == [0, 0, 0, 255]


def test_code_examples_work_at_every_edge_and_with_one_patch() -> None:
    for patch in range(6):
        codes = torch.zeros(1, 6, dtype=torch.int64)
        codes[0, patch] = 1
        shown = code_examples(IMAGES[:1], codes, GRID, 5, "").pictures
        assert [p.caption for p in shown] == ["Code 0, used 5 times", "Code 1, used 1 times"]
    assert len(code_examples(IMAGES, torch.zeros(2, 1).long(), (1, 1), 3, "").pictures) == 1


def test_usage_plot_states_the_health_of_the_codebook() -> None:
    even = usage_plot(torch.full((8,), 5), "all alike")
    assert even.caption == "all alike"
    assert b"8 of 8 codes used (100.0%)" in even.data
    assert b"perplexity 8 (100.0% of 8)" in even.data
    assert b"unused" not in even.data
    half = usage_plot(torch.tensor([0.0, 9.0, 9.0, 0.0]), "")
    assert b"perplexity 2 (50.0% of 4)" in half.data
    assert b"2 unused" in half.data
    many = usage_plot(torch.arange(8192), "")
    assert len(many.data) < 12_000
    assert usage_plot(torch.arange(8192).flip(0), "") == many  # the order of codes is no matter


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"codes must be \(B, N\) = \(2, 8\)"):
        token_maps(IMAGES, CODES, (2, 4), COLOURS, "")
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 6\), got 0 to 6"):
        token_maps(IMAGES, CODES, GRID, COLOURS[:6], "")
    with pytest.raises(ValueError, match=r"images must be \(B, c, H, W\)"):
        token_maps(IMAGES[0], CODES, GRID, COLOURS, "")
    with pytest.raises(ValueError, match=r"must be \(B, M\) and \(B, M, 7\)"):
        masked_predictions(IMAGES, CODES[:, :2], logits_of(CODES), CODES, GRID, COLOURS, "")
    with pytest.raises(ValueError, match="num_codes_shown 0"):
        code_examples(IMAGES, CODES, GRID, 0, "")
    with pytest.raises(ValueError, match="not all zero"):
        usage_plot(torch.zeros(4), "")

import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from beit.codebook.gallery import Cut, Row, cut, framed, gallery_figure, strips
from beit.draw import canvas

GRID = (3, 4)
IMAGE = torch.arange(3 * 6 * 8, dtype=torch.uint8).view(3, 6, 8)  # patches of 2 x 2


def test_a_cut_holds_the_patch_and_what_is_around_it() -> None:
    for position in range(12):
        row, column = divmod(position, 4)
        expected = IMAGE[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].permute(1, 2, 0)
        for context, size in ((0, (2, 2)), (1, (6, 6)), (2, (6, 8)), (9, (6, 8))):
            seen = cut(IMAGE, position, GRID, context)
            top, left, height, width = seen.box
            assert seen.pixels.shape == (*size, 3)
            inside = seen.pixels[top : top + height, left : left + width]
            assert inside.tolist() == expected.tolist()


def test_a_position_outside_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"position 12 of a grid \(3, 4\) on an image of 6 x 8"):
        cut(IMAGE, 12, GRID, 1)


@pytest.mark.parametrize(("size", "side"), [(30, 120), (300, 120)])
def test_the_frame_lies_on_the_edges_of_the_patch(size: int, side: int) -> None:
    third = size // 3
    drawn = framed(Cut(np.full((size, size, 3), 7, np.uint8), (third, 0, third, third)), side)
    assert drawn.shape == (side, side, 3)
    marked = (drawn != 7).any(axis=2)
    rows, columns = marked.any(axis=1).nonzero()[0], marked.any(axis=0).nonzero()[0]
    assert abs((rows[0] + rows[-1]) / 2 - side / 2) <= 1
    assert rows[-1] - rows[0] + 1 == pytest.approx(side / 3, abs=7)
    assert columns[0] == 0  # moved inside where the image ends
    assert not marked[side // 2, side // 6]  # the patch itself stays to be seen
    orange = (drawn == (213, 94, 0)).all(axis=2)
    white = (drawn == 255).all(axis=2)
    assert orange.sum() + white.sum() == marked.sum()


def row(title: str, number: int, notes: tuple[str, ...] = ()) -> Row:
    seen = Cut(np.full((12, 16, 3), 99, np.uint8), (4, 4, 4, 4))
    return Row(title, notes, [seen] * number)


def test_a_figure_is_png_and_svg_and_always_the_same_bytes() -> None:
    rows = [row("Code 5", 3, ("7 uses", "50% frog")), row("Code 6", 0)]
    drawn = gallery_figure(rows, "closest", "A title", "a subtitle")
    assert drawn == gallery_figure(rows, "closest", "A title", "a subtitle")
    with Image.open(io.BytesIO(drawn.png)) as picture:
        assert picture.width == 2130  # 7.1 inches
        assert picture.info["dpi"][0] == pytest.approx(300, abs=0.1)
    words = {part.text for part in ElementTree.fromstring(drawn.svg).iter() if part.text}
    assert {"A title", "a subtitle", "Code 5", "50% frog", "no patch has this code"} <= words


def test_names_are_shown_as_they_are() -> None:
    """Neither markup, nor formulas, nor letters that the font lacks, nor long ones break it."""
    names = ("<script>alert('x')</script>", "$\\frac{1}{", "猫 \U0001f438", "x" * 99)
    drawn = gallery_figure([row("Code 5", 1, names)], "closest", "$t", "<b>")
    words = [part.text or "" for part in ElementTree.fromstring(drawn.svg).iter()]
    assert "<script>alert('x')</scr…" in words  # cut to its room
    assert {"$\\frac{1}{", "猫 \U0001f438", "$t", "<b>"} <= set(words)


def test_strips_show_every_patch() -> None:
    gallery = strips([row("Code 5", 6, ("7 uses",)), row("Code 6", 0)], "Some codes", side=32)
    first, second = gallery.pictures
    assert first.caption == "Code 5. 7 uses"
    assert second.caption == "Code 6: no patch."
    pixels = np.asarray(Image.open(io.BytesIO(first.data)))
    h, w = framed(row("", 1).cuts[0], 32).shape[:2]
    assert pixels.shape == (2 * h + 6, 4 * w + 3 * 6, 4)
    assert canvas.png(pixels) == first.data


def test_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one code"):
        gallery_figure([], "closest", "title", "subtitle")

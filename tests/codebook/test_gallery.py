import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from beit.codebook.crops import Crop, framed
from beit.codebook.gallery import Row, gallery_figure, strips
from beit.draw import canvas


def row(title: str, number: int, notes: tuple[str, ...] = ()) -> Row:
    crop = Crop(np.full((12, 16, 3), 99, np.uint8), (1 / 3, 1 / 4, 2 / 3, 1 / 2))
    return Row(title, notes, [crop] * number)


def test_a_figure_is_png_and_svg_and_always_the_same_bytes() -> None:
    rows = [row("Code 5", 3, ("7 uses", "50% frog")), row("Code 6", 0)]
    drawn = gallery_figure(rows, "closest", "A title", "a subtitle")
    assert drawn == gallery_figure(rows, "closest", "A title", "a subtitle")
    with Image.open(io.BytesIO(drawn.drawing.png)) as picture:
        assert picture.width == 2130  # 7.1 inches
        assert picture.info["dpi"][0] == pytest.approx(300, abs=0.1)
    words = {part.text for part in ElementTree.fromstring(drawn.drawing.svg).iter() if part.text}
    assert {"A title", "a subtitle", "Code 5", "50% frog", "no patch has this code"} <= words


def test_names_are_shown_literally() -> None:
    """Markup, formulas, letters that the font lacks and long names are shown as text."""
    names = ("<script>alert('x')</script>", "$\\frac{1}{", "猫 \U0001f438", "x" * 99)
    drawn = gallery_figure([row("Code 5", 1, names)], "closest", "$t", "<b>")
    words = [part.text or "" for part in ElementTree.fromstring(drawn.drawing.svg).iter()]
    assert "<script>alert('x')</scr…" in words  # shortened
    assert {"$\\frac{1}{", "猫 \U0001f438", "$t", "<b>"} <= set(words)


def test_strips_show_every_patch() -> None:
    gallery = strips([row("Code 5", 6, ("7 uses",)), row("Code 6", 0)], "Some codes", side=32)
    first, second = gallery.pictures
    assert first.caption == "Code 5. 7 uses"
    assert second.caption == "Code 6: no patch."
    pixels = np.asarray(Image.open(io.BytesIO(first.data)))
    h, w = framed(row("", 1).crops[0], 32).shape[:2]
    assert pixels.shape == (2 * h + 6, 4 * w + 3 * 6, 4)
    assert canvas.png(pixels) == first.data


def test_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one code"):
        gallery_figure([], "closest", "title", "subtitle")

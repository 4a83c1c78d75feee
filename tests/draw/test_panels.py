import io

import numpy as np
import pytest
from PIL import Image

from beit.draw.panels import DPI, PAGE_INCHES, Panel, draw_panels, heat

PIXELS = np.full((40, 60, 3), 90, np.uint8)


def width(png: bytes) -> int:
    return int(Image.open(io.BytesIO(png)).width)


def test_a_figure_is_no_wider_than_a_page() -> None:
    for columns in (1, 12):
        drawing = draw_panels([[Panel(PIXELS, "a")] * columns], "Title", bar="x")
        assert width(drawing.png) <= round(PAGE_INCHES * DPI) + 1
        assert b"<svg" in drawing.svg


def test_any_words_are_letters_and_free_places_stay_free() -> None:
    panel = Panel(PIXELS, "$x", "50$%", ["$a$", "<b>", "&", "1"], (2, 2))
    drawing = draw_panels([[None, panel], [panel]], "5 $ & <b>", labels=["one", "two"])
    assert b"<b>" not in drawing.svg
    assert drawing == draw_panels([[None, panel], [panel]], "5 $ & <b>", labels=["one", "two"])


def test_pixels_are_not_changed_and_nothing_is_refused() -> None:
    ends = heat(np.array([0.0, 1.0]))
    assert ends.shape == (2, 3)
    assert int(ends[0].sum()) < int(ends[1].sum())  # light is more
    drawing = draw_panels([[Panel(PIXELS)]], "")
    pixels = np.asarray(Image.open(io.BytesIO(drawing.png)).convert("RGB"))
    assert (pixels == 90).all(axis=2).mean() > 0.2
    with pytest.raises(ValueError, match="at least one panel"):
        draw_panels([[None]], "")

import numpy as np
import pytest

from beit.draw.colours import code_colours, place_colours


def test_a_colour_does_not_depend_on_the_vocabulary_around_it() -> None:
    assert (code_colours(16) == code_colours(8192)[:16]).all()
    assert (code_colours(5000) == code_colours(8192)[:5000]).all()


def test_colours_are_all_different_and_spread() -> None:
    colours = code_colours(8192)
    assert colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) > 8180  # 8-bit rounding may join a few
    few = code_colours(12).astype(float)
    distances = np.linalg.norm(few[:, None] - few[None], axis=2) + 1e3 * np.eye(12)
    assert distances.min() > 90
    brightness = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert 25 < brightness.min() < brightness.max() < 245  # seen on black and on white


def test_an_empty_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        code_colours(0)


def test_near_places_have_near_colours_and_the_first_axis_is_lightness() -> None:
    ends = place_colours(np.array([[0.0, 0.5, 0.5], [1.0, 0.5, 0.5]])).astype(int)
    assert (np.ptp(ends, axis=1) <= 1).all()  # greys
    assert ends[0].max() < 70 < 200 < ends[1].min()
    blue, yellow, green, red = place_colours(
        np.array([[0.5, 0.0, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 0.0], [0.5, 0.5, 1.0]])
    ).astype(int)
    assert blue[2] > max(blue[:2])
    assert yellow[2] < min(yellow[:2])
    assert green[1] > green[0]
    assert red[0] > red[1]
    places = np.random.default_rng(0).random((200, 3))
    moved = place_colours((places + 0.002).clip(0, 1)).astype(int)
    assert np.abs(moved - place_colours(places)).max() < 12

import numpy as np

from beit.draw.colours import place_colours


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

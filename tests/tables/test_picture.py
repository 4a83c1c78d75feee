import io

import numpy as np
import torch
from PIL import Image

from beit.draw import canvas
from beit.tables.picture import RIGHT, WRONG, Prediction, prediction_grid


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def image(value: int) -> torch.Tensor:
    return torch.full((3, 24, 32), value, dtype=torch.uint8)


def count(sheet: np.ndarray, colour: tuple[int, ...]) -> int:
    return int((sheet == colour).all(axis=2).sum())


def test_images_stand_in_their_order_framed_by_right_and_wrong() -> None:
    shown = [
        Prediction(image(11), "cat", 0.9, "cat", True),
        Prediction(image(22), "dog", 0.4, "cat", False),
        Prediction(None, truth="cat"),
        Prediction(image(33), "a class with a name that is much too long for its image", 1.0),
    ]
    sheet = opened(prediction_grid(shown))
    h, w = 24 * 6, 32 * 6  # enlarged to 192 at most
    frame = 2 * 5 * (w + 10) + 2 * 5 * h
    areas = {grey: np.argwhere((sheet == grey).all(axis=2)) for grey in (11, 22, 33)}
    assert {len(area) for area in areas.values()} == {h * w}
    corners = {grey: area.min(axis=0).tolist() for grey, area in areas.items()}
    (top, left), (right_top, right_left) = corners[11], corners[22]
    assert right_top == top
    assert right_left > left + w
    assert corners[33] == [corners[33][0], right_left]
    assert corners[33][0] > top + h
    assert sheet[top - 5, left - 5].tolist() == list(RIGHT)
    assert sheet[right_top - 5, right_left - 5].tolist() == list(WRONG)
    for colour in (RIGHT, WRONG):
        assert frame < count(sheet, colour) < frame + 1500  # the rest is letters
    assert (sheet[corners[33][0] - 5, right_left - 5] == 255).all()  # unknown: no frame


def test_without_truths_there_are_no_frames_and_six_columns_at_most() -> None:
    sheet = opened(prediction_grid([Prediction(image(11), "cat", 0.9)] * 50))
    assert count(sheet, RIGHT) == count(sheet, WRONG) == 0
    assert count(sheet, (11, 11, 11)) == 50 * 144 * 192
    assert sheet.shape[1] == 6 * (192 + 16) + 16


def test_a_heading_is_above_the_images() -> None:
    shown = [Prediction(image(11), "cat", 0.9)]
    plain, headed = (opened(prediction_grid(shown, heading)) for heading in ("", "1 of 2 wrong"))
    moved = len(headed) - len(plain)
    assert moved > 0
    assert (headed[moved + 16 :] == plain[16:]).all()
    assert (headed[: moved + 10] != 255).any()


def test_the_same_predictions_give_the_same_bytes() -> None:
    shown = [Prediction(torch.rand(3, 8, 8), "été", 0.5, "été", True)]
    assert prediction_grid(shown) == prediction_grid(shown)


def test_words_are_cut_to_their_room() -> None:
    font = canvas.font(15)
    assert canvas.shortened("two\nwords", 1000, font) == "two words"
    cut = canvas.shortened("a rather long name", 60, font)
    assert cut.endswith("…")
    assert "a rather long name".startswith(cut[:-1])
    assert font.getlength(cut) <= 60

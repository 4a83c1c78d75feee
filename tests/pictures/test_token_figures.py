import numpy as np
import pytest
import torch

from beit.draw import canvas
from beit.draw.components import components, directions, feature_colours
from beit.draw.panels import heat
from beit.pictures.token_figures import (
    HIDDEN,
    Predictions,
    feature_panels,
    fitted_to,
    prediction_panels,
    summary_figures,
    token_panels,
    token_table,
)

GRID = (2, 3)
IMAGE = torch.full((3, 4, 6), 100, dtype=torch.uint8)
CODES = torch.tensor([0, 1, 2, 3, 3, 1])
COLOURS = np.array([[10, 0, 0], [20, 0, 0], [30, 0, 0], [40, 0, 0]], np.uint8)
PREDICTIONS = Predictions(
    torch.tensor([1, 4]), torch.tensor([1, 0]), torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.1])
)
PATCH = 2 * (256 // 6)


def at(pixels: canvas.Pixels, patch: int, away: float = 0.5) -> list[int]:
    """A pixel of a patch: in its middle, or nearer its corner."""
    row, column = divmod(patch, 3)
    found: list[int] = pixels[int((row + away) * PATCH), int((column + away) * PATCH)].tolist()
    return found


def test_every_patch_has_the_colour_and_number_of_its_code() -> None:
    image, tokens, both = token_panels(IMAGE, CODES, GRID, COLOURS)
    assert (image.pixels == 100).all()
    for patch, code in enumerate(CODES.tolist()):
        assert at(tokens.pixels, patch) == COLOURS[code].tolist()
        assert at(both.pixels, patch) == [round(50 + COLOURS[code][0] / 2), 50, 50]
    assert list(tokens.words) == ["0", "1", "2", "3", "3", "1"]
    assert tokens.below == "4 codes, 6 patches"


def test_correct_tokens_have_a_frame_and_visible_patches_are_faded() -> None:
    panels = prediction_panels(IMAGE, CODES, PREDICTIONS, GRID, COLOURS, 0.5)
    _, view, true, predicted, probability, true_probability = panels
    hidden = [at(view.pixels, patch) == list(HIDDEN) for patch in range(6)]
    assert hidden == [False, True, False, False, True, False]
    assert at(true.pixels, 4, 0.1) == [*COLOURS[3].tolist(), 255]
    assert at(predicted.pixels, 1) == [*COLOURS[1].tolist(), 255]
    assert at(predicted.pixels, 1, 0.1) == [255] * 4  # correct
    assert at(predicted.pixels, 4) == at(predicted.pixels, 4, 0.1) == [*COLOURS[0].tolist(), 255]
    assert at(predicted.pixels, 0)[3] < 255
    assert predicted.below == "1 of 2 correct"
    assert list(probability.words) == ["", "50%", "", "", "25%", ""]
    assert at(probability.pixels, 4) == [*heat(np.array(0.5)).tolist(), 255]
    assert true_probability.below == "mean 30.0%"


def test_the_table_lists_the_metrics_of_each_image() -> None:
    codes, predictions = CODES[None], Predictions(*(part[None] for part in PREDICTIONS))
    table = token_table(["<b>.png"], codes, predictions)
    assert list(table.rows[0][:5]) == [1, "<b>.png", 4, 2, 1]
    assert list(table.rows[0][5:]) == pytest.approx([37.5, 30])
    figures = {"images": "1", "different codes": "4", "hidden tokens correct": "1 of 2"}
    assert summary_figures(codes, predictions) == figures
    assert predictions.filled(codes).tolist() == [[0, 1, 2, 3, 0, 1]]
    assert len(token_table(["a"], codes, None).columns) == 3


def test_features_use_the_components_of_the_first_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, decoder = torch.randn(2, 2, 6, 5, generator=generator)
    narrow = torch.randn(2, 6, 4, generator=generator)
    features = {"teacher": teacher, "decoder": decoder, "other": narrow}
    fitted = fitted_to(features)
    first = components(directions(teacher))
    torch.testing.assert_close(fitted["decoder"].axes, first.axes)
    assert not torch.equal(fitted["decoder"].low, first.low)
    assert fitted["other"].axes.shape == (4, 3)
    maps = {title: rows[1] for title, rows in features.items()}
    panels = feature_panels(IMAGE, maps, GRID, fitted)
    assert [panel.title for panel in panels] == ["image", "teacher", "decoder", "other"]
    expected = feature_colours(decoder[1], fitted["decoder"])
    assert at(panels[2].pixels, 5) == expected[5].tolist()

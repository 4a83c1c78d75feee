import numpy as np
import pytest
import torch

from beit.draw import canvas
from beit.draw.panels import heat
from beit.pictures.attention_panels import (
    FADED,
    TINT,
    Query,
    attention_figure,
    flat_map,
    mass_mask,
    overlay,
    rollout_figure,
    with_query,
)

GRID = (2, 3)
IMAGE = torch.full((3, 4, 6), 100, dtype=torch.uint8)
WEIGHTS = torch.tensor([0.05, 0.4, 0.05, 0.1, 0.3, 0.1])
PATCH = 2 * (256 // 6)


def middle(pixels: canvas.Pixels, patch: int) -> list[int]:
    row, column = divmod(patch, 3)
    at: list[int] = pixels[row * PATCH + PATCH // 2, column * PATCH + PATCH // 2].tolist()
    return at


def test_a_flat_map_has_a_square_a_patch_over_the_largest() -> None:
    pixels = flat_map(WEIGHTS, GRID, canvas.panel(IMAGE))
    assert pixels.shape == (2 * PATCH, 3 * PATCH, 3)
    for patch, weight in enumerate(WEIGHTS.double().numpy() / 0.4):
        assert middle(pixels, patch) == heat(np.array(weight)).tolist()


def test_the_patches_with_most_of_the_mass_are_tinted_and_outlined() -> None:
    pixels = mass_mask(IMAGE, WEIGHTS, GRID, 0.6)
    tinted = [round(0.6 * 100 + 0.4 * channel) for channel in TINT]
    tinted = [*tinted, 255]
    assert [middle(pixels, patch) == tinted for patch in range(6)] == [0, 1, 0, 0, 1, 0]
    assert middle(pixels, 0) == [100, 100, 100, FADED]  # on the page's own ground
    assert pixels[0, PATCH].tolist() == [*TINT, 255]
    assert pixels[PATCH, PATCH + PATCH // 2].tolist() == tinted  # no line between neighbours


def test_the_overlay_is_smooth_and_the_query_tinted() -> None:
    smooth = overlay(IMAGE, torch.full((6,), 0.2), GRID)
    assert (smooth == smooth[0, 0]).all()
    marked = with_query(IMAGE, 4, GRID)
    assert middle(marked, 4) == [round(0.35 * 100 + 0.65 * channel) for channel in TINT]
    assert marked[PATCH, PATCH].tolist() == list(TINT)
    assert marked[PATCH + PATCH // 6, PATCH + PATCH // 2].tolist() == [100] * 3
    assert (with_query(IMAGE, None, GRID) == 100).all()


def test_figures_come_as_png_and_svg_and_the_same_every_time() -> None:
    query = Query(4, "patch (2, 2)", "row02-col02")
    heads = {"head 1": WEIGHTS}
    first, second = (attention_figure(IMAGE, query, heads, GRID, "Title", 0.6) for _ in range(2))
    assert first == second
    assert first.png.startswith(b"\x89PNG")
    assert b"</svg>" in first.svg
    through = rollout_figure(IMAGE, [(query, WEIGHTS)], GRID, "Rollout", 0.6)
    assert through.png.startswith(b"\x89PNG")


def test_a_mass_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mass must be in \(0, 1\], got 1.5"):
        mass_mask(IMAGE, WEIGHTS, GRID, 1.5)

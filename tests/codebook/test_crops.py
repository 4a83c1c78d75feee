from pathlib import Path

import numpy as np
import pytest
import torch

from beit.codebook.crops import Crop, CropFile, crop_patch, framed

GRID = (3, 4)
IMAGE = torch.arange(3 * 6 * 8, dtype=torch.uint8).view(3, 6, 8)  # patches of 2 x 2


def test_a_crop_contains_the_patch_and_its_surroundings() -> None:
    for position in range(12):
        row, column = divmod(position, 4)
        expected = IMAGE[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].permute(1, 2, 0)
        for context, size in ((0, (2, 2)), (1, (6, 6)), (2, (6, 8)), (9, (6, 8))):
            crop = crop_patch(IMAGE, position, GRID, context)
            assert crop.pixels.shape == (*size, 3)
            top, left, bottom, right = np.multiply(crop.frame, size * 2).round().astype(int)
            inside = crop.pixels[top:bottom, left:right]
            assert inside.tolist() == expected.tolist()


@pytest.mark.parametrize(("size", "side"), [(30, 120), (300, 120)])
def test_the_frame_lies_on_the_edges_of_the_patch(size: int, side: int) -> None:
    drawn = framed(Crop(np.full((size, size, 3), 7, np.uint8), (1 / 3, 0, 2 / 3, 1 / 3)), side)
    assert drawn.shape == (side, side, 3)
    marked = (drawn != 7).any(axis=2)
    rows, columns = marked.any(axis=1).nonzero()[0], marked.any(axis=0).nonzero()[0]
    assert abs((rows[0] + rows[-1]) / 2 - side / 2) <= 1
    assert rows[-1] - rows[0] + 1 == pytest.approx(side / 3, abs=7)
    assert columns[0] == 0  # at the border of the image
    assert not marked[side // 2, side // 6]  # the patch itself is visible
    orange = (drawn == (213, 94, 0)).all(axis=2)
    white = (drawn == 255).all(axis=2)
    assert orange.sum() + white.sum() == marked.sum()


def test_crops_in_a_file_are_shrunk_and_found_by_their_place(tmp_path: Path) -> None:
    places = torch.tensor([3, 7, 20])
    crops = [Crop(np.full((8, 12, 3), n, np.uint8), (0.0, 0.25, 0.5, 0.5)) for n in range(3)]
    with (tmp_path / "crops").open("w+b") as file:
        store = CropFile(file, places, side=6)
        assert store.find(3) is None
        for place, crop in ((20, crops[2]), (3, crops[0])):
            store.add(place, crop)
        for place, crop in ((20, crops[2]), (3, crops[0])):
            found = store.find(place)
            assert found is not None
            assert found.frame == crop.frame
            assert found.pixels.tolist() == crop.pixels[::2, ::2].tolist()
        assert [store.find(place) for place in (7, 4, 99)] == [None] * 3  # not added, not a place

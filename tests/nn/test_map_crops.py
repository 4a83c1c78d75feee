"""Crops of feature maps: whole maps as torch resizes them, aligned cells, mirror images."""

import pytest
import torch
import torch.nn.functional as F

from beit.nn.map_crops import crop_maps

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def maps(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("grid", [(3, 5), (2, 3), (7, 11), (2, 9)])
def test_the_whole_map_is_resized_as_torch_does(seed, grid):
    given = maps(seed, 2, 3, 5, 4)
    resized = F.interpolate(given.permute(0, 3, 1, 2), grid, mode="bilinear", antialias=True)
    found = crop_maps(given, WHOLE.expand(2, 4), grid)
    torch.testing.assert_close(found, resized.flatten(2).transpose(1, 2), rtol=0, atol=2e-6)


def test_the_whole_map_on_its_own_grid_is_the_map_to_the_bit():
    given = maps(0, 2, 3, 5, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = crop_maps(given, WHOLE.expand(2, 4), (3, 5))
    assert found.dtype == torch.float32
    assert torch.equal(found, given.float().flatten(1, 2))


@pytest.mark.parametrize("seed", range(3))
def test_a_box_of_whole_cells_holds_these_cells(seed):
    given = maps(seed, 2, 4, 8, 3)
    boxes = torch.tensor([[0.25, 0.125, 0.5, 0.375], [0.5, 0.625, 0.5, 0.375]])
    expected = torch.stack([given[0, 1:3, 1:4], given[1, 2:4, 5:8]]).flatten(1, 2)
    torch.testing.assert_close(crop_maps(given, boxes, (2, 3)), expected, rtol=0, atol=1e-6)


def test_half_a_cell_further_is_the_mean_of_two():
    given = maps(0, 1, 1, 4, 3)
    found = crop_maps(given, torch.tensor([[0.0, 0.125, 1.0, 0.5]]), (1, 2))
    expected = (given[0, 0, :2] + given[0, 0, 1:3])[None] / 2
    torch.testing.assert_close(found, expected)


def test_a_mirrored_box_of_a_mirrored_map_is_the_mirrored_crop():
    given, box = maps(1, 1, 3, 5, 4), torch.tensor([[0.1, 0.2, 0.6, 0.5]])
    mirrored = torch.tensor([[0.1, 1 - 0.2 - 0.5, 0.6, 0.5]])
    crop = crop_maps(given, box, (2, 3)).unflatten(1, (2, 3))
    found = crop_maps(given.flip(2), mirrored, (2, 3)).unflatten(1, (2, 3))
    torch.testing.assert_close(found, crop.flip(2), rtol=0, atol=1e-6)

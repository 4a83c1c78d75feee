from itertools import permutations

import numpy as np
import pytest
import torch

from beit.data.colours import draw_changes, grey_mean, recoloured
from beit.data.order import sample_generator

LUMA = (0.299, 0.587, 0.114)


def jittered(image, factors, order, mean):
    """One image at a time, one change after another: the reference."""
    brightness, contrast, saturation = factors
    colours = image.to(torch.float32)
    for change in order:
        if change == "brightness":
            colours = colours * brightness
            mean = min(mean * brightness, 255.0)
        elif change == "contrast":
            colours = colours * contrast + mean * (1 - contrast)
        else:
            red, green, blue = colours
            luma = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
            colours = colours * saturation + luma * (1 - saturation)
        colours = colours.clamp(0, 255)
    return (colours + 0.5).to(torch.uint8)


def drawn(count, strength=0.4):
    """Factors, orders and means of images, and their changes (B, 3, 3)."""
    generator = sample_generator(0, 0, 0)
    draws = torch.rand(count, 5, generator=generator, dtype=torch.float64).tolist()
    orders = list(permutations(("brightness", "contrast", "saturation")))
    plain = [
        ([1 + strength * (2 * x - 1) for x in draw[:3]], orders[int(draw[3] * 6)], 255 * draw[4])
        for draw in draws
    ]
    return plain, torch.tensor([draw_changes(strength, draw[:4], 255 * draw[4]) for draw in draws])


@pytest.mark.parametrize("size", [(9, 14), (300, 310)])  # several images at once, and one
def test_changes_of_a_batch_are_those_of_one_image_after_another(size):
    views = torch.randint(256, (20, 3, *size), generator=sample_generator(0, 0, 1)).byte()
    before = views.clone()
    plain, changes = drawn(20)
    ours = recoloured(views, changes)
    assert ours.dtype == torch.uint8
    assert torch.equal(views, before)
    for view, (factors, order, mean), ours_of_it in zip(views, plain, ours, strict=True):
        difference = jittered(view, factors, order, mean).int() - ours_of_it.int()
        assert difference.abs().max() <= 1


def test_an_image_does_not_depend_on_its_batch():
    views = torch.randint(256, (700, 3, 8, 13), generator=sample_generator(0, 0, 1)).byte()
    _, changes = drawn(700)
    whole = recoloured(views, changes)
    alone = [recoloured(views[i : i + 1], changes[i : i + 1]) for i in range(0, 700, 50)]
    assert torch.equal(torch.cat(alone), whole[::50])


def test_without_changes_views_stay_the_same_tensor():
    views = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    assert recoloured(views, torch.empty(2, 0, 3)) is views


def test_mean_luma_is_exact_whatever_the_layout():
    image = torch.randint(256, (3, 700, 31), generator=sample_generator(0, 0, 2)).byte()
    image[:, :600] = 255  # sums of more rows than 16 bits hold
    red, green, blue = image.flatten(1).long().sum(1).tolist()
    mean = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue) / (700 * 31)
    decoded = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # channels last, as decoders
    assert grey_mean(image) == grey_mean(decoded) == mean
    crop = image[:, 5:400, 3:20]
    both = grey_mean(torch.stack([crop, crop.flip(1)]))
    assert both.shape == (2,)
    assert np.all(both == grey_mean(crop))

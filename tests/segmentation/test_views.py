import colorsys

import numpy as np
import pytest
import torch
from torch.nn import functional

from beit.data.order import sample_generator
from beit.segmentation.views import (
    SegmentViewConfig,
    SegmentViews,
    crop_box,
    distorted,
    resized,
    resized_map,
)

CONFIG = SegmentViewConfig(long_side=96, short_side=32)
PLAIN = SegmentViewConfig(
    long_side=96, short_side=32, brightness=0, contrast=0, saturation=0, hue=0, max_share=1
)
SIZE = (24, 36)


def blocks(height=40, width=52, side=9, seed=0):
    """Draw a map of squares, and the image that says it: 20 times the class in each channel."""
    rng = np.random.default_rng(seed)
    rows, columns = -(-height // side), -(-width // side)
    coarse = rng.integers(0, 12, (rows, columns)).astype(np.uint8)
    label_map = coarse.repeat(side, 0).repeat(side, 1)[:height, :width].copy()
    image = np.stack([label_map * 20, label_map * 20, 255 - label_map * 20])
    return torch.from_numpy(image), torch.from_numpy(label_map)


def drawn(config, index, size=SIZE, pair=None):
    image, label_map = pair or blocks()
    return SegmentViews(config, size)(image, label_map, sample_generator(5, 0, index))


def inside(label_map, reach):
    """Tell where all pixels around have one class; not at the border of the crop."""
    pixels = label_map[None].float()
    side = 2 * reach + 1
    pad = functional.pad(pixels[None], [reach] * 4, value=-1)[0]
    largest = functional.max_pool2d(pad, side, 1)[0]
    return (largest == -functional.max_pool2d(-pad, side, 1)[0]) & (label_map != 255)


# ── image and map ───────────────────────────────────────────────────────────────────────────────


def test_image_and_map_stay_aligned():
    checked = 0
    for index in range(60):
        image, label_map = drawn(PLAIN, index)
        assert (image.shape, label_map.shape) == ((3, *SIZE), SIZE)
        where = inside(label_map, 2)  # enlarged by up to 1.6, an edge is blurred for two pixels
        assert torch.equal(image[0][where], label_map[where] * 20)
        checked += int(where.sum())
    assert checked > 60 * 100


def test_edges_of_image_and_map_are_in_one_place():
    # Over many sizes the blurred edge of the image crosses the middle where the class changes.
    label_map = torch.zeros(40, 50, dtype=torch.uint8)
    label_map[:, 23:] = 1
    image = (label_map * 200)[None].repeat(3, 1, 1)
    for width in range(17, 120, 3):
        bright = resized(image, (30, width))[0, 0] >= 100
        assert (bright != resized_map(label_map, (30, width))[0]).sum() <= 1
    offsets = [  # of the map's edge from the true one, in pixels of the image
        int((resized_map(label_map, (30, width))[0] == 0).sum()) * 50 / width - 23
        for width in range(17, 120)
    ]
    assert abs(np.mean(offsets)) < 0.1


def test_a_colour_belongs_to_one_class_after_all_changes():
    pair = blocks()
    changed = 0
    for index in range(20):
        image, label_map = drawn(CONFIG, index, pair=pair)
        where = inside(label_map, 2)
        for label in label_map[where].unique().tolist():
            colours = image[:, where & (label_map == label)]
            assert torch.equal(colours.amin(1), colours.amax(1))
            changed += int(colours[0, 0]) != 20 * label
    assert changed > 20


def test_a_small_image_is_padded_with_the_mean_and_ignored():
    pair = torch.full((3, 8, 20), 7, dtype=torch.uint8), torch.full((8, 20), 3, dtype=torch.uint8)
    config = SegmentViewConfig(8, 8, 1, 1, flip=0, brightness=0, contrast=0, saturation=0, hue=0)
    image, label_map = drawn(config, 0, (12, 10), pair)  # (8, 20) within 8 x 8 is (3, 8)
    assert torch.equal(label_map[:3, :8], torch.full((3, 8), 3, dtype=torch.uint8))
    assert int((label_map == 255).sum()) == 12 * 10 - 3 * 8
    assert image[:, :3, :8].unique().tolist() == [7]
    assert image[:, 3, 0].tolist() == image[:, 0, 9].tolist() == [124, 116, 104]  # ImageNet's
    alike = [
        SegmentViews(config, (12, 10), mean=mean)(*pair, sample_generator(0, 0, 0))[0]
        for mean in ((0.4,), (0.4,) * 3)  # of a grey model, of any other
    ]
    assert torch.equal(*alike)
    other = SegmentViews(config, (12, 10), mean=(0.5, 0.0, 1.0))(*pair, sample_generator(0, 0, 0))
    assert other[0][:, 11, 9].tolist() == [128, 0, 255]


def test_a_view_is_a_function_of_the_generator():
    views = [drawn(CONFIG, index) for index in (3, 3, 4)]
    assert all(map(torch.equal, views[0], views[1]))
    assert not torch.equal(views[0][1], views[2][1])
    torch.manual_seed(1)
    assert all(map(torch.equal, drawn(CONFIG, 3), views[0]))


def test_half_of_the_views_are_mirrored_and_ratios_spread():
    image, label_map = blocks(32, 32)
    config = SegmentViewConfig(32, 32, 1, 1, 1, brightness=0, contrast=0, saturation=0, hue=0)
    views = [drawn(config, i, (32, 32), (image, label_map))[1] for i in range(300)]
    mirrored = sum(torch.equal(view, label_map.flip(-1)) for view in views)
    assert sum(torch.equal(view, label_map) for view in views) == 300 - mirrored
    assert 150 - 4 * 8.7 < mirrored < 150 + 4 * 8.7  # four deviations
    config = SegmentViewConfig(32, 32, 0.5, 2.0, 1)
    sides = [
        int((drawn(config, i, (64, 64), (image, label_map))[1][0] != 255).sum()) for i in range(300)
    ]
    assert 16 <= min(sides) < 20
    assert 60 < max(sides) <= 64
    assert np.mean(sides) == pytest.approx(40, abs=3.3)  # four deviations


# ── sizes ───────────────────────────────────────────────────────────────────────────────────────


def test_bilinear_resizing_by_a_naive_loop():
    image, _ = blocks(7, 9, 2)
    found = resized(image, (5, 13))
    for row in range(5):
        for column in range(13):
            y, x = (row + 0.5) * 7 / 5 - 0.5, (column + 0.5) * 9 / 13 - 0.5
            y, x = min(max(y, 0), 6), min(max(x, 0), 8)
            top, left = int(y), int(x)
            low, right = min(top + 1, 6), min(left + 1, 8)
            dy, dx = y - top, x - left
            pixels = image[0].double()
            above = pixels[top, left] * (1 - dx) + pixels[top, right] * dx
            below = pixels[low, left] * (1 - dx) + pixels[low, right] * dx
            assert abs(float(above * (1 - dy) + below * dy) - float(found[0, row, column])) <= 1
    assert torch.equal(resized(image[None], (5, 13))[0], found)
    assert resized(image, (7, 9)) is image


# ── crops ───────────────────────────────────────────────────────────────────────────────────────


def naive_box(label_map, size, max_share, chances):
    height, width = label_map.shape
    crop = min(size[0], height), min(size[1], width)
    for attempt in range(11):
        top = int(chances[2 * attempt] * (height - crop[0] + 1))
        left = int(chances[2 * attempt + 1] * (width - crop[1] + 1))
        counts = {}
        for row in range(top, top + crop[0]):
            for column in range(left, left + crop[1]):
                label = int(label_map[row, column])
                if label != 255:
                    counts[label] = counts.get(label, 0) + 1
        if len(counts) > 1 and max(counts.values()) / sum(counts.values()) < max_share:
            break
    return top, left, *crop


def test_no_class_fills_a_crop_as_by_a_naive_loop():
    tries = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        label_map = torch.zeros(20, 24, dtype=torch.uint8)
        label_map[rng.integers(20) :, rng.integers(24) :] = 255 if seed % 5 == 0 else 7
        label_map[: rng.integers(4)] = 254
        chances = rng.random(22).tolist()
        box = crop_box(label_map, (8, 6), 0.75, chances)
        assert box == naive_box(label_map, (8, 6), 0.75, chances)
        tries.append(box != crop_box(label_map, (8, 6), 1.0, chances))
    assert 5 < sum(tries) < 40  # some were drawn again
    flat = torch.full((20, 24), 255, dtype=torch.uint8)
    assert crop_box(flat, (8, 6), 0.75, chances)[:2] == (
        int(chances[20] * 13), int(chances[21] * 19)
    )  # fmt: skip


# ── colours ─────────────────────────────────────────────────────────────────────────────────────


def plain_distortion(pixel, brightness, contrast, saturation, hue, contrast_last):
    def cut(levels):
        return [min(max(level, 0.0), 255.0) for level in levels]

    levels = cut([level + brightness for level in pixel])
    if not contrast_last:
        levels = cut([level * contrast for level in levels])
    h, s, v = colorsys.rgb_to_hsv(*(level / 255 for level in levels))
    rgb = colorsys.hsv_to_rgb((h + hue / 360) % 1.0, min(s * saturation, 1.0), v)
    levels = [255 * level for level in rgb]
    return cut([level * contrast for level in levels]) if contrast_last else levels


@pytest.mark.parametrize(
    "change",
    [
        {"brightness": 20.0},
        {"brightness": -31.5},
        {"contrast": 1.4},
        {"saturation": 0.6},
        {"saturation": 1.5},
        {"hue": 36.0},
        {"hue": -25.0},
        {"brightness": 30.0, "contrast": 0.7, "saturation": 1.3, "hue": -36.0},
        {
            "brightness": -9.0,
            "contrast": 1.5,
            "saturation": 0.5,
            "hue": 11.0,
            "contrast_last": True,
        },
    ],
)
def test_colours_change_as_by_a_plain_loop(change):
    image = torch.randint(256, (3, 9, 11), generator=torch.Generator().manual_seed(2))
    image[:, 0, :4] = torch.tensor([[0, 255, 90, 200], [0, 255, 90, 10], [0, 255, 90, 10]])
    image = image.to(torch.uint8)
    found = distorted(image, **change).double()
    whole = {"brightness": 0, "contrast": 1, "saturation": 1, "hue": 0, "contrast_last": False}
    for row in range(9):
        for column in range(11):
            wanted = plain_distortion(image[:, row, column].tolist(), **(whole | change))
            for channel in range(3):
                level = float(found[channel, row, column])
                assert abs(level - wanted[channel]) <= 0.501  # rounded once


def test_colours_stay_without_a_change_and_the_image_is_left_alone():
    image, _ = blocks()
    kept = image.clone()
    assert distorted(image) is image
    assert torch.equal(distorted(image, hue=360.0), image)
    distorted(image, brightness=9.0, saturation=1.2)
    assert torch.equal(image, kept)


def test_each_change_happens_half_of_the_time_in_its_range():
    grey = torch.full((3, 8, 8), 100, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)
    only = {"contrast": 0, "saturation": 0, "hue": 0}
    config = SegmentViewConfig(8, 8, 1, 1, **only)
    levels = [int(drawn(config, i, (8, 8), grey)[0][0, 0, 0]) for i in range(400)]
    changed = [level for level in levels if level != 100]
    assert 200 - 4 * 10 - 4 < len(changed) < 200 + 4 * 10  # a few of them round to no change
    assert 68 <= min(changed) < 74
    assert 126 < max(changed) <= 132


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 10, "long_side": 9}, "1 <= short_side <= long_side, got short_side 10"),
        ({"min_ratio": 3.0}, "0 < min_ratio <= max_ratio, got min_ratio 3.0"),
        ({"max_share": 0.0}, r"max_share is a share in \(0, 1\], got 0.0"),
        ({"flip": 1.5}, r"flip must be in \[0, 1\], got 1.5"),
        ({"contrast": -1.0}, r"contrast must be in \[0, 1\], got -1.0"),
        ({"hue": 200.0}, r"hue in \[0, 180\] degrees"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentViewConfig(**options)

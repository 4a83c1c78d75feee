import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from beit.nn.confusion import map_figures
from beit.segmentation.pictures import (
    example_picture,
    iou_table,
    legend,
    overlay,
    shares,
    with_legend,
)
from beit.segmentation.validation import Example

NAMES = ("sky", "a meadow with sheep", "sea")
PALETTE = ((0, 0, 200), (10, 250, 30), (90, 90, 90))
LABELS = torch.tensor([[0, 0, 1], [255, 0, 1]])


def test_colours_lie_over_the_image_but_for_ignored_pixels() -> None:
    image = torch.full((3, 2, 3), 100, dtype=torch.uint8)
    drawn = overlay(image, LABELS, PALETTE, share=0.75)
    assert drawn.shape == (2, 3, 3)
    assert drawn[0, 0].tolist() == [25, 25, 175]
    assert drawn[1, 2].tolist() == [32, 212, 48]  # of 32.5, 212.5, 47.5
    assert drawn[1, 0].tolist() == [100, 100, 100]


def test_a_legend_has_a_line_for_each_class_that_is_there() -> None:
    covered = shares(LABELS, 3)
    assert covered.tolist() == pytest.approx([3 / 6, 2 / 6, 0])
    every, some = legend(NAMES, PALETTE), legend(NAMES, PALETTE, covered)
    assert len(every) - len(some) == 24  # the sea is not there
    assert tuple(some[18, 20]) == PALETTE[0]  # much comes first
    assert tuple(some[42, 20]) == PALETTE[1]
    turned = legend(NAMES, PALETTE, np.array([0.1, 0.7, 0.2]))
    assert [tuple(turned[18 + 24 * line, 20]) for line in range(3)] == [
        PALETTE[1],
        PALETTE[2],
        PALETTE[0],
    ]
    picture = np.zeros((5, 7, 3), dtype=np.uint8)
    beside = with_legend(picture, NAMES, PALETTE, LABELS)
    assert beside.shape == (len(some), 7 + some.shape[1], 3)
    assert not beside[:5, :7].any()
    assert np.array_equal(beside[:, 7:], some)


def test_examples_are_drawn_in_rows_of_three() -> None:
    examples = [
        Example(torch.full((3, h, w), 9, dtype=torch.uint8), torch.zeros(h, w), torch.ones(h, w))
        for h, w in ((8, 16), (30, 10))
    ]
    examples = [Example(e.image, e.label_map.long(), e.predicted.long()) for e in examples]
    picture = example_picture(examples, NAMES, PALETTE)
    with Image.open(io.BytesIO(picture.data)) as image:
        assert image.size[1] == 2 * 224 + 8
        assert image.size[0] > 3 * 224 + 2 * 8


def test_the_table_has_the_worst_class_first_and_absent_ones_last() -> None:
    confusion = torch.tensor([[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    table = iou_table(map_figures(confusion), confusion.sum(dim=1), NAMES)
    assert [row[0] for row in table.rows] == ["a meadow with sheep", "sky", "sea"]
    assert table.rows[0][1:] == pytest.approx((25.0, 50.0, 20.0))
    assert table.rows[1][1:] == pytest.approx((66.7, 75.0, 80.0))
    assert table.rows[2] == ("sea", None, None, 0.0)
    assert not any(math.isnan(x) for row in table.rows for x in row[1:] if x is not None)

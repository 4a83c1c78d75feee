import json

import numpy as np
import pytest
import torch

from beit.rows.files import Column
from beit.rows.part import Part

COLUMNS = [Column("codes", "uint8", (2,)), Column("patches", "float16", (2, 3))]


class Named:
    """Images with names."""

    labels = None
    class_names = None
    why_unlabelled = ""

    def __len__(self) -> int:
        return 9

    def name(self, index: int) -> str:
        return f"a/{index}.png"


def rows(count: int) -> dict[str, torch.Tensor]:
    return {
        "codes": torch.arange(2 * count).view(count, 2),
        "patches": torch.arange(6.0 * count).view(count, 2, 3),
    }


def test_batches_are_joined_and_empty_ones_counted() -> None:
    part = Part(COLUMNS, Named())
    part.add(torch.tensor([3, 5]), rows(2), ["a/4.png: broken"])
    part.add(torch.empty(0, dtype=torch.int64), {}, ["a/6.png: broken", "a/4.png: broken"])
    assert part.num_images == 5
    content = part.content()
    assert content["index"].tolist() == [3, 5]
    assert content["codes"].dtype == np.uint8
    assert content["codes"].tolist() == [[0, 1], [2, 3]]
    assert content["patches"].dtype == np.float16
    assert json.loads(str(content["unreadable"])) == ["a/4.png: broken", "a/6.png: broken"]


def test_a_part_of_unreadable_images_has_columns_without_rows() -> None:
    part = Part(COLUMNS, Named())
    part.add(torch.empty(0, dtype=torch.int64), {}, ["a/0.png: broken"])
    content = part.content()
    assert content["patches"].shape == (0, 2, 3)
    assert content["index"].shape == (0,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 70_000.0])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    broken = rows(3)
    broken["patches"][1, 0, 2] = bad
    with pytest.raises(ValueError, match=r"patches of a/1\.png is not finite in float16"):
        Part(COLUMNS, Named()).add(torch.arange(3), broken)

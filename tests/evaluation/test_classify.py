import math
from typing import Any

import pytest
import torch
from torch import Tensor

from beit.data.views import EvalView
from beit.evaluation.classify import EVALUATED, CropViews, classify, outcomes_of
from beit.evaluation.imagenet import open_task
from beit.weights.open import load_classifier

DATA = "shapes://23?size=24"  # ten classes


def test_several_right_classes_by_hand() -> None:
    logs = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]).log()
    rows = outcomes_of(logs, torch.tensor([[1, 2], [0, -1]]))
    expected = [
        [1, 0, 1, -math.log(0.5), 0.5, 0],
        [1, 1, 1, -math.log(0.5), 0.5, 0],
    ]
    torch.testing.assert_close(rows, torch.tensor(expected))
    with pytest.raises(ValueError, match="logits are not finite"):
        outcomes_of(torch.tensor([[math.nan, 0.0]]), torch.tensor([[0]]))


def test_shares_of_processes_add_up_to_the_whole(model: str, config: Any) -> None:
    class Part:
        """A fabric of three processes, as far as classify needs one."""

        world_size, device = 3, torch.device("cpu")

        def __init__(self, rank: int) -> None:
            self.global_rank, self.is_global_zero = rank, False

        def autocast(self) -> Any:
            return torch.autocast("cpu", enabled=False)

    asked = config(model, corruptions=("fog",))
    classifier = load_classifier(asked.model)
    task = open_task(DATA, "plain", 10, None)
    parts: list[Tensor] = []
    for rank in range(3):
        fabric: Any = Part(rank)
        parts.append(classify(fabric, classifier, task, asked))
    assert [int(part[:, EVALUATED].sum()) for part in parts] == [10, 8, 5]
    whole: Any = Part(0)
    whole.world_size = 1
    assert torch.equal(sum(parts[1:], parts[0]), classify(whole, classifier, task, asked))


# ── crops ───────────────────────────────────────────────────────────────────────────────────────


def picture(height: int, width: int) -> torch.Tensor:
    return torch.randint(
        256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def test_one_crop_is_the_evaluation_view() -> None:
    image = picture(31, 47)
    views = CropViews((12, 16), 0.8)(image)
    assert torch.equal(views, EvalView((12, 16), 0.8)(image)[None])


def test_five_are_the_centre_and_the_corners() -> None:
    image = picture(15, 20)  # the size it is scaled to: nothing is interpolated
    views = CropViews((12, 16), 0.8, crops=5)(image)
    assert views.shape == (5, 3, 12, 16)
    corners = [image[:, :12, :16], image[:, :12, 4:], image[:, 3:, :16], image[:, 3:, 4:]]
    assert torch.equal(views[1:], torch.stack(corners))
    assert torch.equal(views[0], image[:, 2:14, 2:18])


def test_the_border_is_cut_off_first() -> None:
    image = picture(16, 20)
    inner = image[:, 2:-2, 2:-2].clone()
    image[:, :2] = image[:, -2:] = 0
    image[:, :, :2] = image[:, :, -2:] = 255
    assert torch.equal(CropViews((12, 16), 1.0, border=2)(image)[0], inner)
    tiny = picture(4, 4)
    assert torch.equal(CropViews((4, 4), 1.0, border=2)(tiny)[0], tiny)  # nothing would be left


def test_other_numbers_of_crops_are_refused() -> None:
    with pytest.raises(ValueError, match=r"crops must be 1 \(the centre\) or 5 .*, got 3"):
        CropViews((4, 4), crops=3)

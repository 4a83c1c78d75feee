import math
from typing import Any

import pytest
import torch
from torch import Tensor

from beit.evaluation.classify import EVALUATED, classify, outcomes_of
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

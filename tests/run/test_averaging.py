import pytest
import torch
from torch import nn

from beit.run.averaging import BestWeights, WeightAverage


def model(value: float) -> nn.Module:
    built = nn.BatchNorm1d(3)  # has buffers, of which one counts
    nn.init.constant_(built.weight, value)
    return built


def test_the_average_follows_by_hand() -> None:
    followed = model(2.0)
    average = WeightAverage(followed, 0.75)
    expected = 2.0
    for value in (6.0, 1.0):
        nn.init.constant_(followed.weight, value)
        followed.running_mean += 5
        average.update(followed)
        expected = 0.75 * expected + 0.25 * value
    assert average.model.weight.tolist() == pytest.approx([expected] * 3)
    assert average.model.running_mean.tolist() == [10.0] * 3
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())
    assert followed.weight.tolist() == [1.0] * 3


def test_weights_that_stand_still_are_their_average() -> None:
    followed = model(0.3)
    average = WeightAverage(followed, 0.9)
    average.update(followed)
    assert torch.equal(average.model.weight, followed.weight)


def test_save_load_update_equals_update() -> None:
    followed = model(2.0)
    whole = WeightAverage(followed, 0.6)
    nn.init.constant_(followed.weight, 7.0)
    whole.update(followed)
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    resumed = WeightAverage(model(99.0), 0.6)
    resumed.load_state_dict(state)
    for average in (whole, resumed):
        average.update(followed)
    assert torch.equal(whole.model.weight, resumed.model.weight)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="expected 0 or more and below 1"):
        WeightAverage(model(1.0), decay)


def test_the_best_are_the_first_of_equals_and_a_copy() -> None:
    best, trained = BestWeights(), model(0.0)
    for step, figure in enumerate([0.2, 0.7, 0.7, 0.5], start=1):
        nn.init.constant_(trained.weight, float(step))
        best.offer(figure, step, trained)
    assert (best.step, best.score) == (2, 0.7)
    assert best.weights["weight"].tolist() == [2.0] * 3
    resumed = BestWeights()
    resumed.load_state_dict(best.state_dict())
    resumed.offer(0.6, 9, trained)
    assert resumed.state_dict().keys() == {"step", "figure", "weights"}
    assert resumed.weights["weight"].tolist() == [2.0] * 3

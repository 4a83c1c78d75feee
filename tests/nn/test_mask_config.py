import pytest
import torch

from beit.train.masks import MaskConfig, draw_masks, to_predict


def drawn(config: MaskConfig) -> torch.Tensor:
    return draw_masks(config, 5, (4, 6), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["block", "random"])
def test_a_ratio_takes_the_place_of_the_count(kind):
    assert drawn(MaskConfig(kind, count=7, min_block=2)).shape == (5, 7)
    assert drawn(MaskConfig(kind, count=7, ratio=0.4, min_block=2)).shape == (5, 10)
    assert MaskConfig(ratio=0.4).number(196) == 78
    assert MaskConfig(ratio=0.01).number(24) == 1


def test_what_is_predicted_and_how_much_each_counts():
    masked = torch.tensor([[0, 2, 2], [1, 3, 5]])
    asked, weights = to_predict(masked, (2, 3), everywhere=False, exact=True)
    assert asked is masked and weights is None
    asked, weights = to_predict(masked, (2, 3), everywhere=False, exact=False)
    assert asked is masked and weights.tolist() == [[1, 1, 0], [1, 1, 1]]
    asked, weights = to_predict(masked, (2, 3), everywhere=True, exact=False)
    assert asked.tolist() == [[0, 1, 2, 3, 4, 5]] * 2 and weights is None


def test_refusals():
    with pytest.raises(ValueError, match=r"mask\.ratio is 1\.5; expected above 0, to 1"):
        MaskConfig(ratio=1.5)
    with pytest.raises(ValueError, match=r"mask\.exact false is for blocks"):
        MaskConfig("random", exact=False)

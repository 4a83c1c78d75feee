import numpy as np
import pytest
import torch

from beit.data.order import seeded
from beit.finetuning.mixing import MixConfig, build_mixer


def mixed(mix, images, labels, seed=3):
    with seeded(torch.Generator().manual_seed(seed)):
        return build_mixer(mix, 3, len(images))(images.clone(), labels)


def test_pairs_are_mixed_and_their_targets_by_the_same_share():
    images = torch.rand(4, 3, 5, 7)
    labels = torch.tensor([0, 2, 1, 1])
    views, targets = mixed(MixConfig(cutmix=0.0, smoothing=0.3), images, labels)
    seed = int(torch.randint(2**32, (), generator=torch.Generator().manual_seed(3)))
    random = np.random.RandomState(seed)
    random.rand()  # whether to mix
    share = random.beta(0.8, 0.8)
    torch.testing.assert_close(views, share * images + (1 - share) * images.flip(0))
    hard = torch.full((4, 3), 0.1)
    hard[range(4), labels] = 0.8
    torch.testing.assert_close(targets, share * hard + (1 - share) * hard.flip(0))


def test_batches_that_are_not_mixed_keep_images_and_have_smooth_targets():
    images, labels = torch.rand(2, 3, 5, 7), torch.tensor([0, 2])
    views, targets = mixed(MixConfig(probability=1e-9, smoothing=0.3), images, labels)
    assert torch.equal(views, images)
    torch.testing.assert_close(targets, torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]))


@pytest.mark.parametrize("changes", [{"probability": 0.0}, {"mixup": 0.0, "cutmix": 0.0}])
def test_nothing_to_mix_is_no_mixer(changes):
    assert build_mixer(MixConfig(**changes), 3, 5) is None


def test_an_odd_batch_cannot_be_paired():
    with pytest.raises(ValueError, match="a process has 5 in a micro-step; choose an even number"):
        build_mixer(MixConfig(), 3, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": -1.0}, "mix.mixup is -1.0"),
        ({"cutmix": float("nan")}, "mix.cutmix is nan"),
        ({"probability": 1.2}, "mix.probability is 1.2"),
        ({"switch": -0.1}, "mix.switch is -0.1"),
        ({"smoothing": 1.0}, "mix.smoothing is 1.0"),
    ],
)
def test_mixing_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MixConfig(**changes)

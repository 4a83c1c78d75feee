import pytest
import torch

from beit.data.order import balanced_order, epoch_order, sample_generator, step_generator


def numbers(generator):
    return torch.rand(4, generator=generator).tolist()


def test_epoch_order_is_a_permutation_of_its_own():
    order = epoch_order(11, seed=3, epoch=5)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(11))
    assert order.tolist() == epoch_order(11, seed=3, epoch=5).tolist()
    assert order.tolist() != epoch_order(11, seed=3, epoch=6).tolist()
    assert order.tolist() != epoch_order(11, seed=4, epoch=5).tolist()


def test_generators_depend_on_each_argument_and_nothing_else():
    torch.manual_seed(1)
    streams = [
        numbers(generator)
        for generator in (
            sample_generator(0, 1, 2),
            sample_generator(0, 2, 1),
            sample_generator(1, 0, 2),
            sample_generator(0, 12, 0),
            step_generator(0, 12, "masks"),
            step_generator(0, 12, "revival"),
            step_generator(1, 2, "masks"),
        )
    ]
    assert len({tuple(stream) for stream in streams}) == len(streams)
    torch.manual_seed(2)
    assert numbers(sample_generator(0, 1, 2)) == streams[0]
    assert numbers(step_generator(0, 12, "masks")) == streams[4]


# ── balance ─────────────────────────────────────────────────────────────────────────────────────

LABELS = torch.tensor([2] * 16 + [0] * 9 + [3])[torch.randperm(26)]  # no image of class 1


@pytest.mark.parametrize(
    ("balance", "due"),
    [
        (0.0, {2: 16.0, 0: 9.0, 3: 1.0}),
        (0.5, {2: 26 * 4 / 8, 0: 26 * 3 / 8, 3: 26 / 8}),
        (1.0, {2: 26 / 3, 0: 26 / 3, 3: 26 / 3}),
    ],
)
def test_classes_and_images_come_as_often_as_is_due(balance, due):
    for epoch in range(5):
        images, turns = balanced_order(LABELS, 7, epoch, balance)
        assert len(images) == len(turns) == 26
        for label, expected in due.items():
            of_class = images[LABELS[images] == label]
            assert abs(len(of_class) - expected) < 1
            each = expected / int((LABELS == label).sum())
            counts = torch.bincount(of_class, minlength=26)[LABELS == label]
            assert all(abs(count - each) < 1 for count in counts.tolist())
        for image in images.unique():  # numbered from 0
            assert turns[images == image].sort().values.tolist() == list(
                range(int((images == image).sum()))
            )


def test_over_many_epochs_images_of_a_class_come_equally_often():
    drawn = torch.cat([balanced_order(LABELS, 7, epoch)[0] for epoch in range(600)])
    counts = torch.bincount(drawn, minlength=26)[LABELS == 2].double()
    # Each comes in an epoch or not, with a chance of 26 / 48: a deviation of 12.2 of 325.
    assert counts.mean().item() == pytest.approx(325, abs=1)
    assert (counts - 325).abs().max() < 4 * 12.2


def test_a_balanced_order_is_a_function_of_seed_and_epoch():
    first = balanced_order(LABELS, 7, 2)
    torch.rand(3)
    assert all(map(torch.equal, first, balanced_order(LABELS, 7, 2)))
    assert not torch.equal(first[0], balanced_order(LABELS, 7, 3)[0])
    assert not torch.equal(first[0], balanced_order(LABELS, 8, 2)[0])
    assert balanced_order(LABELS, 7, 2, 0.0)[0].sort().values.tolist() == list(range(26))


def test_seeds_are_fixed_for_good():
    """A run that goes on under a later version must draw the same numbers."""
    assert sample_generator(0, 1, 2).initial_seed() == SAMPLE_SEED
    assert step_generator(7, 123, "masks").initial_seed() == STEP_SEED


SAMPLE_SEED = 12662170671434128924
STEP_SEED = 1276809698809704104

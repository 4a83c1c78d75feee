import pytest
import torch

from beit.data.weighted_order import balanced_order, mixed_order

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


def test_sets_and_images_come_as_often_as_is_due():
    origins = torch.tensor([0] * 30 + [1] * 4 + [2] * 6)
    shares = [0.25, 0.5, 0.25]
    seen = set()
    for epoch in range(4):
        images, repeats = mixed_order(origins, shares, 3, epoch)
        assert len(images) == len(repeats) == 40
        counts = torch.bincount(images, minlength=40)
        for part, share in enumerate(shares):
            due = 40 * share
            assert abs(int(counts[origins == part].sum()) - due) <= 1
            each = due / int((origins == part).sum())
            assert ((counts[origins == part] - each).abs() < 1).all()
        assert len({*zip(images.tolist(), repeats.tolist(), strict=True)}) == 40
        seen.add(tuple(images.tolist()))
    assert len(seen) == 4
    assert torch.equal(mixed_order(origins, shares, 3, 1)[0], mixed_order(origins, shares, 3, 1)[0])

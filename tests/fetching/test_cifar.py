import pytest

from beit.fetching import cifar
from beit.fetching.cifar import LabelledImages


def changed(images, field, index, value):
    copy = getattr(images, field).copy()
    copy[index] = value
    return images._replace(**{field: copy})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda i: LabelledImages(*(part[:-1] for part in i)), r"test: pixels \(99, 32, 32, 3\)"),
        (lambda i: changed(i, "labels", 0, (i.labels[0] + 1) % 100), "not 1 images in each class"),
        (lambda i: changed(i, "labels", 0, 200), "not 1 images in each class"),
        (lambda i: changed(i, "coarse", 0, (i.coarse[0] + 1) % 20), "do not have 5 classes each"),
        (lambda i: i._replace(coarse=None), "coarse labels are missing"),
    ],
)
def test_labels_that_cannot_be_right_are_refused(hundred, spoil, message):
    cifar.check_labels(hundred["test"], 100, 100, 20, "test")
    with pytest.raises(cifar.WrongDataError, match=message):
        cifar.check_labels(spoil(hundred["test"]), 100, 100, 20, "test")


def test_names_of_classes_are_those_of_the_publication():
    assert len(cifar.CIFAR100) == len(set(cifar.CIFAR100)) == 100
    assert len(cifar.CIFAR100_COARSE) == 20
    for names in (cifar.CIFAR10, cifar.CIFAR100, cifar.CIFAR100_COARSE):
        assert list(names) == sorted(names)
    # Labels of examples in the publications.
    assert [cifar.CIFAR100[i] for i in (0, 19, 29, 99)] == ["apple", "cattle", "dinosaur", "worm"]
    assert cifar.CIFAR100_COARSE[11] == "large_omnivores_and_herbivores"


def test_records_of_another_size_are_refused():
    with pytest.raises(
        cifar.WrongDataError, match="train: 3073 bytes, expected a multiple of 3074"
    ):
        cifar.from_records(bytes(3073), 2, "train")

import pytest
import torch

from beit.data.batches import TrainBatches
from beit.data.mixture import MixedSource, mixture_of, weights_of
from beit.data.source import PartSource
from beit.data.sources import open_source
from beit.data.views import TrainViews, ViewConfig


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ("{photos: 0.7, shards/*.tar: 0.3}", {"photos": 0.7, "shards/*.tar": 0.3}),
        (
            "{a[:90%]: 1,'b?range=0:4095&bands=1,2,3': 2e1}",
            {"a[:90%]": 1, "b?range=0:4095&bands=1,2,3": 20},
        ),
        (
            "{hf://datasets/o/n:train: 3, x-{0..2}.tar: 1,}",
            {"hf://datasets/o/n:train": 3, "x-{0..2}.tar": 1},
        ),
        ("{a,b}", {}),
        ("photos", {}),
    ],
)
def test_a_mixture_is_sources_with_weights(spec, weights):
    assert weights_of(spec) == weights


@pytest.mark.parametrize("entry", ["a: x", "a: 0", "a: -1", "a: inf", "a: 1, b", ": 1"])
def test_what_is_no_mixture_is_named(entry):
    with pytest.raises(ValueError, match=r"is not read; expected sources with positive weights"):
        weights_of(f"{{c: 1, {entry}}}")
    with pytest.raises(ValueError, match="a is named twice"):
        weights_of("{a: 1, a: 2}")


SPEC = "{shapes://30?size=16: 0.5, shapes://6?size=16&seed=1: 1.5}"


def batches(source, **options):
    settings = {"batch_size": 4, "seed": 7, "start_step": 0, "num_steps": 18} | options
    return TrainBatches(source, TrainViews(ViewConfig(), (8, 8), (8, 8)), **settings)


def test_training_draws_by_weight_also_of_a_part():
    source = open_source(SPEC, split="train")
    shown = torch.cat([batch.indices for batch in batches(source)])
    assert len(source) == 36 and abs(int((shown >= 30).sum()) - 0.75 * 72) <= 2
    part = open_source(f"{SPEC}[:50%]", split="train")
    origins, shares = mixture_of(part)
    assert len(origins) == 18 and shares == [0.25, 0.75]
    shown = torch.cat([batch.indices for batch in batches(part, num_steps=4)])
    assert abs(int(origins[shown].sum()) - 0.75 * 16) <= 2
    repeated = [
        tuple(image.flatten().tolist()) for batch in batches(source) for image in batch.images
    ]
    assert len({*repeated}) == 72  # each draw of an image has its own view


def test_a_set_of_which_nothing_is_left_is_an_error():
    source = open_source(SPEC, split="train")
    with pytest.raises(ValueError, match="none is from one of its 2 sets; raise the limit"):
        batches(PartSource(source, torch.arange(30)))
    with pytest.raises(ValueError, match="balance and a mixture both say"):
        batches(source, balance=0.5)


def test_mixtures_are_for_training():
    for split in ("test", None):
        with pytest.raises(ValueError, match="a mixture is for training images; name one set here"):
            open_source(SPEC, split=split)


class Set:
    why_unlabelled = "it has none"

    def __init__(self, labels, names=None):
        self.labels, self.class_names = None if labels is None else torch.tensor(labels), names
        self.count = 2 if labels is None else len(labels)

    def __len__(self):
        return self.count

    def name(self, index):
        return f"{index}.png"


def mixed(*parts):
    return MixedSource(
        ["photos/", "more[:5%]", "x?label=y"][: len(parts)], parts, [1.0] * len(parts)
    )


def test_classes_are_matched_by_name():
    source = mixed(
        Set([0, 1, -1], ["apple", "lime"]),
        Set([2, 0], ["é", "fig", "lime "]),
        Set([0], ["e\u0301"]),
    )
    assert source.class_names == ["apple", "lime", "é", "fig"]
    assert source.labels.tolist() == [0, 1, -1, 1, 2, 2]
    assert [source.name(index) for index in (0, 3, 5)] == ["photos/0.png", "more/0.png", "x/0.png"]
    numbers = mixed(Set([0, 5]), Set([5]))
    assert numbers.labels.tolist() == [0, 5, 5] and numbers.class_names is None


def test_labels_that_cannot_be_joined_are_none_and_say_why():
    named, numbered, bare = Set([0], ["a"]), Set([0]), Set(None)
    assert (
        "photos/ has class names and more[:5%] has numbers" in mixed(named, numbered).why_unlabelled
    )
    assert "more[:5%] has none: it has none" in mixed(numbered, bare).why_unlabelled
    assert mixed(named, numbered).labels is None

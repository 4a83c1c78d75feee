import pytest
import torch

from beit.data.batches import DataConfig, EvalBatches, TrainBatches, first_images
from beit.data.order import epoch_order, sample_generator
from beit.data.source import UnreadableImage
from beit.data.sources import open_source
from beit.data.views import EvalView, TrainViews, ViewConfig, crop_box

VIEWS = TrainViews(ViewConfig(), (8, 12), (4, 6))


class Holed:
    """Thirteen flat images, index as colour; those in `holes` cannot be read."""

    class_names = None
    why_unlabelled = ""

    def __init__(self, holes=(), length=13):
        self.holes, self.length = set(holes), length
        self.labels = torch.arange(length) * 2

    def __len__(self):
        return self.length

    def image(self, index):
        if index in self.holes:
            raise UnreadableImage(self.name(index), "broken")
        return torch.full((3, 9, 11), index, dtype=torch.uint8)

    def name(self, index):
        return f"{index}.png"


def train(source, **options):
    settings = {"batch_size": 2, "seed": 7, "start_step": 0, "num_steps": 4} | options
    return TrainBatches(source, VIEWS, **settings)


def assert_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for left, right in zip(one, other, strict=True):
            assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def test_steps_walk_through_the_epoch_order():
    batches = train(Holed(), num_steps=9, batch_size=3)
    assert batches.steps_per_epoch == 4
    assert len(batches) == 9
    shown = [batch.indices.tolist() for batch in batches]
    orders = [epoch_order(13, 7, epoch).tolist() for epoch in range(3)]
    assert shown[:4] == [orders[0][i : i + 3] for i in (0, 3, 6, 9)]
    assert shown[4] == orders[1][:3]
    assert shown[8] == orders[2][:3]


def test_batch_holds_views_labels_and_indices():
    batch = next(iter(train(Holed())))
    assert batch.images.shape == (2, 3, 8, 12)
    assert batch.target_images.shape == (2, 3, 4, 6)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.tolist() == [2 * index for index in batch.indices.tolist()]
    assert batch.unreadable == []
    source = Holed()
    source.labels = None
    assert next(iter(train(source))).labels.tolist() == [-1, -1]


def test_ranks_and_accumulation_trade_places_with_batch_size():
    source = open_source("shapes://26?size=8")
    whole = [batch.images for batch in train(source, batch_size=8)]
    pieces = [[] for _ in range(4)]
    for rank in range(2):
        for number, batch in enumerate(
            train(source, batch_size=2, accumulate=2, rank=rank, world_size=2)
        ):
            step, micro = divmod(number, 2)
            pieces[step].append((micro * 2 + rank, batch.images))
    for step in range(4):
        parts = [student for _, student in sorted(pieces[step], key=lambda piece: piece[0])]
        assert torch.equal(torch.cat(parts), whole[step])


def test_workers_and_cache_change_nothing():
    spec = "shapes://13?size=16"
    plain = list(train(open_source(spec), num_steps=8))
    workers = list(train(open_source(spec, cache_gigabytes=0.001), num_steps=8, num_workers=2))
    assert_equal(plain, workers)


def test_a_later_start_sees_what_the_whole_run_sees():
    source = open_source("shapes://13?size=8")
    whole = list(train(source, num_steps=9, accumulate=2))
    assert_equal(list(train(source, start_step=4, num_steps=9, accumulate=2)), whole[8:])
    assert list(train(source, start_step=9, num_steps=9)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_state_is_left_alone(workers):
    before = torch.get_rng_state()
    list(train(Holed(), num_workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_changes_with_the_epoch():
    source = open_source("shapes://2?size=16")
    first, second = train(source, num_steps=2)
    order = [first.indices.tolist().index(index) for index in second.indices.tolist()]
    assert not torch.equal(first.images[order], second.images)


def test_equal_views_are_one_tensor_through_workers_too():
    views = TrainViews(ViewConfig(), (8, 8), (8, 8))
    source = open_source("shapes://6?size=8")
    for workers in (0, 1):
        batches = TrainBatches(
            source, views, batch_size=2, seed=0, start_step=0, num_steps=1, num_workers=workers
        )
        batch = next(iter(batches))
        assert batch.target_images is batch.images


@pytest.mark.parametrize("workers", [0, 1])
def test_batch_says_where_each_crop_lies(workers):
    batches = list(train(Holed(), num_steps=4, num_workers=workers))
    assert {batch.crops.shape for batch in batches} == {(2, 5)}
    crops = torch.cat([batch.crops for batch in batches])
    for index, crop in zip(torch.cat([batch.indices for batch in batches]), crops, strict=True):
        chances = torch.rand(45, generator=sample_generator(7, 0, int(index)), dtype=torch.float64)
        box = crop_box(9, 11, ViewConfig(), chances[5:].tolist(), 12 / 8)
        pixels = crop[:4] * torch.tensor([9, 11, 9, 11])
        torch.testing.assert_close(pixels, torch.tensor(box).float())
        assert crop[4] == (chances[0] < 0.5)
    assert 0 < crops[:, 4].sum() < len(crops)
    assert next(iter(EvalBatches(Holed(), EvalView((8, 8)), 5))).crops.shape == (0, 5)


def test_too_few_images_for_a_step_names_the_numbers():
    with pytest.raises(
        ValueError, match=r"takes 16 images \(4 a batch x 2 accumulated x 2 proc.*13"
    ):
        train(Holed(), batch_size=4, accumulate=2, world_size=2)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        train(Holed(), rank=2, world_size=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_by_the_next(workers):
    whole = [batch.indices.tolist() for batch in train(Holed(), num_steps=6)]
    batches = list(train(Holed({4, 5, 12}), num_steps=6, num_workers=workers))
    instead = {4: 6, 5: 6, 12: 0}
    assert [batch.indices.tolist() for batch in batches] == [
        [instead.get(index, index) for index in indices] for indices in whole
    ]
    for batch, order in zip(batches, whole, strict=True):
        named = [name for index in order for name in {4: ["4", "5"]}.get(index, [str(index)])
                 if index in instead]  # fmt: skip
        assert batch.unreadable == [f"{name}.png: broken" for name in named]
        assert batch.labels.tolist() == [2 * index for index in batch.indices.tolist()]


@pytest.mark.parametrize("workers", [0, 1])
def test_only_unreadable_images_end_the_run(workers):
    reason = r"^13 images in a row cannot be read: .*: broken\. Also .*Repair"
    with pytest.raises(ValueError, match=reason):
        next(iter(train(Holed(range(13)), num_workers=workers)))


def test_evaluation_shows_every_image_once_in_order():
    view = EvalView((8, 8))
    batches = list(EvalBatches(Holed(), view, 5, num_workers=2))
    assert [batch.indices.tolist() for batch in batches] == [
        [0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12]
    ]  # fmt: skip
    assert batches[2].images[:, 0, 0, 0].tolist() == [10, 11, 12]
    assert batches[0].target_images is batches[0].images
    ranks = [EvalBatches(Holed(), view, 5, rank=rank, world_size=2) for rank in (0, 1)]
    assert [len(rank) for rank in ranks] == [2, 1]
    assert [batch.indices[0].item() for rank in ranks for batch in rank] == [0, 10, 5]


def test_evaluation_shows_the_selected_batches():
    batches = EvalBatches(Holed(), EvalView((8, 8)), 5, batches=[2, 0])
    assert len(batches) == 2
    assert [batch.indices.tolist() for batch in batches] == [[10, 11, 12], [0, 1, 2, 3, 4]]
    assert list(EvalBatches(Holed(), EvalView((8, 8)), 5, batches=[])) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_unreadable_images_out(workers):
    source = Holed({1, 5, 6, 7, 8, 9})
    batches = list(EvalBatches(source, EvalView((8, 8)), 5, num_workers=workers))
    assert [batch.indices.tolist() for batch in batches] == [[0, 2, 3, 4], [], [10, 11, 12]]
    assert [len(batch.unreadable) for batch in batches] == [1, 5, 0]
    assert batches[0].images[:, 0, 0, 0].tolist() == [0, 2, 3, 4]
    assert batches[0].labels.tolist() == [0, 4, 6, 8]
    empty = batches[1]
    assert empty.images.shape == empty.target_images.shape == (0, 3, 0, 0)
    assert empty.labels.dtype == empty.indices.dtype == torch.int64


class Mislabelled(Holed):
    """The second image has a label map with an unknown class."""

    def image(self, index):
        if index == 1:
            raise ValueError("1.png: class 9 is unknown")
        return super().image(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_of_the_data_end_the_run(workers):
    source = Mislabelled()
    for batches in (
        train(source, num_steps=6, num_workers=workers),
        EvalBatches(source, EvalView((8, 8)), 5, num_workers=workers),
    ):
        with pytest.raises(ValueError) as caught:
            list(batches)
        assert str(caught.value) == "1.png: class 9 is unknown"


@pytest.mark.parametrize("workers", [0, 1])
def test_views_fill_the_named_fields(workers):
    fields = ("images", "label_maps")
    settings = {"num_workers": workers, "fields": fields}
    random = TrainBatches(
        Holed(),
        lambda image, generator: (image, image[0]),
        **{"batch_size": 2, "seed": 7, "start_step": 0, "num_steps": 1} | settings,
    )
    whole = EvalBatches(Holed({1}), lambda image: (image, image[0]), 2, **settings)
    for batch in (next(iter(random)), next(iter(whole))):
        assert batch.target_images is batch.images
        assert batch.label_maps.shape == (len(batch.indices), 9, 11)
        assert torch.equal(batch.label_maps, batch.images[:, 0])


def test_first_images_skips_unreadable_ones():
    view = EvalView((8, 6))
    images = first_images(Holed({0, 1, 2, 4}), view, 3)
    assert images.shape == (3, 3, 8, 6)
    assert images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [3, 5, 6]
    assert first_images(Holed({12}), view, 20)[:, 0, 0, 0].tolist() == list(range(12))
    with pytest.raises(ValueError, match=r"none of 13 images can be read: 0\.png: broken\. Also"):
        first_images(Holed(range(13)), view, 3)


def test_evaluation_can_be_repeated():
    batches = EvalBatches(Holed(), EvalView((8, 8)), 5)
    assert_equal(list(batches), list(batches))


@pytest.mark.parametrize(
    "options", [{"num_workers": -1}, {"cache_gigabytes": -1.0}, {"max_unreadable": 2.0}]
)
def test_wrong_config_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DataConfig(**options)

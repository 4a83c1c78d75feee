import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from beit.data.batches import TrainBatches
from beit.data.classes import RenumberedSource
from beit.data.order import epoch_order, sample_generator, seeded
from beit.data.sources import open_source
from beit.data.views import TrainViews, ViewConfig
from beit.finetuning.views import AugmentConfig, FinetuneViews, posterized

VIEW = ViewConfig(min_scale=0.3, color_jitter=0.0)
SIZE = (20, 28)
PLAIN = AugmentConfig(policy="", erase=0.0)


@pytest.fixture(scope="module")
def images():
    source = open_source("shapes://6?size=33x27")
    return [source.image(index) for index in range(6)]


def drawn(views, images, epoch=0):
    return [
        views(image, sample_generator(3, epoch, index))[0] for index, image in enumerate(images)
    ]


def global_draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_a_view_is_a_function_of_seed_epoch_and_index(images):
    views = FinetuneViews(VIEW, AugmentConfig(erase=1.0), SIZE)
    first = drawn(views, images)
    for seed in (1, 2):  # whatever the global states
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        again = drawn(FinetuneViews(VIEW, AugmentConfig(erase=1.0), SIZE), images)
        assert all(map(torch.equal, first, again))
    other = drawn(views, images, epoch=1)
    assert not any(map(torch.equal, first, other))
    assert {view.shape for view in first} == {(3, *SIZE)}
    assert {view.dtype for view in first} == {torch.uint8}


def test_global_states_are_left_as_they_were(images):
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = global_draws()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    drawn(FinetuneViews(VIEW, AugmentConfig(erase=1.0), SIZE), images)
    assert global_draws() == expected


def test_seeded_states_come_back_after_an_error():
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = global_draws()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    draws = []
    for _ in range(2):
        with pytest.raises(KeyError), seeded(torch.Generator().manual_seed(1)):
            draws.append(global_draws())
            raise KeyError
    assert draws[0] == draws[1] != expected
    assert global_draws() == expected


def test_without_augmentation_it_is_the_crop_alone(images):
    crops = TrainViews(VIEW, SIZE, SIZE)
    assert all(
        map(torch.equal, drawn(FinetuneViews(VIEW, PLAIN, SIZE), images), drawn(crops, images))
    )


def test_rand_augment_changes_most_views(images):
    plain = drawn(FinetuneViews(VIEW, PLAIN, SIZE), images)
    augmented = drawn(FinetuneViews(VIEW, AugmentConfig(erase=0.0), SIZE), images)
    # Two operations, each left out half of the time: three in four views change.
    assert sum(not torch.equal(*pair) for pair in zip(plain, augmented, strict=True)) >= 3


def test_posterising_to_any_number_of_bits():
    image = Image.fromarray(np.arange(3 * 35, dtype=np.uint8).reshape(5, 7, 3) + 100)
    assert posterized(image, 3, resample=3).tobytes() == ImageOps.posterize(image, 3).tobytes()
    assert posterized(image, 9) is image
    assert set(posterized(image, 0).tobytes()) == {0}


def test_the_strongest_policy_is_drawn(images):
    # At magnitude 10 every posterising keeps no bit; of 15 operations 12 are drawn a view.
    views = FinetuneViews(VIEW, AugmentConfig("rand-m10-n12-p1-inc1", 0.0), SIZE)
    assert all(view.shape == (3, *SIZE) for view in drawn(views, images))


def test_erasing_puts_noise_of_the_given_mean_into_one_rectangle():
    grey = torch.full((3, 64, 64), 90, dtype=torch.uint8)
    views = FinetuneViews(
        VIEW, AugmentConfig("", 1.0), (64, 64), (0.8, 0.5, 0.2), (0.02, 0.02, 0.02)
    )
    for index in range(5):
        view, _ = views(grey, sample_generator(0, 0, index))
        changed = (view != 90).any(dim=0)  # the noise is far from 90 in the first channel
        rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert int(changed.sum()) == height * width
        assert 0.015 <= height * width / 64**2 <= 0.345
        noise = view[:, changed].double() / 255
        assert noise.mean(dim=1).tolist() == pytest.approx([0.8, 0.5, 0.2], abs=0.01)
        assert noise.std(dim=1).tolist() == pytest.approx([0.02] * 3, abs=0.006)


def test_a_grey_model_gives_one_mean_for_all_channels():
    image = torch.full((3, 32, 32), 90, dtype=torch.uint8)
    given = [
        FinetuneViews(VIEW, AugmentConfig(erase=1.0), (32, 32), (0.4,) * count, (0.02,) * count)
        for count in (1, 3)
    ]
    one, three = (views(image, sample_generator(0, 0, 5))[0] for views in given)
    assert torch.equal(one, three)


def test_erasing_happens_as_often_as_asked():
    grey = torch.full((3, 16, 16), 90, dtype=torch.uint8)
    views = FinetuneViews(VIEW, AugmentConfig("", 0.25), (16, 16))
    erased = [bool((views(grey, sample_generator(0, 0, i))[0] != 90).any()) for i in range(400)]
    assert 0.25 * 400 - 4 * 8.7 < sum(erased) < 0.25 * 400 + 4 * 8.7  # four deviations


# ── repeated augmentation ───────────────────────────────────────────────────────────────────────


def train(repeats, **changes):
    source = open_source("shapes://26?size=24")
    views = FinetuneViews(VIEW, AugmentConfig(erase=0.0), (16, 16))
    settings = {"batch_size": 6, "seed": 7, "start_step": 0, "num_steps": 8, "repeats": repeats}
    return TrainBatches(source, views, **(settings | changes))


def test_repeats_are_other_views_of_the_same_images():
    batches = list(train(3))
    assert train(3).steps_per_epoch == train(1).steps_per_epoch == 4
    for batch in batches:
        assert batch.indices.tolist() == batch.indices[:2].tolist() * 3
        assert len({view.numpy().tobytes() for view in batch.images}) > 3
    indices = torch.cat([batch.indices[:2] for batch in batches[:4]]).tolist()
    assert len(set(indices)) == 8  # an epoch shows each image in one step
    # The first views are those of a run without repeats.
    first = next(iter(train(1)))
    assert torch.equal(first.images[:2], batches[0].images[:2])


def test_ranks_share_out_what_one_process_sees():
    whole = next(iter(train(2, batch_size=12)))
    parts = [next(iter(train(2, batch_size=6, rank=rank, world_size=2))) for rank in range(2)]
    for name in ("images", "indices"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_without_options_the_order_and_views_are_those_of_old():
    batch = next(iter(train(1)))
    order = epoch_order(26, 7, 0)[:6]
    assert torch.equal(batch.indices, order)
    source = open_source("shapes://26?size=24")
    views = FinetuneViews(VIEW, AugmentConfig(erase=0.0), (16, 16))
    for view, index in zip(batch.images, order.tolist(), strict=True):
        assert torch.equal(view, views(source.image(index), sample_generator(7, 0, index))[0])


def test_balance_and_repeats_give_each_showing_a_view_of_its_own():
    source = open_source("shapes://26?size=24")
    source = RenumberedSource(source, torch.tensor([0] * 24 + [1, 2]), ("a", "b", "c"))
    views = FinetuneViews(VIEW, AugmentConfig(erase=0.0), (16, 16))
    options = {"batch_size": 26, "seed": 7, "start_step": 0, "num_steps": 1}
    plain = next(iter(TrainBatches(source, views, **options, balance=1.0)))
    assert 8 <= plain.indices.tolist().count(25) <= 9  # the one image of its class
    assert len({view.numpy().tobytes() for view in plain.images}) == 26
    twice = next(iter(TrainBatches(source, views, **options, balance=1.0, repeats=2)))
    assert twice.indices[:13].tolist() == twice.indices[13:].tolist() == plain.indices[:13].tolist()
    assert len({view.numpy().tobytes() for view in twice.images}) == 26
    parts = [
        next(iter(TrainBatches(source, views, **options | {"batch_size": 13}, **more, balance=1.0)))
        for more in ({"rank": 0, "world_size": 2}, {"rank": 1, "world_size": 2})
    ]
    assert torch.equal(torch.cat([part.images for part in parts]), plain.images)


# ── refusals ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "augmix-m3"}, "policy 'augmix-m3' is not valid"),
        ({"policy": "rand-x9"}, "policy 'rand-x9' is not valid"),
        ({"erase": 1.5}, r"probability in \[0, 1\], got 1.5"),
        ({"repeats": 0}, "repeats is 0; expected 1 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**settings)


def test_a_step_that_does_not_divide_into_repeats_is_refused():
    with pytest.raises(ValueError, match="step of 6 images does not divide into 4 views"):
        train(4)


def test_balance_needs_labels_and_a_share():
    with pytest.raises(ValueError, match=r"balance is 1\.2; expected 0"):
        train(1, balance=1.2)
    source = RenumberedSource(open_source("shapes://6?size=24"), torch.tensor([-1] * 6), ("a",))
    options = {"batch_size": 2, "seed": 7, "start_step": 0, "num_steps": 1}
    with pytest.raises(ValueError, match="balance needs the class of every image"):
        TrainBatches(source, None, **options, balance=1.0)

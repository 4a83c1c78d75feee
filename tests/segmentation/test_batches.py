import zipfile
from functools import partial

import pytest
import torch
from PIL import Image

from beit.data.batches import EvalBatches, TrainBatches
from beit.data.order import epoch_order, sample_generator
from beit.data.prefetch import Prefetch
from beit.segmentation.batches import FIELDS, stacked, views_of, whole
from beit.segmentation.label_classes import label_classes
from beit.segmentation.label_maps import open_label_maps
from beit.segmentation.views import SegmentViewConfig, SegmentViews

VIEWS = SegmentViews(SegmentViewConfig(long_side=64, short_side=16), (12, 20))
SPEC = "shapes://11?size=16x24"


def train(source=None, **changes):
    settings = {"batch_size": 2, "seed": 7, "start_step": 0, "num_steps": 6}
    cache = changes.pop("cache_gigabytes", 0.0)
    images = stacked(source or open_label_maps(SPEC), cache)
    return TrainBatches(images, partial(views_of, VIEWS), fields=FIELDS, **(settings | changes))


def evaluated(source, batch_size=1, **settings):
    return EvalBatches(stacked(source), whole, batch_size, fields=FIELDS, **settings)


def assert_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for field in ("images", "label_maps", "indices"):
            assert torch.equal(getattr(one, field), getattr(other, field).cpu())


class Odd:
    """Three images, of which the second has a map of another size."""

    classes = label_classes(["a", "b"])

    def __len__(self):
        return 3

    def image(self, index):
        return torch.full((3, 4 + index, 5), index, dtype=torch.uint8)

    def label_map(self, index):
        return torch.zeros(4 + 2 * (index == 2), 5, dtype=torch.uint8)

    def name(self, index):
        return f"{index}.png"


def test_batches_follow_the_epoch_order_and_the_draws_of_each_image():
    source = open_label_maps(SPEC)
    batches = train()
    assert (len(batches), batches.steps_per_epoch) == (6, 5)
    order = epoch_order(11, 7, 0).tolist()
    for step, batch in enumerate(list(batches)[:5]):
        assert batch.indices.tolist() == order[2 * step : 2 * step + 2]
        assert (batch.images.shape, batch.images.dtype) == ((2, 3, 12, 20), torch.uint8)
        assert (batch.label_maps.shape, batch.label_maps.dtype) == ((2, 12, 20), torch.uint8)
        for place, index in enumerate(batch.indices.tolist()):
            image, label_map = VIEWS(
                source.image(index), source.label_map(index), sample_generator(7, 0, index)
            )
            assert torch.equal(batch.images[place], image)
            assert torch.equal(batch.label_maps[place], label_map)


def test_resuming_equals_no_interruption():
    whole = list(train())
    assert_equal(whole[4:], list(train(start_step=4)))
    assert_equal(whole, list(train(num_workers=2)))
    assert_equal(whole, list(train(cache_gigabytes=1.0)))


def test_ranks_and_accumulation_share_out_the_epoch():
    whole = list(train(batch_size=4, num_steps=2))
    ranks = [list(train(num_steps=2, rank=rank, world_size=2)) for rank in range(2)]
    for step in range(2):
        for field in ("images", "label_maps", "indices"):
            parts = [getattr(ranks[rank][step], field) for rank in range(2)]
            assert torch.equal(torch.cat(parts), getattr(whole[step], field))
    micro = list(train(num_steps=2, accumulate=2))
    assert torch.equal(torch.cat([micro[2].label_maps, micro[3].label_maps]), whole[1].label_maps)
    seen = torch.cat([batch.indices for rank in ranks for batch in rank])
    assert len(seen.unique()) == 8


def test_evaluation_shows_whole_images_once(tmp_path):
    source = open_label_maps(SPEC)
    batches = evaluated(source, 4, num_workers=1)
    assert len(batches) == 3
    found = list(batches)
    assert torch.cat([batch.indices for batch in found]).tolist() == list(range(11))
    assert torch.equal(found[1].images[2], source.image(6))
    assert torch.equal(found[1].label_maps[2], source.label_map(6))
    ranks = [evaluated(source, 2, rank=rank, world_size=3) for rank in range(3)]
    seen = [batch.indices.tolist() for rank in ranks for batch in rank]
    assert seen == [[0, 1], [6, 7], [2, 3], [8, 9], [4, 5], [10]]


def test_batches_on_a_device():
    plain = list(train())
    moved = Prefetch(train(), torch.device("cpu"))
    moved.begin()
    assert_equal(plain, list(moved))
    assert moved.wait_seconds > 0
    whole = evaluated(open_label_maps(SPEC), 4)
    assert_equal(list(whole), list(Prefetch(whole, torch.device("cpu"))))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu():
    plain = list(train())
    moved = list(Prefetch(train(num_workers=1), torch.device("cuda")))
    assert moved[0].label_maps.device.type == "cuda"
    assert_equal(plain, moved)


def test_workers_share_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as file:
        generator = torch.Generator().manual_seed(1)
        for number in range(12):
            pixels = torch.randint(256, (16, 20, 3), generator=generator).to(torch.uint8)
            for folder, values in (("images", pixels), ("masks", pixels[..., 0] % 3)):
                Image.fromarray(values.numpy()).save(tmp_path / "one.png")
                file.write(tmp_path / "one.png", f"set/{folder}/{number:02}.png")
    source = open_label_maps(str(tmp_path / "set.zip"), classes="3")
    source.image(0)  # opened before the fork
    assert_equal(list(train(source)), list(train(source, num_workers=3)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_map_of_another_size_ends_the_run(workers):
    with pytest.raises(
        ValueError, match=r"1\.png: the image is 5 x 5 .* its label map 4 x 5; they"
    ):
        list(train(Odd(), batch_size=1, num_workers=workers))
    with pytest.raises(ValueError, match=r"1\.png: the image is 5 x 5"):
        list(evaluated(Odd(), num_workers=workers))


def test_refusals():
    with pytest.raises(ValueError, match=r"a step takes 12 images .* but there are only 11"):
        train(batch_size=12)

import pytest
import torch

from beit.data.batches import TrainBatches
from beit.data.resident import resident_reader
from beit.data.sources import open_source
from beit.data.views import TrainViews, ViewConfig

CPU = torch.device("cpu")
SPEC = "shapes://40?size=23"


def batches(source, views, **options):
    settings = {"batch_size": 6, "seed": 3, "start_step": 0, "num_steps": 9} | options
    return TrainBatches(source, views, **settings)


@pytest.mark.parametrize("jitter", [0.0, 0.4])
@pytest.mark.parametrize("target_size", [(16, 24), (9, 40)])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_a_set_read_image_by_image(jitter, target_size, workers):
    views = TrainViews(ViewConfig(min_scale=0.1, color_jitter=jitter), (16, 24), target_size)
    cached = open_source(SPEC, cache_gigabytes=0.001)
    assert resident_reader(cached, views, 0, CPU) is not None
    plain = batches(open_source(SPEC), views)
    for one, other in zip(plain, batches(cached, views, num_workers=workers), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.target_images, other.target_images)
        assert (other.target_images is other.images) == (target_size == (16, 24))
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.crops, other.crops)
        assert other.unreadable == []


def test_other_sets_and_views_are_read_image_by_image():
    cached, small = open_source(SPEC, cache_gigabytes=0.001), (16, 24)
    config = ViewConfig()
    assert resident_reader(open_source(SPEC), TrainViews(config, small, small), 0, CPU) is None
    lanczos = TrainViews(config, small, (8, 12), by_lanczos=True)
    assert resident_reader(cached, lanczos, 0, CPU) is None
    assert resident_reader(cached, TrainViews(config, small, (224, 224)), 0, CPU) is None
    assert resident_reader(cached, lambda image, generator: (image,), 0, CPU) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("gigabytes", [0.0, 0.001])
def test_a_gpu_gives_the_same_batches_to_one_level(gigabytes):
    views = TrainViews(ViewConfig(), (16, 24), (9, 40))
    source = open_source(SPEC, cache_gigabytes=gigabytes)
    on_gpu = batches(source, views, device="cuda", num_workers=1)
    for one, other in zip(batches(open_source(SPEC), views), on_gpu, strict=True):
        assert other.images.device.type == "cuda"
        assert torch.equal(one.indices, other.indices.cpu())
        for name in ("images", "target_images"):
            difference = getattr(one, name).int() - getattr(other, name).cpu().int()
            assert difference.abs().max() <= 1

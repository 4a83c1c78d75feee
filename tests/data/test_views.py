import math
from itertools import permutations

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from beit.data.colours import draw_changes, recoloured
from beit.data.order import sample_generator
from beit.data.views import EvalView, EvalViews, TrainViews, ViewConfig, crop_box, resized
from beit.nn.resample import lanczos


def picture(height=37, width=53, low=0, high=256):
    generator = torch.Generator().manual_seed(height)
    coarse = torch.rand((3, 5, 7), generator=generator)
    fine = torch.nn.functional.interpolate(coarse[None], (height, width), mode="bilinear")[0]
    return (low + fine * (high - 1 - low)).to(torch.uint8)


def bicubic(image, size):
    return transforms.resize(image, list(size), InterpolationMode.BICUBIC, antialias=True)


PLAIN = ViewConfig(
    min_scale=1.0, max_scale=1.0, min_ratio=1.0, max_ratio=1.0, flip=0, color_jitter=0
)


def test_whole_image_without_chance_is_a_plain_resize():
    image = picture(30, 45)
    student, tokenizer = TrainViews(PLAIN, (16, 24), (8, 12))(image, sample_generator(0, 0, 0))
    assert torch.equal(student, bicubic(image, (16, 24)))
    assert torch.equal(tokenizer, bicubic(image, (8, 12)))


def test_certain_flip_mirrors():
    config = ViewConfig(1.0, 1.0, 1.0, 1.0, flip=1.0, color_jitter=0)
    student, _ = TrainViews(config, (30, 30), (30, 30))(picture(30, 30), sample_generator(0, 0, 0))
    assert torch.equal(student, picture(30, 30).flip(-1))


def test_equal_sizes_give_one_tensor():
    student, tokenizer = TrainViews(ViewConfig(), (16, 24), (16, 24))(
        picture(), sample_generator(0, 0, 0)
    )
    assert student is tokenizer
    assert student.dtype == torch.uint8
    assert student.is_contiguous()
    assert student.shape == (3, 16, 24)


def test_the_tokenizers_view_by_lanczos_is_of_the_same_crop():
    config = ViewConfig(min_scale=0.3, flip=0, color_jitter=0)
    student, small = TrainViews(config, (16, 24), (8, 12), by_lanczos=True)(
        picture(), sample_generator(0, 1, 2)
    )
    height, width = picture().shape[-2:]
    chances = torch.rand(45, generator=sample_generator(0, 1, 2), dtype=torch.float64).tolist()
    top, left, box_height, box_width = crop_box(height, width, config, chances[5:], 24 / 16)
    crop = picture()[:, top : top + box_height, left : left + box_width]
    assert torch.equal(small, lanczos(crop, (8, 12)))
    assert torch.equal(student, bicubic(crop, (16, 24)))


def test_views_follow_the_generator_alone():
    views = TrainViews(ViewConfig(), (16, 24), (8, 12))
    image = picture()
    first = views(image, sample_generator(0, 1, 2))
    torch.manual_seed(5)
    again = views(image, sample_generator(0, 1, 2))
    other = views(image, sample_generator(0, 2, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(image, picture())  # the cached image is not written to


def test_jitter_last_equals_the_published_order():
    """Jitter, flip, crop, resize, without clipped values on the way.

    The published order: docs/reference/pretraining.md, "Augmentation".
    """
    image = picture(low=90, high=140)
    factors, draws = [1.2, 0.8, 1.3], [0.75, 0.25, 0.875]
    change = {
        "brightness": lambda x: transforms.adjust_brightness(x, factors[0]),
        "contrast": lambda x: transforms.adjust_contrast(x, factors[1]),
        "saturation": lambda x: transforms.adjust_saturation(x, factors[2]),
    }
    mean = transforms.rgb_to_grayscale(image).float().mean().item()
    for number, order in enumerate(permutations(change)):
        naive = image
        for name in order:
            naive = change[name](naive)
        naive = bicubic(naive.flip(-1)[:, 5:31, 8:40], (16, 24))
        changes = torch.tensor([draw_changes(0.4, [*draws, number / 6 + 0.01], mean)])
        view = bicubic(image.flip(-1)[:, 5:31, 8:40], (16, 24))
        ours = recoloured(view[None], changes)[0]
        # three roundings down in the naive way, one to the nearest in ours
        assert (naive.int() - ours.int()).abs().max() <= 4


def test_crop_boxes_lie_inside_and_keep_to_the_config():
    config = ViewConfig(min_scale=0.3, max_scale=0.6)
    for index in range(300):
        chances = torch.rand(40, generator=sample_generator(0, 0, index)).tolist()
        top, left, height, width = crop_box(37, 53, config, chances)
        assert 0 <= top <= 37 - height
        assert 0 <= left <= 53 - width
        assert 0.25 <= height * width / (37 * 53) <= 0.65  # sides are rounded
        assert 0.7 <= width / height <= 1.42


def test_at_an_aspect_of_one_the_boxes_are_those_of_the_config_alone():
    config = ViewConfig(min_scale=0.1)
    for index in range(50):
        chances = torch.rand(40, generator=sample_generator(0, 0, index)).tolist()
        assert crop_box(37, 53, config, chances) == crop_box(37, 53, config, chances, 1.0)


@pytest.mark.parametrize("size", [(24, 24), (24, 48), (60, 20)])
def test_a_circle_is_round_on_average(size):
    """In views of any shape, a circle's width over its height has a logarithm of mean 0."""
    image = torch.zeros(3, 250, 250, dtype=torch.uint8)
    image[0], image[1] = torch.arange(250), torch.arange(250)[:, None]  # the column and the row
    config = ViewConfig(min_scale=0.1, max_scale=0.15, flip=0, color_jitter=0)
    shapes = []
    for index in range(200):
        columns, rows, _ = TrainViews(config, size, size)(image, sample_generator(0, 0, index))[0]
        across = float(columns[:, -1].float().mean() - columns[:, 0].float().mean()) / size[1]
        down = float(rows[-1].float().mean() - rows[0].float().mean()) / size[0]
        shapes.append(math.log(down / across))
    assert abs(sum(shapes) / len(shapes)) < 0.05  # the deviation of a mean of 200 is 0.012
    assert max(map(abs, shapes)) < math.log(4 / 3) + 0.08  # sides are whole pixels


def test_crop_of_a_needle_in_a_wide_view_falls_back_to_a_wide_box():
    assert crop_box(3, 100, ViewConfig(min_scale=0.9), [0.5] * 40, 2.0) == (0, 46, 3, 8)
    assert crop_box(100, 6, ViewConfig(min_scale=0.9), [0.5] * 40, 2.0) == (48, 0, 4, 6)


def test_crop_of_a_needle_falls_back_to_its_centre():
    chances = [0.5] * 40
    assert crop_box(100, 3, ViewConfig(min_scale=0.9), chances) == (48, 0, 4, 3)
    assert crop_box(3, 100, ViewConfig(min_scale=0.9), chances) == (0, 48, 3, 4)
    assert crop_box(1, 1, ViewConfig(), [0.0] * 40) == (0, 0, 1, 1)


def test_smallest_image_gives_views():
    image = torch.full((3, 1, 1), 77, dtype=torch.uint8)
    config = ViewConfig(color_jitter=0)
    student, _ = TrainViews(config, (5, 7), (5, 7))(image, sample_generator(0, 0, 0))
    assert student.eq(77).all()
    assert EvalView((5, 7))(image).eq(77).all()


def test_views_do_not_depend_on_threads():
    image = picture(240, 320)
    views = TrainViews(ViewConfig(), (224, 224), (224, 224))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, _ = views(image, sample_generator(0, 0, 1))
        torch.set_num_threads(3)
        three, _ = views(image, sample_generator(0, 0, 1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, three)


def test_eval_view_resizes_the_shorter_side_and_crops_the_centre():
    image = picture(37, 53)
    resized = bicubic(image, (32, 32 * 53 // 37))
    assert torch.equal(EvalView((28, 28))(image), transforms.center_crop(resized, [28, 28]))
    upright = EvalView((28, 28))(image.transpose(1, 2))
    assert torch.equal(upright, bicubic(image.transpose(1, 2), (45, 32))[:, 8:36, 2:30])


def test_eval_view_of_another_shape_covers_it():
    image = picture(37, 53)
    view = EvalView((10, 40), crop_ratio=1.0)(image)
    assert torch.equal(view, bicubic(image, (27, 40))[:, 8:18])
    assert torch.equal(EvalView((37, 53), crop_ratio=1.0)(image), image)


@pytest.mark.parametrize("shape", [(55_000, 1), (1, 55_000)])
def test_a_line_of_one_pixel_is_not_scaled_whole(shape):
    """At its full length, the scaled image would have 12 GB."""
    line = torch.full((3, *shape), 90, dtype=torch.uint8)
    middle = slice(shape[0] // 2, shape[0] // 2 + 1), slice(shape[1] // 2, shape[1] // 2 + 1)
    line[:, *middle] = 91
    view = EvalView((224, 224))
    assert view.scaled(line).numel() == 3 * 32 * 256 * 256
    assert view(line).unique().tolist() == [90, 91]


def test_a_panorama_is_scaled_whole_and_of_a_longer_one_the_middle():
    panorama = picture(4, 128)
    view = EvalView((8, 8), crop_ratio=1.0)
    assert torch.equal(view.scaled(panorama), bicubic(panorama, (8, 256)))
    longer = torch.cat([panorama[:, :, :10], panorama, panorama[:, :, -10:]], dim=2)
    assert torch.equal(view(longer), view(panorama))
    wide = EvalView((8, 16), crop_ratio=1.0).scaled(picture(2, 300))
    assert wide.shape == (3, 8, 512)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_scale": 0.0}, "0 < min_scale <= max_scale <= 1"),
        ({"min_scale": 0.9, "max_scale": 0.8}, "got min_scale 0.9 and max_scale 0.8"),
        ({"flip": 1.5}, "flip must be a probability"),
        ({"color_jitter": -1.0}, "color_jitter must be in"),
        ({"min_ratio": 2.0}, "min_ratio <= max_ratio"),
    ],
)
def test_wrong_config_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ViewConfig(**options)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="target_size must be"):
        TrainViews(ViewConfig(), (8, 8), (0, 8))
    with pytest.raises(ValueError, match="crop_ratio"):
        EvalView((8, 8), 1.5)


@pytest.mark.parametrize("by_lanczos", [False, True])
def test_the_centre_crop_of_a_target_is_cut_from_the_image_itself(by_lanczos: bool) -> None:
    image = torch.randint(256, (3, 90, 75), dtype=torch.uint8)
    views = EvalViews((8, 12), (16, 24), 0.8, by_lanczos)
    view, target = views(image)
    assert torch.equal(view, EvalView((8, 12), 0.8)(image))
    resize = lanczos if by_lanczos else resized
    whole = resize(image[None], (36, 30))[0]  # 24 / 0.8 wide
    assert torch.equal(target, whole[:, 10:26, 3:27])
    assert views.need == EvalView((16, 24), 0.8).need
    view, target = EvalViews((8, 12), (8, 12), 0.8, by_lanczos)(image)
    assert target is view

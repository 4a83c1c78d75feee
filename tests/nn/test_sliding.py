from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from beit.nn.segmenter import resize_maps
from beit.nn.sliding import (
    MapPredictor,
    MapViewConfig,
    rescaled,
    sliding_logits,
    strips,
    window_starts,
    working_size,
)

KERNEL = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))


def classify(windows: Tensor) -> Tensor:
    """Four classes; what lies beyond a window's edge counts, as it does for a network."""
    return F.conv2d(windows, KERNEL, padding=1) + windows.mean((1, 2, 3), keepdim=True)


def image(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)


def published_starts(length: int, window: int, stride: int) -> list[int]:
    """As mmsegmentation counts them: the number first, then each pushed back inside."""
    number = max(length - window + stride - 1, 0) // stride + 1
    ends = [min(i * stride + window, length) for i in range(number)]
    return [max(end - window, 0) for end in ends]


def test_windows_lie_where_the_published_code_puts_them() -> None:
    assert window_starts(9, 9, 4) == [0]
    assert window_starts(13, 9, 4) == [0, 4]
    assert window_starts(14, 9, 4) == [0, 4, 5]
    assert window_starts(5, 9, 4) == [0]
    for length in range(1, 40):
        for stride in range(1, 10):
            assert window_starts(length, 9, stride) == published_starts(length, 9, stride)
    for stride in (0, 10):
        with pytest.raises(ValueError, match=f"stride is {stride}; expected 1 to 9"):
            window_starts(20, 9, stride)


# The image fits exactly, is odd, is smaller one way or both.
@pytest.mark.parametrize("size", [(8, 12), (17, 31), (5, 20), (7, 9)])
@pytest.mark.parametrize("batch_size", [1, 4, 99])
def test_logits_are_averages_over_the_windows_of_a_plain_loop(
    size: tuple[int, int], batch_size: int
) -> None:
    images = torch.stack([image(*size), image(*size).flip(2)])
    H, W = max(size[0], 8), max(size[1], 12)
    mean = torch.tensor([0.2, 0.5, 0.7])[:, None, None]
    padded = mean.expand(2, 3, H, W).clone()
    padded[:, :, : size[0], : size[1]] = images.float() / 255
    expected, times = torch.zeros(2, 4, H, W), torch.zeros(H, W)
    for top in published_starts(H, 8, 5):
        for left in published_starts(W, 12, 7):
            place = (slice(top, top + 8), slice(left, left + 12))
            expected[:, :, place[0], place[1]] += classify(padded[:, :, place[0], place[1]])
            times[place] += 1
    expected = (expected / times)[:, :, : size[0], : size[1]]
    actual = sliding_logits(classify, images, (8, 12), (5, 7), batch_size, mean)
    assert actual.shape == (2, 4, *size)
    torch.testing.assert_close(actual, expected)


def test_coarse_logits_are_brought_to_the_size_of_the_window() -> None:
    def coarse(windows: Tensor) -> Tensor:
        return F.avg_pool2d(classify(windows), 4)  # (n, 4, 2, 3)

    def fine(windows: Tensor) -> Tensor:
        return resize_maps(coarse(windows), (8, 12))

    images = image(11, 20)[None]
    actual, expected = (sliding_logits(way, images, (8, 12), (5, 7)) for way in (coarse, fine))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("pixels", "sizes"), [(50, [1] * 6), (4 * 96 + 95, [4, 2]), (2**19, [6])])
def test_as_many_windows_at_a_time_as_have_so_many_pixels(
    pixels: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes_seen: list[int] = []

    def counted(windows: Tensor) -> Tensor:
        sizes_seen.append(len(windows))
        return classify(windows)

    monkeypatch.setattr("beit.nn.sliding.WINDOW_PIXELS", pixels)
    sliding_logits(counted, image(13, 24)[None], (8, 12), (5, 7))  # 2 x 3 windows
    assert sizes_seen == sizes


def test_one_window_is_the_whole_image() -> None:
    images = image(8, 12)[None].float() / 255
    assert torch.equal(sliding_logits(classify, images, (8, 12), (5, 7)), classify(images))
    labels = MapPredictor((8, 12), MapViewConfig())(classify, image(8, 12)[None])[0]
    assert torch.equal(labels, classify(images)[0].argmax(dim=0))
    whole = MapPredictor((8, 12), MapViewConfig("whole"))(classify, image(8, 12)[None])[0]
    assert torch.equal(labels, whole)


def test_working_sizes_are_the_published_ones() -> None:
    assert working_size((683, 1024), 512, 2048) == (512, 768)  # 767.6 pixels
    assert working_size((200, 1000), 512, 2048) == (410, 2048)  # 409.6
    assert working_size((300, 200), 384, 1536) == (576, 384)
    assert working_size((1, 5000), 512, 2048) == (1, 2048)
    predictor = MapPredictor((512, 640), MapViewConfig())
    assert predictor.stride == (341, 426)
    predictor = MapPredictor((512, 512), MapViewConfig())
    assert predictor.sizes((300, 400)) == [(512, 683)]
    assert predictor.sizes((200, 1000)) == [(410, 2048)]
    several = MapPredictor((512, 512), MapViewConfig(scales=(0.5, 1.0, 1.75)))
    assert several.sizes((200, 1000)) == [(512, 2560), (512, 2560), (896, 4480)]
    as_they_are = MapPredictor((512, 512), MapViewConfig(short_side=0))
    assert as_they_are.sizes((99, 1001)) == [(99, 1001)]
    assert MapPredictor((9, 8), MapViewConfig("whole")).sizes((5, 7)) == [(9, 8)]


def test_rescaling_keeps_bytes() -> None:
    grown = rescaled(torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2), (1, 4))
    assert grown[0, 0].tolist() == [[0, 64, 191, 255]]  # 63.75 and 191.25
    assert rescaled(image(4, 6)[None], (4, 6)).equal(image(4, 6)[None])


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_views_are_averaged_as_probabilities_at_the_images_own_size(
    mode: Literal["slide", "whole"],
) -> None:
    pictures = torch.stack([image(11, 23), image(11, 23).flip(1)])
    scales = (0.75, 1.5) if mode == "slide" else (1.0,)
    predictor = MapPredictor(
        (8, 12), MapViewConfig(mode, 7, scales, flip=True, short_side=12, batch_size=3)
    )
    sizes = [(9, 19), (18, 38)] if mode == "slide" else [(8, 12)]
    assert predictor.sizes((11, 23)) == sizes
    expected = torch.zeros(2, 4, 11, 23)
    for size in sizes:
        view = rescaled(pictures, size)
        logits = sliding_logits(classify, view, (8, 12), (7, 7))
        expected += resize_maps(logits, (11, 23)).softmax(dim=1)
        logits = sliding_logits(classify, view.flip(3), (8, 12), (7, 7)).flip(3)
        expected += resize_maps(logits, (11, 23)).softmax(dim=1)
    labels = predictor(classify, pictures)
    assert labels.shape == (2, 11, 23)
    assert labels.dtype == torch.int64
    best = expected.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 1e-5  # where rounding cannot matter
    assert clear.float().mean() > 0.9
    assert torch.equal(labels[clear], expected.argmax(dim=1)[clear])


@pytest.mark.parametrize("size", [(7, 5), (23, 40), (64, 3)])
def test_strips_put_together_are_the_resized_whole(size: tuple[int, int]) -> None:
    logits = torch.randn(2, 4, 13, 9, generator=torch.Generator().manual_seed(2))
    actual = list(strips(logits, size, entries=2 * 4 * size[1] * 3))
    assert [first for first, _ in actual] == list(range(0, size[0], 3))
    whole = torch.cat([strip for _, strip in actual], dim=2)
    torch.testing.assert_close(whole, resize_maps(logits, size))
    assert len(list(strips(logits, size))) == 1


def test_logits_that_are_not_finite_are_refused() -> None:
    def broken(windows: Tensor) -> Tensor:
        return classify(windows).where(windows[:, :1] > 0.5, torch.nan)

    with pytest.raises(ValueError, match="logits are not finite"):
        sliding_logits(broken, image(9, 13)[None], (8, 12), (5, 7))


def test_what_cannot_be_done_is_refused() -> None:
    for changes, message in (
        ({"scales": ()}, "scales must be one or more numbers above 0"),
        ({"scales": (1.0, 0.0)}, "scales must be"),
        ({"short_side": -1}, "short_side is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"mode": "whole", "scales": (0.5,)}, "scales need mode slide"),
    ):
        with pytest.raises(ValueError, match=message):
            MapViewConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stride is 9; expected 1 to 8"):
        MapPredictor((8, 12), MapViewConfig(stride=9))

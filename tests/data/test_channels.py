"""Images of other channels than three: bands, ranges and views; sets and trainings of them."""

import io

import numpy as np
import pytest
import tifffile
import torch

from beit.data.batches import DataConfig, EvalBatches, TrainBatches
from beit.data.channels import channels_of, check_channels, compare_pixels, pixel_options
from beit.data.folders.image_files import read_image
from beit.data.opening import open_image
from beit.data.pixels.decoding import decode
from beit.data.pixels.rasters import channel_axis
from beit.data.shrinking import Need, Shrinking, ShrunkImages
from beit.data.source import UnreadableImage
from beit.data.sources import open_source
from beit.data.spec import AS_IT_IS, Reading, pixel_query
from beit.data.views import EvalView, TrainViews, ViewConfig

RANDOM = np.random.default_rng(20)
DEEP = RANDOM.integers(0, 65536, (20, 32, 5)).astype(np.uint16)
VIEWS = TrainViews(ViewConfig(color_jitter=0.0), (12, 16), (8, 8))


def tiff(values):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values.transpose(2, 0, 1), photometric="minisblack", metadata=None)
    return buffer.getvalue()


def npy(values, order="C"):
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values, order=order))
    return buffer.getvalue()


def reading(query):
    return Reading.parse(query, "SOURCE")


def levels(values, low, high):
    """What one band becomes, by hand."""
    share = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    return np.floor(share * 255 + 0.5).astype(np.uint8)


# ── bands and ranges ────────────────────────────────────────────────────────────────────────────


def test_bands_are_numbers_and_spans():
    assert reading("bands=1-4,8").bands == (1, 2, 3, 4, 8)
    numbers = [reading(f"bands={text}").channels for text in ("2", "3,2,1", "1,2", "1-13")]
    assert [*numbers, AS_IT_IS.channels] == [3, 3, 2, 13, 3]
    for text in ("4-2", "0-3", "1-", "x", "1--3"):
        with pytest.raises(ValueError, match="expected numbers from 1"):
            reading(f"bands={text}")


def test_equal_options_are_spelled_alike():
    alike = ["a?bands=1-4&range=0:9,0:9,0:9,0:9", "b?range=0:9.0&label=x&bands=1,2,3,4[5%:]"]
    assert {*map(tuple, map(pixel_options, alike))} == {("bands=1-4&range=0:9",)}
    assert pixel_options("a?bands=4,3,2&range=0:1,0:1,-2.5:70000") == [
        "bands=4,3,2&range=0:1,0:1,-2.5:70000"
    ]
    plain = ("a", "shapes://9?size=8", "a?bands=1-3", "a?label=x", "hf://datasets/a/b")
    assert {*map(tuple, map(pixel_options, plain))} == {("",)}
    assert pixel_options("{a?range=0:9: 1, b: 2, c?bands=2: 3}") == ["", "bands=2", "range=0:9"]
    assert pixel_options(["a.tif?bands=2", "b.tif"]) == ["", "bands=2"]


def test_options_of_pixels_are_kept_as_they_are_written():
    assert pixel_query("a?range=0:9&label=x&bands=1,2,3[5%:]") == "range=0:9&bands=1,2,3"
    assert [pixel_query(spec) for spec in ("a", "a?label=x", "shapes://9?size=8[:9%]")] == [""] * 3


def test_a_validation_set_of_another_range_is_warned_of(caplog):
    data = DataConfig(train="a?range=0:4095", validation="b?range=0:65535")
    check_channels(data, 3, "", 0.0)
    assert "b?range=0:65535 has range=0:65535, but the training images have range=0:4095" in (
        caplog.text
    )
    caplog.clear()
    check_channels(DataConfig(train="a?range=0:4095", validation="b?range=0:4095"), 3, "", 0.0)
    compare_pixels(["", "range=0:9"], "x", "a?range=0:9", "b")  # a set of a mixture
    assert not caplog.text
    with pytest.raises(
        ValueError, match=r"c\?bands=1,2 has bands=1,2, but x bands=1-5: 2 channels"
    ):
        compare_pixels(["bands=1-5"], "x", "c?bands=1,2")


def test_each_band_has_its_own_range():
    values = decode(tiff(DEEP), "x", reading("bands=5,1,2,4&range=0:9000,5:70000,1:2,0:65535"))
    ends = {4: (0, 9000), 0: (5, 70000), 1: (1, 2), 3: (0, 65535)}
    expected = [levels(DEEP[..., band], *pair) for band, pair in ends.items()]
    assert np.array_equal(values.numpy(), np.stack(expected))
    alike = decode(tiff(DEEP), "x", reading("bands=1-5&range=0:9000"))
    assert np.array_equal(alike.numpy(), levels(DEEP, 0, 9000).transpose(2, 0, 1))
    for query in ("bands=1-4&range=0:1,0:2", "range=0:1,0:2"):
        with pytest.raises(ValueError, match="one LOW:HIGH for all bands, or one for each"):
            reading(query)


def test_three_named_bands_are_those_of_more():
    three, five = (decode(tiff(DEEP), "x", reading(f"bands={text}")) for text in ("3,1,5", "1-5"))
    assert torch.equal(three, five[[2, 0, 4]])
    pixels = RANDOM.integers(0, 256, (9, 11, 4)).astype(np.uint8)
    depth = decode(tiff(pixels), "x", reading("bands=1-4"))
    assert np.array_equal(depth.numpy(), pixels.transpose(2, 0, 1))


def test_a_dark_band_needs_a_range():
    dark = DEEP.copy()
    dark[..., 3] //= 1000
    with pytest.raises(UnreadableImage, match=r"band 4: uint16 values up to \d+ only"):
        decode(tiff(dark), "x", reading("bands=1-5"))


def test_another_number_of_bands_is_refused():
    with pytest.raises(UnreadableImage, match=r"field: bands=1,2,3,4,5,6, but there are 5; name"):
        decode(tiff(DEEP), "field", reading("bands=1-6"))
    with pytest.raises(
        UnreadableImage, match=r"5 bands or pages.*take all, as in SOURCE\?bands=1-5"
    ):
        decode(tiff(DEEP), "field")


# ── arrays ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_the_tiff_of_its_values(order):
    expected = decode(tiff(DEEP), "x", reading("bands=1-5"))
    for values in (DEEP, DEEP.transpose(2, 0, 1), DEEP.astype(">u2")):
        assert torch.equal(decode(npy(values, order), "x", reading("bands=1-5")), expected)
    assert torch.equal(decode(npy(DEEP[..., 0], order), "x"), expected[:1].expand(3, -1, -1))
    shares = (DEEP / 65535).astype(np.float64)
    assert torch.equal(decode(npy(shares, order), "x", reading("bands=1-5")), expected)


def test_the_axis_of_the_channels():
    assert [channel_axis(shape) for shape in ((13, 8, 8), (8, 8, 13), (5, 20, 32))] == [0, 2, 0]
    assert [channel_axis(shape) for shape in ((20, 32, 5), (1, 7, 9), (7, 9, 1))] == [2, 0, 2]
    for unclear in ((8, 8, 8), (8, 12, 10), (20, 13, 32), (13, 20, 32)):
        with pytest.raises(ValueError, match=r"could be \(C, H, W\) or \(H, W, C\)"):
            channel_axis(unclear)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.array([[{}]]), "C"), r"array \(1, 1\) of object"),
        (npy(np.zeros((2, 2), np.complex64)), "complex64, expected"),
        (npy(np.zeros(4)), r"array \(4,\) of float64, expected \(H, W, C\)"),
        (npy(np.zeros((0, 4, 4))), "an array"),
        (
            npy(np.zeros((9, 4, 4))).replace(b"(9, 4, 4), }", b"(-1, 4, 4), }"),
            r"array \(-1, 4, 4\)",
        ),
        (npy(DEEP)[:-1], "buffer"),
        (npy(DEEP)[:20], "header|magic|read"),
        (npy(DEEP[..., :3]), "3 bands or pages; say which"),
        (npy(np.zeros((1, 1))).replace(b"(1, 1), }", b"(9999, 9999), }"), "too large"),
    ],
)
def test_arrays_that_are_no_images(data, message):
    with pytest.raises(UnreadableImage, match=message):
        decode(data, "x")


def test_arrays_are_images_where_there_is_no_other(tmp_path):
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "1.npy").write_bytes(npy(DEEP))
    source = open_source(f"{tmp_path}?bands=1-5")
    assert [source.name(index) for index in range(2)] == ["a/1.npy", "b/1.npy"]
    assert source.class_names == ["a", "b"]
    assert source.image(0).shape == open_source(f"{tmp_path}/a/1.npy?bands=1-5").image(0).shape
    (tmp_path / "a/1.tif").write_bytes(tiff(DEEP))
    source = open_source(f"{tmp_path}?bands=1-5")
    assert [source.name(index) for index in range(len(source))] == ["a/1.tif"]


# ── views and batches ───────────────────────────────────────────────────────────────────────────


def drawn(image, views=VIEWS):
    return views(image, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("channels", [2, 4, 5, 13])
def test_a_channel_is_seen_as_it_is_alone(channels):
    """The views of c channels are those of RGB, three at a time, in any order."""
    image = torch.from_numpy(RANDOM.integers(0, 256, (channels, 31, 23)).astype(np.uint8))
    seen, order = drawn(image), torch.randperm(channels)
    centre = EvalView((12, 16))
    for channel in range(channels):
        alone = drawn(image[[channel] * 3])
        assert all(
            torch.equal(ours[channel], theirs[0]) for ours, theirs in zip(seen, alone, strict=True)
        )
        assert torch.equal(centre(image)[channel], centre(image[[channel] * 3])[2])
    assert all(
        torch.equal(ours[order], view) for ours, view in zip(seen, drawn(image[order]), strict=True)
    )


def test_jitter_is_of_colours():
    jitter = TrainViews(ViewConfig(color_jitter=0.4), (8, 8), (8, 8))
    with pytest.raises(ValueError, match=r"color_jitter is 0.4, .* images have 4 channels; give 0"):
        drawn(torch.zeros(4, 9, 9, dtype=torch.uint8), jitter)


@pytest.fixture
def cells(tmp_path):
    """Six images of five bands, and how they are opened."""
    (tmp_path / "cells").mkdir()
    for number in range(6):
        values = RANDOM.integers(0, 4096, (28, 36, 5)).astype(np.uint16)
        (tmp_path / f"cells/{number}.tif").write_bytes(tiff(values))
    return f"{tmp_path}/cells?bands=1-5&range=0:4095"


@pytest.mark.parametrize("options", [{"workers": 2}, {"cache": 1.0}, {"cache": 1.0, "workers": 1}])
def test_batches_are_the_same_from_memory_and_workers(cells, options):
    def batches(workers=0, cache=0.0):
        source = open_source(cells, cache_gigabytes=cache)
        settings = {"batch_size": 2, "seed": 5, "start_step": 0, "num_steps": 4}
        train = TrainBatches(source, VIEWS, num_workers=workers, **settings)
        whole = EvalBatches(source, EvalView((12, 16)), 4, num_workers=workers)
        return [*train, *whole]

    for ours, expected in zip(batches(**options), batches(), strict=True):
        assert ours.images.shape[1] == 5
        assert torch.equal(ours.images, expected.images)
        assert torch.equal(ours.target_images, expected.target_images)


def test_shrunk_images_are_kept_with_their_channels(cells, tmp_path):
    file, spec = tmp_path / "cells/0.tif", reading("bands=1-5&range=0:4095")
    shrinking = Shrinking(Need(0, 7, 9), ShrunkImages(str(tmp_path / "kept"), 1.0))
    first, again = (read_image(file, "x", spec._replace(shrinking=shrinking)) for _ in range(2))
    assert first.shape == (5, 7, 9)
    assert torch.equal(again, first)
    assert len([path for path in (tmp_path / "kept").rglob("*") if path.is_file()]) == 1
    whole = read_image(file, "x", reading("bands=3,2,1&range=0:4095")._replace(shrinking=shrinking))
    assert torch.equal(whole, first[[2, 1, 0]])


def test_open_image_takes_the_string_of_data(cells, tmp_path):
    path = f"{tmp_path}/cells/2.tif"
    images = open_image([f"{path}?bands=1-5&range=0:4095"] * 2, size=(16, 16))
    assert images.shape == (2, 5, 16, 16)
    assert torch.equal(images[0], EvalView((16, 16))(open_source(cells).image(2)))
    with pytest.raises(ValueError, match=r"several numbers of channels, \[5, 3\]"):
        open_image([f"{path}?bands=1-5&range=0:4095", f"{path}?bands=1&range=0:4095"])


# ── sets and trainings ──────────────────────────────────────────────────────────────────────────


def test_the_channels_of_a_set():
    specs = ("photos", "a?bands=1-5[:90%]", "a?bands=2", "shapes://9?size=8", "hf://a/b?label=x")
    assert [channels_of(spec) for spec in specs] == [3, 5, 3, 3, 3]
    assert channels_of("{a?bands=1-4: 0.5, b?bands=5-8: 0.5}") == 4
    with pytest.raises(ValueError, match="of different channels, 3 in a, 4 in b"):
        channels_of("{a: 0.5, b?bands=5-8: 0.5}")


def test_a_training_and_its_model_have_the_same_channels():
    data = DataConfig(train="a?bands=1-5", validation="a")
    with pytest.raises(
        ValueError, match=r"--validation a has images of 3 .* give --x 3, with mean"
    ):
        check_channels(data, 5, "x", 0.0)
    with pytest.raises(ValueError, match=r"--data .* 5 channels, but the model takes 3; give 3"):
        check_channels(data, 3, "", 0.0)
    five = DataConfig(train="a?bands=1-5")
    check_channels(five, 5, "x", 0.0)
    with pytest.raises(ValueError, match=r"but the images have 5 channels; give --view.color_jit"):
        check_channels(five, 5, "x", 0.4)
    check_channels(DataConfig(train="a"), 3, "x", 0.4)

"""Depth: which values become black and white."""

import numpy as np
import pytest
import torch

from beit.data.pixels.samples import Samples, over_white, to_channels
from beit.data.spec import AS_IT_IS, Reading


def grey(values, reading=AS_IT_IS, **options):
    """Return the levels of a row of grey values."""
    samples = Samples(np.asarray(values)[None, :, None], (1,), **options)
    image = to_channels(samples, reading)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 1, len(values))
    assert torch.equal(image[0], image[2])
    return image[0, 0].tolist()


def test_8_and_16_bits_have_the_whole_range():
    assert grey(np.array([0, 3, 255], dtype=np.uint8)) == [0, 3, 255]
    assert grey(np.array([0, 128, 129, 32896, 65535], dtype=np.uint16)) == [0, 0, 1, 128, 255]
    assert grey(np.array([False, True])) == [0, 255]


def test_floats_from_0_to_1_are_shares_of_white():
    assert grey(np.array([0.0, 0.25, 1.0, np.nan], dtype=np.float32)) == [0, 64, 255, 0]
    assert grey(np.array([0.0, 0.5], dtype=np.float64)) == [0, 128]


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_few_bits_in_sixteen_are_refused_until_the_range_is_given(bits):
    values = np.array([0, 2 ** (bits - 1), 2**bits - 1], dtype=np.uint16)
    camera = 4095 if bits < 13 else 16383  # as the error shows it: a smaller range would cut
    with pytest.raises(ValueError, match=rf"up to {2**bits - 1} only.*SOURCE\?range=0:{camera} "):
        grey(values)
    assert grey(values, Reading(range=(0, 2**bits - 1))) == [0, 128, 255]
    assert max(grey(values, Reading(range=(0, 65535)))) <= 64
    assert grey(values, range=(0, 2**bits - 1)) == [0, 128, 255]  # the file says it


def test_black_is_black_in_any_range():
    assert grey(np.zeros(2, dtype=np.uint16)) == [0, 0]
    assert grey(np.zeros(2, dtype=np.float32)) == [0, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([-1000, 3000], dtype=np.int16), r"int16 values from -1000 to 3000; say which"),
        (np.array([0, 3000], dtype=np.uint32), r"uint32 values from 0 to 3000"),
        (np.array([0, 1.5], dtype=np.float32), r"float32 values from 0 to 1.5"),
        (np.array([-0.5, 0.5], dtype=np.float64), r"float64 values from -0.5 to 0.5"),
        (np.array([np.nan], dtype=np.float32), r"float32 values from nan to nan"),
        (np.array([0, np.inf], dtype=np.float32), r"float32 values from 0 to inf"),
        (np.array([0, 0.1], dtype=np.float32), r"up to 0.1 only.*SOURCE\?range=0:0.1, or"),
    ],
)
def test_values_of_unknown_range_are_refused_with_the_option(values, message):
    with pytest.raises(ValueError, match=message) as caught:
        grey(values)
    assert "SOURCE?range=" in str(caught.value)


def test_a_range_clips_and_rounds_to_the_nearest():
    values = np.array([-2000, -1000, 0, 1000, 5000], dtype=np.int16)
    assert grey(values, Reading(range=(-1000, 1000))) == [0, 0, 128, 255, 255]
    values = np.array([-np.inf, np.nan, 0.5, np.inf], dtype=np.float32)
    assert grey(values, Reading(range=(0, 2))) == [0, 0, 64, 255]
    assert grey(np.array([0, 100, 200], dtype=np.uint8), Reading(range=(50, 150))) == [0, 128, 255]


def test_a_range_beyond_8_bits_is_refused_for_8_bit_images():
    with pytest.raises(ValueError, match=r"8 bits a sample, too few for range=0:4095"):
        grey(np.array([0, 255], dtype=np.uint8), Reading(range=(0, 4095)))


def test_one_range_holds_for_all_bands_so_that_colours_stay():
    values = np.array([[[0, 20_000, 40_000]]], dtype=np.uint16)
    assert to_channels(Samples(values, (1, 2, 3)), AS_IT_IS).flatten().tolist() == [0, 78, 156]


@pytest.mark.parametrize(
    "kind", ["u1", "i1", "<u2", ">u2", "<i2", "<f2", "<u4", ">i4", "<f4", "<f8"]
)
def test_a_level_depends_on_the_number_alone(kind, monkeypatch):
    """By a table or not, in any order of bytes, strides and size of the image."""
    monkeypatch.setattr("beit.data.pixels.samples._TOGETHER", 64)
    if kind.strip("<>")[0] == "f":
        values = np.linspace(-9, 300, 1200).reshape(30, 40).astype(kind)
    else:
        size = 40 * np.dtype(kind).itemsize
        values = np.random.default_rng(0).integers(0, 256, (30, size), "u1").view(kind)
    low, high = -5.0, 200.5
    scaled = (values.astype(np.float64) - low) * 255 / (high - low)
    expected = torch.from_numpy((np.clip(scaled, 0, 255) + 0.5).astype(np.uint8))
    for part in (slice(None), np.s_[::2, ::3], np.s_[:, :1]):
        samples = Samples(values[part][..., None], (1,), range=(low, high))
        assert torch.equal(to_channels(samples, AS_IT_IS)[1], expected[part])


@pytest.mark.parametrize("premultiplied", [False, True])
def test_opacity_is_the_same_in_an_image_of_any_size(premultiplied, monkeypatch):
    colours = torch.randint(256, (3, 9, 11), dtype=torch.uint8)
    opacity = torch.randint(256, (9, 11), dtype=torch.uint8)
    whole = over_white(colours, opacity, premultiplied)
    alpha = opacity / 255
    shown = colours + 255 * (1 - alpha) if premultiplied else colours * alpha + 255 * (1 - alpha)
    assert (whole - shown.clamp(max=255)).abs().max() <= 0.501
    monkeypatch.setattr("beit.data.pixels.samples._TOGETHER", 10)
    assert torch.equal(over_white(colours, opacity, premultiplied), whole)
    assert torch.equal(over_white(colours.mT, opacity.mT, premultiplied), whole.mT)

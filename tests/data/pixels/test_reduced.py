import io

import numpy as np
import pytest
import torch
from PIL import Image

from beit.data.pixels.decoding import decode
from beit.data.pixels.reduced import decode_reduced
from beit.data.shrinking import Need, Shrinking
from beit.data.source import UnreadableImage
from beit.data.spec import Reading
from beit.data.views import resized

ORIENTATION = 0x0112
NEED = Need(40 * 60, 30, 20)


def photo(height=480, width=720, mode="RGB"):
    """Something smooth with detail, different in all corners."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(9 * rows + 4 * columns), np.cos(13 * columns), rows * columns * 2 - 1]
    pixels = np.stack(waves, axis=-1) * 100 + 128
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


def shrunk(data, need=NEED, **options):
    return decode_reduced(data, "x", Reading(shrinking=Shrinking(need), **options))


def expected(data, need=NEED, **options):
    image = decode(data, "x", Reading(**options))
    return resized(image[None], need.size_for(*image.shape[-2:]))[0]


def difference(image, other):
    assert image.shape == other.shape
    return (image.int() - other.int()).abs()


@pytest.mark.parametrize("size", [(480, 720), (481, 727), (487, 713)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_part_of_a_jpeg_is_the_whole_one_shrunk(size, options):
    data = jpeg(photo(*size), **options)
    image, smaller = shrunk(data)
    assert smaller
    error = difference(image, expected(data)).float()
    assert error.mean() < 0.6 and error.max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_stands_upright(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = jpeg(photo(), exif=exif)
    error = difference(shrunk(data)[0], expected(data)).float()
    assert error.mean() < 0.6 and error.max() <= 6


def test_an_orientation_in_xmp_alone_does_not_count_as_in_the_whole_image():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    data = jpeg(photo(), xmp=xmp)
    assert torch.equal(shrunk(data)[0], expected(data))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours(mode):
    data = jpeg(photo(mode=mode))
    assert difference(shrunk(data)[0], expected(data)).max() <= 6


def test_small_images_stay_bit_for_bit():
    data = jpeg(photo(39, 59))
    image, smaller = shrunk(data)
    assert not smaller and torch.equal(image, decode(data, "x"))


def test_a_part_is_finer_than_what_is_needed():
    data = jpeg(photo())  # a half would have 1.2 times the pixels a side
    image, smaller = shrunk(data, Need(0, 400, 400))
    assert smaller and torch.equal(image, expected(data, Need(0, 400, 400)))


def test_other_formats_and_readings_shrink_once_they_are_rgb():
    deep = io.BytesIO()
    Image.fromarray(np.asarray(photo(mode="L")).astype(np.uint16) * 257).save(deep, "PNG")
    for data, options in ((deep.getvalue(), {}), (jpeg(photo()), {"range": (20.0, 200.0)})):
        assert torch.equal(shrunk(data, **options)[0], expected(data, **options))


@pytest.mark.parametrize("end", [100, 4000])
def test_a_truncated_jpeg_is_as_unreadable_as_it_was(end):
    data = jpeg(photo())[:end]
    with pytest.raises(UnreadableImage) as before:
        decode(data, "x")
    with pytest.raises(UnreadableImage) as now:
        shrunk(data)
    assert str(now.value) == str(before.value)

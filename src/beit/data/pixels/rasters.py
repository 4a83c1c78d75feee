"""Read TIFF, JPEG 2000 and .npy files of any depth and number of bands.

Pillow reads only some of them, and not always as the file says: it knows no bands beyond colours,
cuts 16-bit colours to 8, and takes a fourth band for transparency. Arrays of NumPy, `.npy`, are how
patches of many bands are often kept.
"""

import importlib
import io
import math
import struct
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from beit.data.pixels.samples import Samples
from beit.data.spec import Reading

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CODESTREAM = b"\xff\x4f\xff\x51"  # how that of JPEG 2000 begins: with its sizes
JPEG2000 = (b"\0\0\0\x0cjP  ", _CODESTREAM)
NUMPY = b"\x93NUMPY"
_RGB = 2  # PhotometricInterpretation of TIFF; 0 and 1 are grey, with the lowest value white at 0
_MOST_BANDS = 4  # of the largest image


def read_raster(data: bytes, reading: Reading, max_pixels: int) -> Samples | None:
    """Read the samples of a .npy file, or of a TIFF or JPEG 2000 that Pillow reads in another way.

    Returns: None for other files. Raises ValueError and the decoders' errors.
    """
    if data.startswith(TIFF):
        return _read_tiff(data, reading, max_pixels)
    if data.startswith(JPEG2000):
        return _read_jpeg2000(data, reading, max_pixels)
    if data.startswith(NUMPY):
        return _read_array(data, max_pixels)
    return None


def _read_tiff(data: bytes, reading: Reading, max_pixels: int) -> Samples | None:
    tifffile = importlib.import_module("tifffile")
    # Without OME's text, which can refer to further files.
    with tifffile.TiffFile(io.BytesIO(data), is_ome=False) as file:
        levels = [level for image in file.series for level in image.levels]
        images = [level for level in levels if not _smaller(level.keyframe)] or levels[:1]
        if len(images) > 1:
            raise ValueError(f"{len(images)} images of different shapes; save each as a file")
        image = images[0]
        page, planes = image.keyframe, image.size // image.keyframe.size
        kind, bits, extra = int(page.photometric), page.bitspersample, page.extrasamples
        bands, opacity = page.samplesperpixel, [int(use) in (1, 2) for use in extra]
        colours = bands - len(extra) if kind == _RGB else bands - sum(opacity)
        if planes == 1 and kind == _RGB and bands - sum(opacity) > 3 and not reading.bands:
            raise ValueError(
                f"{bands} bands, of which 3 are red, green and blue; take these, as in "
                f"SOURCE?bands=1-3, or all, as in SOURCE?bands=1-{bands}"
            )
        usual = planes == 1 and page.index == 0 and bits <= 8 and int(page.sampleformat) == 1
        if kind in (0, 1, _RGB):  # others are palettes, CMYK, YCbCr
            plain = colours == (3 if kind == _RGB else 1) and len(extra) < 2
            inverted = kind == 0 and bits == 8 and reading.range  # Pillow inverts the values
            usual = usual and plain and not (reading.bands or inverted)
        if usual:
            return None
        _check_size(page.imagewidth, page.imagelength, image.size, max_pixels)
        values, orientation = image.asarray(), page.tags.valueof(274, default=1)
    axes = [image.axes.index("Y"), image.axes.index("X")]
    values = np.moveaxis(values, axes, (0, 1)).reshape(page.imagelength, page.imagewidth, -1)
    shown: tuple[int, ...] = ()
    if planes == 1 and kind == _RGB:
        shown = (1, 2, 3)
    elif planes == 1 and kind in (0, 1) and colours == 1:  # grey
        shown = (1,)
    alpha = bands - len(extra) + opacity.index(True) + 1 if any(opacity) else None
    return Samples(
        _upright(values, orientation),
        shown,
        alpha,
        premultiplied=1 in extra,
        inverted=kind == 0,
        range=(0, 2**bits - 1) if bits % 8 else None,
    )


def _smaller(page: Any) -> bool:
    """Whether a TIFF page is a thumbnail, a lower resolution or the mask of another page."""
    return bool(page.subfiletype & 0b101 or page.is_subifd)


def _upright(values: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Apply an orientation, 1 to 8 as in EXIF, to (H, W, C)."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def _read_jpeg2000(data: bytes, reading: Reading, max_pixels: int) -> Samples | None:
    start = data.find(_CODESTREAM)
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    (bands,) = struct.unpack_from(">H", data, start + 40)
    depth = max(data[start + 42 : start + 42 + 3 * bands : 3])  # 128 more if signed
    listed = data.find(b"cdef", 0, max(start, 0)) + 6  # channels: number, use, colour
    uses = struct.iter_unpack(">3H", data[listed : listed + 6 * bands]) if listed > 5 else ()
    opacity = any(use in (1, 2) for _, use, _ in uses)
    colours = bands - opacity
    if colours in (1, 3) and depth < 8 and not reading.bands:
        return None
    _check_size(right - left, bottom - top, (right - left) * (bottom - top) * bands, max_pixels)
    values = importlib.import_module("imagecodecs").jpeg2k_decode(data)
    return Samples(
        values.reshape(bottom - top, right - left, bands),
        {1: (1,), 3: (1, 2, 3)}.get(colours, ()),
        bands if opacity else None,
        range=(0, 2 ** (depth + 1) - 1) if depth < 128 and depth % 8 != 7 else None,
    )


def _read_array(data: bytes, max_pixels: int) -> Samples:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of .npy, expected 1.0 or 2.0, as of plain numbers")
    reads = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
    try:
        shape, by_columns, dtype = reads[version[0] - 1](file)
    except TokenError as error:
        raise ValueError(f"broken header: {error}") from error
    if dtype.kind not in "buif" or len(shape) not in (2, 3) or min(shape) < 1:
        expected = "expected (H, W, C), (C, H, W) or (H, W) of integers or floats"
        raise ValueError(f"an array {shape} of {dtype}, {expected}")
    axis = channel_axis(shape) if len(shape) == 3 else 2
    height, width = [side for number, side in enumerate(shape) if number != axis]
    _check_size(width, height, math.prod(shape), max_pixels)
    flat = np.frombuffer(data, dtype, math.prod(shape), file.tell())
    values = flat.reshape(shape, order="F" if by_columns else "C")
    values = np.moveaxis(values, axis, 2) if len(shape) == 3 else values[..., None]
    return Samples(values, (1,) if values.shape[2] == 1 else ())


def channel_axis(shape: tuple[int, ...]) -> int:
    """Return the axis of three that are channels, 0 or 2, as the shape of an array tells it.

    Two equal sides are those of the image; of others, the channels are at most half as many.

    Raises ValueError if both could be.
    """
    first, middle, last = shape
    if (middle == last) != (first == middle):
        return 0 if middle == last else 2
    if 2 * min(first, last) <= min(middle, max(first, last)):
        return 0 if first < last else 2
    raise ValueError(
        f"an array {shape} could be (C, H, W) or (H, W, C): the sides differ, and are less than "
        "twice the number of channels; save it as a TIFF, or cut squares"
    )


def _check_size(width: int, height: int, samples: int, max_pixels: int) -> None:
    if max(width * height, samples / _MOST_BANDS) > max_pixels:
        size = f"{width} x {height} pixels, {samples} samples"
        raise ValueError(f"too large: {size}; at most {max_pixels} pixels are decoded")

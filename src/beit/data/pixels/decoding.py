"""Decode images to RGB tensors, and say which formats can be decoded here."""

import contextlib
import functools
import importlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from beit.data.pixels.rasters import JPEG2000, NUMPY, TIFF, read_raster
from beit.data.pixels.samples import Samples, over_white, to_channels
from beit.data.source import UnreadableImage
from beit.data.spec import AS_IT_IS, Reading
from beit.files import out_of_memory

MAX_PIXELS = 64_000_000  # 8000 x 8000: 192 MB decoded
MAX_SIDE = 1_000_000  # libpng has the same; Pillow would take a gigabyte for a longer one

# What decoders raise on broken data.
BROKEN = (
    *(OSError, ValueError, RuntimeError, SyntaxError, EOFError, IndexError, KeyError),
    *(TypeError, ArithmeticError, struct.error, zlib.error),
)

# Endings that need a plugin of Pillow, and its package.
PLUGINS = dict.fromkeys((".heic", ".heif", ".hif"), "pillow-heif") | {".jxl": "pillow-jxl-plugin"}
ARRAY = ".npy"  # often no image: see `beit.data.folders.listing`
_ALWAYS = ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm"
_OPTIONAL = {"jpg_2000": ".jp2 .j2k .j2c .jpc .jpf .jpx", "avif": ".avif"}

_ENDINGS = {  # by Pillow's names of formats
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "PPM": ".ppm",
    "AVIF": ".avif",
    "HEIF": ".heic",
    "JXL": ".jxl",
}

_JPEG_XL = b"\xff\x0a"  # how its codestream begins
_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks of a PNG
_SMALL = 1000  # bytes: no smaller chunk inflates to 1 MB, the most that Pillow accepts
_TORCHCODEC_MODES = {"L": "GRAY", "LA": "GRAY_ALPHA", "RGB": "RGB", "RGBA": "RGB_ALPHA"}


@functools.cache
def extensions() -> frozenset[str]:
    """Return the endings of files that can be decoded here, in lower case and with their dot."""
    optional = [endings for name, endings in _OPTIONAL.items() if features.check(name)]
    plugins = [ending for ending, package in PLUGINS.items() if package in _plugins()]
    return frozenset(" ".join([_ALWAYS, *optional, *plugins]).split())


@functools.cache
def _plugins() -> frozenset[str]:
    """Register the plugins of Pillow that are installed. Returns: their packages.

    They decode in one thread, because there are several workers.
    """
    packages = set()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener(decode_threads=1)
        packages.add("pillow-heif")
    with contextlib.suppress(ImportError):
        jpeg_xl: Any = importlib.import_module("pillow_jxl.JpegXLImagePlugin")
        jpeg_xl.DECODE_THREADS = 0
        packages.add("pillow-jxl-plugin")
    return frozenset(packages)


@functools.cache
def _fast_decoders() -> dict[str, Callable[..., Tensor]]:
    """Return torchcodec's decoders by Pillow's format names; none if it cannot be loaded.

    JPEG and PNG only: these need no FFmpeg, apply the EXIF orientation and keep 16 bits. The other
    formats are rare and can hold several frames, so Pillow reads them.
    """
    try:
        decoders = importlib.import_module("torchcodec.decoders")
        return {"JPEG": decoders.decode_jpeg, "PNG": decoders.decode_png}
    except (ImportError, AttributeError, OSError, RuntimeError):  # absent, too old, unloadable
        return {}


def decode(
    data: bytes, name: str, reading: Reading = AS_IT_IS, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Decode an image to RGB, with its orientation applied and transparency over white.

    Returns (3, H, W) uint8, with as many channels as `reading` names bands (`to_channels`), or
    raises UnreadableImage. The header is read first: images of more than `max_pixels` pixels are
    refused before memory is allocated. Palettes, grey and CMYK are converted; of animations, the
    first frame is decoded. `beit.data.pixels.samples` says how more than 8 bits and other bands
    become RGB, and what `reading` changes.
    """
    try:
        samples = read_raster(data, reading, max_pixels)
        if samples is not None:
            return to_channels(samples, reading)
    except (ImportError, *BROKEN) as error:
        if out_of_memory(error):
            raise
        absent = isinstance(error, ImportError) or "'imagecodecs' package" in str(error)
        hint = ': pip install "beit[formats]"' if absent else ""
        raise UnreadableImage(name, reason_of(error) + hint) from error
    header = read_header(data, name, max_pixels)
    try:
        return rgb_of(header, data, reading)
    except BROKEN as error:
        if out_of_memory(error):
            raise
        raise UnreadableImage(name, reason_of(error)) from error


def format_ending(data: bytes) -> str:
    """Return the usual ending of a file with this image; empty if its format has none here.

    The image is one that `decode` can read.
    """
    if data.startswith(NUMPY):
        return ARRAY
    starts = {**dict.fromkeys(TIFF, ".tif"), **dict.fromkeys(JPEG2000, ".jp2")}
    ending = next((starts[start] for start in starts if data.startswith(start)), "")
    ending = ending or _ENDINGS.get(read_header(data, "").format or "", "")
    return ending if ending in extensions() else ""


def reason_of(error: Exception) -> str:
    """Say in one line why a decoder raised an error of `BROKEN`."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"broken or truncated: {reason}" if isinstance(error, struct.error) else reason


def read_header(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> ImageFile.ImageFile:
    """Read the header of an image. Raises UnreadableImage also if it has too many pixels."""
    try:
        width, height = _jpeg_xl_size(data) or (0, 0)  # decoded by opening it
        if width * height <= max_pixels:
            _plugins()
            with warnings.catch_warnings():  # Pillow's, of what is refused below
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = Image.open(io.BytesIO(_without_text(data)))
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise UnreadableImage(name, f"too large: {error}") from error
    except UnidentifiedImageError as error:
        content = f"{len(data)} bytes, beginning {data[:8]!r}" if data else "empty"
        absent = " and ".join(sorted(set(PLUGINS.values()) - _plugins()))
        if absent and (data[4:7] in (b"fty", b"JXL") or data.startswith(_JPEG_XL)):
            content += f'; HEIC and JPEG XL need {absent}: pip install "beit[formats]"'
        raise UnreadableImage(name, f"not an image ({content})") from error
    except BROKEN as error:
        raise UnreadableImage(name, f"broken header: {reason_of(error)}") from error
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        reason = f"too large: {width} x {height} pixels, at most {max_pixels} are decoded"
        reason += f", and {MAX_SIDE} a side"
        raise UnreadableImage(name, reason)
    return image


def _without_text(data: bytes) -> bytes:
    """Remove large texts and colour profiles from a PNG: Pillow would inflate or refuse them."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    kept, start, place = list[bytes](), 0, 8
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind in _TEXT and length >= _SMALL:
            kept.append(data[start:place])
            start = end
        place = end
    return b"".join([*kept, data[start:]]) if start else data


def _jpeg_xl_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height of a JPEG XL image; None for other data."""
    start = 0
    if data.startswith(b"\0\0\0\x0cJXL \r\n\x87\n"):  # boxes, of which one begins the codestream
        length, kind = 0, b""
        while kind not in (b"jxlc", b"jxlp"):
            start += length
            length, kind = struct.unpack_from(">I4s", data, start)
            length = length or len(data)
        start += 8 if kind == b"jxlc" else 12
    if not data.startswith(_JPEG_XL, start):
        return None
    bits = int.from_bytes(data[start + 2 : start + 14], "little")
    small, bits = bits & 1, bits >> 1
    height, bits = _side(small, bits)
    ratio, bits = bits & 7, bits >> 3
    if ratio:
        over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
        return height * over // under, height
    return _side(small, bits)[0], height


def _side(small: int, bits: int) -> tuple[int, int]:
    """Read a side of a JPEG XL image. Returns: pixels, and the bits that follow."""
    if small:
        return 8 * (bits & 31) + 8, bits >> 5
    count = (9, 13, 18, 30)[bits & 3]
    return (bits >> 2) % (1 << count) + 1, bits >> (2 + count)


def rgb_of(header: Image.Image, data: bytes = b"", reading: Reading = AS_IT_IS) -> Tensor:
    """Convert an image of Pillow to (3, H, W) uint8; decode the `data` that it was opened from.

    Raises the errors of `BROKEN`.
    """
    transparent = header.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in header.info
    deep_png = header.format == "PNG" and data[24:25] == b"\x10"  # its bits; Pillow says RGB
    deep = deep_png or header.mode.startswith("I") or header.mode == "F"
    if not deep and reading.range is None and reading.bands is None:
        image = _decoded(header, data, "RGBA" if transparent else "RGB")
        return over_white(image[:3], image[3]) if transparent else image
    grey = header.mode in ("1", "L", "LA", "La", "F") or header.mode[0] == "I"
    mode = "L" if grey or (deep_png and data[25] in (0, 4)) else "RGB"  # of grey and opacity too
    mode += "A" if transparent else ""
    values = _decoded(header, data, mode, deep).permute(1, 2, 0).numpy()
    bands = values.shape[-1]
    colours = (1,) if bands < 3 else (1, 2, 3)
    alpha = bands if bands in (2, 4) else None
    scaled = (0, 65535) if deep and header.format == "PPM" else None  # by Pillow
    return to_channels(Samples(values, colours, alpha, range=scaled), reading)


def _decoded(header: Image.Image, data: bytes, mode: str, deep: bool = False) -> Tensor:
    """Decode to L, LA, RGB or RGBA, upright: (C, H, W) uint8; if deep, all the bits there are."""
    fast = _fast_decoders().get(header.format or "") if data else None
    if fast is not None:
        try:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            depth = {"output_dtype": torch.uint16} if deep else {}
            return fast(encoded, mode=_TORCHCODEC_MODES[mode], **depth)
        except RuntimeError:
            pass  # Pillow reads some files that torchcodec does not, or gives the reason
    # JPEG XL's decoder turns the image; only a JPEG in such a file is as its EXIF says.
    if header.format != "JXL" or getattr(header, "jpeg", False):
        if data:
            ImageOps.exif_transpose(header, in_place=True)  # a copy of a large image is 250 MB
        else:  # the caller's image
            header = ImageOps.exif_transpose(header)
    if deep and (mode != "L" or header.mode.startswith("RGB")):
        raise ValueError("colours of 16 bits need torchcodec 0.16, which cannot be loaded here")
    pixels = np.array(header if deep or header.mode == mode else header.convert(mode))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()

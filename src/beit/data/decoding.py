"""Decode images to RGB tensors."""

import functools
import importlib
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from beit.data.source import UnreadableImage
from beit.data.spec import AS_IT_IS, Reading

MAX_PIXELS = 64_000_000  # 8000 x 8000: 192 MB decoded

# Endings of images, and the packages that some need; case does not count.
_ENDINGS = (
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .avif .jp2 .j2k .jpx .jpf .j2c"
)
PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".jxl": "pillow-jxl-plugin"}

# What the decoders of Pillow and torchcodec (RuntimeError) raise on broken data.
BROKEN = (
    *(OSError, ValueError, RuntimeError, SyntaxError, EOFError, IndexError, KeyError),
    *(TypeError, OverflowError, struct.error, zlib.error),
)


@functools.cache
def extensions() -> frozenset[str]:
    """Return the endings of files that can be decoded here, in lower case and with their dots."""
    return frozenset({*_ENDINGS.split(), *PLUGINS} & Image.registered_extensions().keys())


@functools.cache
def _fast_decoders() -> dict[str, Callable[..., Tensor]]:
    """Return torchcodec's decoders by Pillow's format names; none if it cannot be loaded.

    JPEG and PNG only: these need no FFmpeg, apply the EXIF orientation and scale 16 bits to 8. The
    other formats are rare and can hold several frames, so Pillow reads them.
    """
    try:
        decoders = importlib.import_module("torchcodec.decoders")
        return {"JPEG": decoders.decode_jpeg, "PNG": decoders.decode_png}
    except (ImportError, AttributeError, OSError, RuntimeError):  # absent, too old, unloadable
        return {}


def decode(
    data: bytes, name: str, reading: Reading = AS_IT_IS, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Decode an image to RGB, with its EXIF orientation applied and transparency over white.

    Returns (3, H, W) uint8 or raises UnreadableImage. The header is read first: images of more than
    `max_pixels` pixels are refused before memory is allocated. 16-bit images are scaled to 8 bits;
    palettes, grey and CMYK are converted.
    """
    try:
        header = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(name, f"too large: {error}") from error
    except UnidentifiedImageError as error:
        content = f"{len(data)} bytes, beginning {data[:8]!r}" if data else "empty"
        raise UnreadableImage(name, f"not an image ({content})") from error
    except BROKEN as error:
        raise UnreadableImage(name, f"broken header: {error}") from error
    width, height = header.size
    if width * height > max_pixels:
        reason = f"too large: {width} x {height} pixels, at most {max_pixels} are decoded"
        raise UnreadableImage(name, reason)
    try:
        return _pixels(header, data)
    except BROKEN as error:
        raise UnreadableImage(name, str(error) or type(error).__name__) from error


def _pixels(header: Image.Image, data: bytes) -> Tensor:
    transparent = header.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in header.info
    fast = _fast_decoders().get(header.format or "")
    if fast is not None:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        try:
            if not transparent:
                return fast(encoded, mode="RGB")
            return _over_white(fast(encoded, mode="RGB_ALPHA"))
        except RuntimeError:
            pass  # Pillow reads some files that torchcodec does not, or gives the reason
    image = ImageOps.exif_transpose(header)
    if transparent:
        return _over_white(_tensor(image.convert("RGBA")))
    if image.mode == "F":
        raise ValueError("pixels are 32-bit floats of unknown range")
    if image.mode.startswith("I"):  # I;16, I;16B, and I: 16 bits in 32
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = torch.from_numpy(((values + 128) // 257).astype(np.uint8))
        return grey.expand(3, -1, -1).contiguous()
    return _tensor(image.convert("RGB"))


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (channels, H, W)


def _over_white(image: Tensor) -> Tensor:
    """Composite RGBA (4, H, W) uint8 over white: (3, H, W) uint8."""
    colour, alpha = image[:3].to(torch.int32), image[3:].to(torch.int32)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)

"""Encoded bytes to an RGB tensor: one function, and the error that names what could not be read."""

from __future__ import annotations

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

MAX_PIXELS = 64_000_000  # 8000 x 8000: 192 MB decoded

# What Pillow's readers raise on broken data, and torchcodec's (RuntimeError).
BROKEN = (
    *(OSError, ValueError, RuntimeError, SyntaxError, EOFError, IndexError, KeyError),
    *(TypeError, OverflowError, struct.error, zlib.error),
)


class UnreadableImage(ValueError):  # noqa: N818 - it names what it is about
    """An image that cannot be decoded: which one (`name`) and why (`reason`)."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that the error survives pickling
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@functools.cache
def _fast_decoders() -> dict[str, Callable[..., Tensor]]:
    """Give torchcodec's decoders by Pillow's format name; none where it cannot be loaded.

    JPEG and PNG only: these need no FFmpeg, apply the EXIF orientation and scale 16 bits to 8. The
    other formats may hold several frames and are rare, so Pillow reads them.
    """
    try:
        decoders = importlib.import_module("torchcodec.decoders")
        return {"JPEG": decoders.decode_jpeg, "PNG": decoders.decode_png}
    except (ImportError, AttributeError, OSError, RuntimeError):  # absent, too old, unloadable
        return {}


def decode(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode one encoded image into RGB, its EXIF orientation applied, transparency over white.

    The header is read first: more than `max_pixels` pixels are refused before any memory is taken
    for them. 16-bit images are scaled to 8 bits, palettes, grey and CMYK are converted.

    Returns: (3, H, W) uint8. Raises UnreadableImage.
    """
    try:
        header = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(name, f"too large: {error}") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(name, f"not an image ({_first_bytes(data)})") from error
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
            pass  # refused: Pillow reads some files that torchcodec does not, and says why if not
    image = ImageOps.exif_transpose(header)
    if transparent:
        return _over_white(_tensor(image.convert("RGBA")))
    if image.mode == "F":
        raise ValueError("pixels are 32-bit floats, whose range is not known")
    if image.mode.startswith("I"):  # I;16, I;16B, and I: 16 bits in 32
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = torch.from_numpy(((values + 128) // 257).astype(np.uint8))
        return grey.expand(3, -1, -1).contiguous()
    return _tensor(image.convert("RGB"))


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (channels, H, W)


def _over_white(image: Tensor) -> Tensor:
    """Lay (4, H, W) uint8 over a white ground. Returns: (3, H, W) uint8."""
    colour, alpha = image[:3].to(torch.int32), image[3:].to(torch.int32)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)


def _first_bytes(data: bytes) -> str:
    return f"{len(data)} bytes, beginning {data[:8]!r}" if data else "empty"

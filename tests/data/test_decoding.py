import io
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from beit.data import decoding
from beit.data.decoding import decode
from beit.data.source import UnreadableImage


@pytest.fixture(params=["torchcodec", "Pillow"])
def decoder(request, monkeypatch):
    """Every case is read by torchcodec where it can, and again by Pillow alone."""
    if request.param == "Pillow":
        monkeypatch.setattr(decoding, "_fast_decoders", dict)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(height=12, width=20):
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 255 // (height - 1), columns * 255 // (width - 1), (rows + columns) * 4]
    return np.stack(channels, axis=-1).astype(np.uint8)


def big_png(side=20_000):
    """A PNG of `side` x `side` pixels in some fifty kilobytes."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    deflate = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join(deflate.compress(row) for _ in range(side)) + deflate.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_png_pixels_exactly(decoder):
    image = decode(encoded(Image.fromarray(smooth())), "a.png")
    assert image.dtype == torch.uint8
    torch.testing.assert_close(image, torch.from_numpy(smooth()).permute(2, 0, 1).contiguous())


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("1", "L", "P", "RGB")),
        *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
        *(("TIFF", mode) for mode in ("1", "L", "P", "RGB", "CMYK")),
    ],
)
def test_modes_become_rgb(decoder, mode, kind):
    data = encoded(Image.fromarray(smooth()).convert(mode), kind)
    image = decode(data, "a")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert image.shape == (3, 12, 20)
    # JPEG's inverse transform may round otherwise in another library.
    tolerance = 3 if kind == "JPEG" else 0
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected).max() <= tolerance


def test_16_bit_grey_is_scaled_to_8(decoder):
    values = np.array([[0, 257, 5000, 32896, 65535]], dtype=np.uint16)
    image = decode(encoded(Image.fromarray(values)), "a.png")
    assert image.tolist() == [[[0, 1, 19, 128, 255]]] * 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(decoder, mode):
    picture = Image.new(mode, (3, 2), (0, 0, 0, 51) if mode == "RGBA" else (0, 51))
    picture.putpixel((0, 0), (10, 20, 30, 0) if mode == "RGBA" else (10, 0))
    picture.putpixel((1, 0), (10, 20, 30, 255) if mode == "RGBA" else (10, 255))
    image = decode(encoded(picture), "a.png")
    assert image[:, 0, 0].tolist() == [255, 255, 255]
    assert image[:, 0, 1].tolist() == ([10, 20, 30] if mode == "RGBA" else [10, 10, 10])
    assert image[:, 1, 2].tolist() == [204, 204, 204]  # 255 * (1 - 51 / 255)


def test_transparent_palette_shows_white(decoder):
    picture = Image.new("P", (2, 1))
    picture.putpalette([200, 0, 0, 0, 100, 0])
    picture.putpixel((1, 0), 1)
    image = decode(encoded(picture, transparency=0), "a.png")
    assert image[:, 0].T.tolist() == [[255, 255, 255], [0, 100, 0]]


def test_one_pixel(decoder):
    image = decode(encoded(Image.new("RGB", (1, 1), (1, 2, 3))), "a.png")
    assert image.tolist() == [[[1]], [[2]], [[3]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(decoder, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(smooth()), kind, exif=exif.tobytes())
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(int)
    image = decode(data, "a").permute(1, 2, 0).numpy().astype(int)
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= (3 if kind == "JPEG" else 0)


def test_truncated_jpeg_is_named(decoder):
    data = encoded(Image.fromarray(smooth(64, 48)), "JPEG")
    with pytest.raises(UnreadableImage, match=r"dogs/rex\.jpg: .*truncated"):
        decode(data[: len(data) - 200], "dogs/rex.jpg")


@pytest.mark.parametrize("data", [b"", b"this is a text\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_image_is_named(decoder, data):
    with pytest.raises(UnreadableImage, match=r"^note\.png: ") as caught:
        decode(data, "note.png")
    assert caught.value.name == "note.png"
    assert caught.value.reason


def test_huge_image_is_refused_before_decoding(monkeypatch):
    data = big_png()
    assert len(data) < 100_000
    monkeypatch.setattr(decoding, "_pixels", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UnreadableImage, match=r"huge\.png: too large"):
        decode(data, "huge.png")
    with pytest.raises(UnreadableImage, match="20 x 12 pixels, at most 239"):
        decode(encoded(Image.fromarray(smooth())), "a.png", max_pixels=239)


def test_float_pixels_are_refused(decoder):
    data = encoded(Image.fromarray(np.zeros((2, 3), dtype=np.float32)), "TIFF")
    with pytest.raises(UnreadableImage, match="of unknown range"):
        decode(data, "a.tif")


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(UnreadableImage("a.png", "broken")))
    assert (error.name, error.reason, str(error)) == ("a.png", "broken", "a.png: broken")

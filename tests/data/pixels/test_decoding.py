import io
import multiprocessing
import pickle
import struct
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin

from beit.data.pixels import decoding
from beit.data.pixels.decoding import PLUGINS, decode, extensions
from beit.data.source import UnreadableImage
from beit.data.spec import Reading


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
    both = (rows + columns) * 255 // (height + width - 2)
    channels = [rows * 255 // (height - 1), columns * 255 // (width - 1), both]
    return np.stack(channels, axis=-1).astype(np.uint8)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values, *early, late=()):
    """Encode (H, W, C) uint8 or uint16, also what Pillow cannot, with chunks (kind, body)."""
    height, width, bands = values.shape
    colours = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    header = struct.pack(">IIBBBBB", width, height, 8 * values.itemsize, colours, 0, 0, 0)
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header), *early, (b"IDAT", data), *late, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def big_png(side=20_000):
    """A PNG of `side` x `side` pixels in some fifty kilobytes."""
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
    monkeypatch.setattr(decoding, "rgb_of", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UnreadableImage, match=r"huge\.png: too large"):
        decode(data, "huge.png")
    with pytest.raises(UnreadableImage, match="too large: 10000 x 10000 pixels, at most"):
        decode(big_png(10_000), "large.png")  # Pillow would warn
    with pytest.raises(UnreadableImage, match="20 x 12 pixels, at most 239"):
        decode(encoded(Image.fromarray(smooth())), "a.png", max_pixels=239)
    thin = encoded(Image.new("1", (1, 1_000_001)), "PNG")
    with pytest.raises(UnreadableImage, match=r"1 x 1000001 pixels, .* and 1000000 a side"):
        decode(thin, "thin.png")


def test_float_pixels_beyond_1_are_refused(decoder):
    data = encoded(Image.fromarray(np.full((2, 3), 9, dtype=np.float32)), "TIFF")
    with pytest.raises(UnreadableImage, match=r"a\.tif: float32 values from 9 to 9; say which"):
        decode(data, "a.tif")


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_16_bit_png_of_any_colours(bands):
    values = np.random.default_rng(bands).integers(0, 65536, (5, 7, bands)).astype(np.uint16)
    image = decode(png(values), "a.png")
    eight = np.asarray((values.astype(int) + 128) // 257, dtype=np.uint8)  # to the nearest
    assert torch.equal(image, decode(png(eight), "a.png"))
    values >>= 4
    with pytest.raises(UnreadableImage, match=r"a\.png: uint16 values up to [34]\d+ only"):
        decode(png(values[..., : bands - (bands % 2 == 0)]), "a.png")


def test_the_second_band_of_a_16_bit_png_is_its_own():
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 2)).astype(np.uint16) * 257
    image = decode(png(values), "a.png", Reading(bands=(2, 1)))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), values[..., ::-1] // 257)
    with pytest.raises(UnreadableImage, match=r"bands=3, but there are 2"):
        decode(png(values), "a.png", Reading(bands=(3,)))


def test_16_bit_colours_are_not_cut_without_torchcodec(monkeypatch):
    monkeypatch.setattr(decoding, "_fast_decoders", dict)
    data = png(np.full((2, 3, 3), 40_000, dtype=np.uint16))
    with pytest.raises(UnreadableImage, match=r"need torchcodec 0\.16"):
        decode(data, "a.png")


def test_truncated_16_bit_colours_are_named(decoder):
    values = np.random.default_rng(0).integers(0, 65536, (40, 40, 3)).astype(np.uint16)
    with pytest.raises(UnreadableImage, match=r"^a\.png: .*truncated"):
        decode(png(values)[:5000], "a.png")


def test_twelve_bits_in_sixteen_are_as_in_eight_once_the_range_is_given(decoder):
    scene = np.linspace(0, 1, 48 * 48).reshape(48, 48)
    levels = encoded(Image.fromarray((scene * 4095).round().astype(np.uint16)))
    eight = decode(encoded(Image.fromarray((scene * 255).round().astype(np.uint8))), "a.png")
    with pytest.raises(UnreadableImage, match=r"dark\.png: .* up to 4095 only.*\?range=0:4095"):
        decode(levels, "dark.png")
    image = decode(levels, "dark.png", Reading(range=(0, 4095)))
    assert (image.int() - eight.int()).abs().max() <= 1  # rounded twice


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("1", "L", "P", "RGB", "LA", "RGBA")),
        *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
        *(("TIFF", mode) for mode in ("1", "L", "P", "RGB", "CMYK", "LA", "RGBA")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")),
        *(("JPEG2000", mode) for mode in ("L", "LA", "RGB", "RGBA")),
        *(("GIF", "P"), ("BMP", "RGB"), ("TIFF", "LAB")),
    ],
)
def test_the_whole_range_of_8_bits_changes_nothing(decoder, kind, mode):
    picture = Image.fromarray(smooth(24, 40)).convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.fromarray(smooth(24, 40)[..., 1]))
    data = encoded(picture, kind)
    assert torch.equal(decode(data, "a"), decode(data, "a", Reading(range=(0, 255))))
    if mode in ("L", "LA"):
        with pytest.raises(UnreadableImage, match=r"bands=3,2,1, but there are \d"):
            decode(data, "a", Reading(bands=(3, 2, 1)))


def test_bands_are_chosen_in_any_format(decoder):
    for kind, mode in (("PNG", "RGB"), ("PNG", "RGBA"), ("BMP", "RGB"), ("TIFF", "RGB")):
        data = encoded(Image.fromarray(smooth()).convert(mode), kind)
        image = decode(data, "a", Reading(bands=(3, 1, 1)))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), smooth()[..., [2, 0, 0]])


def test_a_pgm_says_its_range():
    data = b"P5 3 1 4095\n" + struct.pack(">3H", 0, 2048, 4095)
    assert decode(data, "a.pgm")[0].tolist() == [[0, 128, 255]]


HISTORY = b"<rdf:li>brush</rdf:li>" * 95_000  # 2 MB
LONG_TEXTS = [
    (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(HISTORY)),
    (b"zTXt", b"Comment\0\0" + zlib.compress(HISTORY)),
    (b"iCCP", b"proof\0\0" + zlib.compress(HISTORY)),
    (b"tEXt", b"Comment\0" + HISTORY),
]


@pytest.mark.parametrize("text", LONG_TEXTS, ids=[kind.decode() for kind, _ in LONG_TEXTS])
def test_long_texts_and_profiles_of_a_png_are_passed_over(decoder, text):
    data = png(smooth(), text, text, late=[text])
    assert np.array_equal(decode(data, "a.png").permute(1, 2, 0).numpy(), smooth())


def test_a_bomb_in_a_text_is_not_inflated(decoder, monkeypatch):
    monkeypatch.setattr(PngImagePlugin, "_safe_zlib_decompress", lambda _: pytest.fail("inflated"))
    deflate = zlib.compressobj(9)
    bomb = b"".join(deflate.compress(bytes(1_000_000)) for _ in range(30)) + deflate.flush()
    data = png(smooth(), (b"zTXt", b"Comment\0\0" + bomb))
    assert len(data) < 40_000
    assert decode(data, "a.png").shape == (3, 12, 20)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "JXL", "JPEG2000"])
def test_other_formats_open(kind):
    assert {".heic", ".heif", ".jxl", ".avif", ".jp2", ".jpg"} <= extensions()
    options = {"irreversible": False} if kind == "JPEG2000" else {"quality": 95}
    image = decode(encoded(Image.fromarray(smooth(48, 64)), kind, **options), "a")
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - smooth(48, 64)).max() < 30


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_the_orientation_of_a_phone_is_applied_once(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    extensions()  # so that Pillow can write HEIF
    picture = Image.fromarray(smooth(48, 80))
    image = decode(encoded(picture, kind, quality=95, exif=exif.tobytes()), "a.heic")
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(picture, exif=exif))))
    assert image.shape[1:] == (upright.height, upright.width)
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - np.asarray(upright)).max() <= 8


def turned_jpeg_xl(orientation):
    """Encode (48, 80) by JPEG XL with an orientation in its codestream, as other programs do."""
    plain = imagecodecs.jpegxl_encode(smooth(48, 80), level=95, usecontainer=False)
    size = int.from_bytes(plain[2:4], "little") & 0x3FFF  # then: all else is usual
    assert plain[3] & 0x40
    # Not usual, with further fields: the orientation; no preview or animation; 8 bits; modular
    # 16 bits; no further channels; XYB; usual colours and tones; no extensions; usual transform.
    fields = "01" + f"{orientation - 1:03b}"[::-1] + "000000100111001"
    bits = size | int(fields[::-1], 2) << 14
    return plain[:2] + bits.to_bytes((14 + len(fields) + 7) // 8, "little") + plain[4:]


def test_jpeg_xl_is_turned_once():
    def pixels(data):
        return decode(data, "a.jxl").permute(1, 2, 0).numpy().astype(int)

    expected = np.rot90(pixels(turned_jpeg_xl(1)), -1)
    assert np.abs(pixels(turned_jpeg_xl(6)) - expected).max() <= 2
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = encoded(Image.fromarray(smooth(48, 80)), "JPEG", exif=exif.tobytes())
    recompressed = imagecodecs.jpegxl_encode_jpeg(jpeg)
    assert np.abs(pixels(recompressed) - pixels(jpeg)).max() <= 3


@pytest.mark.parametrize("shape", [(8, 8), (300, 40), (48, 64), (64, 48), (90, 160), (10_000, 3)])
@pytest.mark.parametrize("container", [False, True])
def test_the_size_of_jpeg_xl_is_known_before_it_is_decoded(shape, container, monkeypatch):
    values = np.zeros(shape, dtype=np.uint8)
    data = imagecodecs.jpegxl_encode(values, effort=1, lossless=True, usecontainer=container)
    assert decode(data, "a.jxl").shape == (3, *shape)
    monkeypatch.setattr(Image, "open", lambda _: pytest.fail("decoded"))
    with pytest.raises(UnreadableImage, match=f"too large: {shape[1]} x {shape[0]} pixels"):
        decode(data, "a.jxl", max_pixels=shape[0] * shape[1] - 1)


def test_workers_that_fork_read_what_needs_a_plugin():
    data = encoded(Image.fromarray(smooth(48, 64)), "HEIF", quality=95)
    decoding._plugins.cache_clear()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        image = pool.apply(_decoded_list, (data,))
    assert image == decode(data, "a").flatten().tolist()


def _decoded_list(data):  # a tensor would be shared by a file that the worker closes
    return decode(data, "a").flatten().tolist()


def test_without_its_plugin_heic_is_refused_with_the_extra(monkeypatch):
    extensions()
    data = encoded(Image.fromarray(smooth(48, 64)), "HEIF")
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name not in ("HEIF", "JXL")])
    for name in ("pillow_heif", "pillow_jxl", "pillow_jxl.JpegXLImagePlugin"):
        monkeypatch.setitem(sys.modules, name, None)
    decoding._plugins.cache_clear()
    extensions.cache_clear()
    try:
        assert not extensions() & set(PLUGINS)
        with pytest.raises(UnreadableImage, match=r"need pillow-heif and .* \"beit\[formats\]\""):
            decode(data, "a.heic")
    finally:
        decoding._plugins.cache_clear()
        extensions.cache_clear()


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(UnreadableImage("a.png", "broken")))
    assert (error.name, error.reason, str(error)) == ("a.png", "broken", "a.png: broken")


def test_lack_of_memory_is_not_the_fault_of_an_image(monkeypatch):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, "BMP")

    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(decoding, "rgb_of", full)
    with pytest.raises(RuntimeError, match="can't allocate"):
        decode(buffer.getvalue(), "a.bmp")

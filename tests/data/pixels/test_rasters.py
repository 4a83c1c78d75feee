"""TIFF and JPEG 2000 of any depth and number of bands."""

import io
import struct
import sys

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from beit.data.pixels.decoding import decode
from beit.data.source import UnreadableImage
from beit.data.spec import AS_IT_IS, Reading

RANDOM = np.random.default_rng(0)
DEEP = RANDOM.integers(0, 65536, (20, 32, 5)).astype(np.uint16)


def tiff(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **({"metadata": None} | options))
    return buffer.getvalue()


def levels(values, high=65535):
    """What (H, W, C) becomes, with `high` as white: (C, H, W)."""
    scaled = np.floor(values.astype(np.float64) * 255 / high + 0.5).astype(np.uint8)
    return torch.from_numpy(scaled).permute(2, 0, 1)


def refused(data, message, reading=AS_IT_IS):
    with pytest.raises(UnreadableImage, match=message):
        decode(data, "field.tif", reading)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"tile": (16, 16)},
        {"compression": "zlib"},
        {"compression": "lzw", "predictor": True},
        {"planarconfig": "separate"},
    ],
)
def test_16_bit_colours_of_any_layout(options):
    values = DEEP[..., :3]
    stored = np.moveaxis(values, -1, 0) if "planarconfig" in options else values
    assert torch.equal(decode(tiff(stored, photometric="rgb", **options), "a"), levels(values))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
@pytest.mark.parametrize("kind", ["rgb", "minisblack"])
def test_tiff_of_one_row_or_column(shape, kind):
    values = DEEP[: shape[0], : shape[1], : 3 if kind == "rgb" else 1]
    image = decode(tiff(values if kind == "rgb" else values[..., 0], photometric=kind), "a")
    assert torch.equal(image, levels(values).expand(3, -1, -1))


def test_ordinary_tiff_is_read_by_pillow_as_before(monkeypatch):
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", lambda *_: pytest.fail("tifffile"))
    picture = Image.fromarray((DEEP[..., :3] >> 8).astype(np.uint8))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, "TIFF")
        expected = np.asarray(picture.convert(mode).convert("RGB"))
        assert torch.equal(decode(buffer.getvalue(), "a").permute(1, 2, 0), torch.tensor(expected))


def test_twelve_packed_bits_are_the_range_of_the_file():
    values = DEEP[..., :1] >> 4
    expected = levels(values, 4095).expand(3, -1, -1)
    assert torch.equal(decode(tiff(values[..., 0], bitspersample=12), "a"), expected)
    encoded = imagecodecs.jpeg2k_encode(values[..., 0], level=0, reversible=True, bitspersample=12)
    assert torch.equal(decode(encoded, "a"), expected)


def test_infrared_as_a_fourth_band_is_not_transparency():
    values = (DEEP[..., :4] >> 8).astype(np.uint8)
    unspecified = tiff(values, photometric="rgb", extrasamples=["unspecified"])
    # The tag ExtraSamples becomes a private one.
    silent = unspecified.replace(struct.pack("<HHI", 338, 3, 1), struct.pack("<HHI", 65000, 3, 1))
    assert tifffile.TiffFile(io.BytesIO(silent)).pages.first.extrasamples == ()
    colours = torch.from_numpy(values[..., :3]).permute(2, 0, 1)
    for data in (silent, unspecified):
        refused(data, r"4 bands, of which 3 are red, green and blue; .*bands=1-3, .*bands=1-4")
        assert torch.equal(decode(data, "a", Reading(bands=(1, 2, 3))), colours)
    both = tiff(DEEP, photometric="rgb", extrasamples=["unassalpha", "unspecified"])
    refused(both, r"5 bands, of which 3 are")
    false_colours = decode(unspecified, "a", Reading(bands=(4, 1, 2)))
    assert torch.equal(false_colours, torch.from_numpy(values[..., [3, 0, 1]]).permute(2, 0, 1))


def test_opacity_that_the_file_names_is_shown_over_white():
    values = np.array([[[65535, 0, 257 * 100, 257 * 51]]], dtype=np.uint16)
    straight = decode(tiff(values, photometric="rgb", extrasamples=["unassalpha"]), "a")
    assert straight.flatten().tolist() == [255, 204, 224]  # 255 - (255 - colour) * 51 / 255
    values = np.array([[[51, 0, 20, 51], [255, 0, 20, 255]]], dtype=np.uint16) * np.uint16(257)
    multiplied = decode(tiff(values, photometric="rgb", extrasamples=["assocalpha"]), "a")
    assert multiplied[:, 0].T.tolist() == [[255, 204, 224], [255, 0, 20]]
    data = tiff(values, photometric="rgb", extrasamples=["unassalpha"])
    assert decode(data, "a", Reading(bands=(4,)))[:, 0].tolist() == [[51, 255]] * 3


def test_bands_of_unknown_colours_are_refused_by_their_number_and_can_be_chosen():
    data = tiff(
        DEEP, photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"] * 4
    )
    refused(data, r"field\.tif: 5 bands or pages; say which .* SOURCE\?bands=3,2,1")
    assert torch.equal(decode(data, "a", Reading(bands=(3, 2, 1))), levels(DEEP[..., [2, 1, 0]]))
    assert torch.equal(decode(data, "a", Reading(bands=(5,))), levels(DEEP[..., [4, 4, 4]]))
    refused(data, "bands=6,1,2, but there are 5", Reading(bands=(6, 1, 2)))


@pytest.mark.parametrize("options", [{}, {"imagej": True}, {"ome": True}])
def test_pages_are_bands(options):
    pages = np.moveaxis(DEEP[..., :4], -1, 0)
    data = tiff(pages, **{"metadata": {}, "photometric": "minisblack"} | options)
    refused(data, "4 bands or pages")
    assert torch.equal(decode(data, "a", Reading(bands=(4, 1, 2))), levels(DEEP[..., [3, 0, 1]]))


def test_a_thumbnail_is_no_page_and_other_shapes_are_refused():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(DEEP[..., :3], photometric="rgb", metadata=None)
        file.write(DEEP[::4, ::4, :3], photometric="rgb", subfiletype=1, metadata=None)
    assert torch.equal(decode(buffer.getvalue(), "a"), levels(DEEP[..., :3]))
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(DEEP[..., :3], photometric="rgb", subifds=1, metadata=None)
        file.write(DEEP[::2, ::2, :3], photometric="rgb", metadata=None)
    assert torch.equal(decode(buffer.getvalue(), "a"), levels(DEEP[..., :3]))
    first, second = (Image.fromarray(DEEP[:size, :size, 0]) for size in (20, 7))
    buffer = io.BytesIO()
    first.save(buffer, "TIFF", save_all=True, append_images=[second])
    refused(buffer.getvalue(), "2 images of different shapes; save each as a file")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_range_is_of_the_values_in_the_file_if_the_lowest_is_white(kind):
    data = tiff(np.array([[0, 50, 70, 150, 200]], kind), photometric="miniswhite")
    assert decode(data, "a", Reading(range=(50, 150)))[0].tolist() == [[255, 255, 204, 0, 0]]


def test_white_can_be_the_lowest_value():
    image = decode(tiff(DEEP[..., 0], photometric="miniswhite"), "a")
    assert torch.equal(image, 255 - levels(DEEP[..., [0, 0, 0]]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_deep_tiff_is_applied(orientation):
    data = tiff(DEEP[..., :3], photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    eight = levels(DEEP[..., :3]).permute(1, 2, 0).numpy()
    Image.fromarray(eight).save(buffer, "PNG", exif=exif.tobytes())
    expected = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    assert np.array_equal(decode(data, "a").permute(1, 2, 0).numpy(), expected)


def test_jpeg_2000_keeps_its_bits_and_bands():
    def encoded(values):
        return imagecodecs.jpeg2k_encode(np.ascontiguousarray(values), level=0, reversible=True)

    assert torch.equal(decode(encoded(DEEP[..., :3]), "a"), levels(DEEP[..., :3]))
    four = encoded((DEEP[..., :4] >> 8).astype(np.uint8))
    refused(four, "4 bands or pages")
    chosen = decode(four, "a", Reading(bands=(3, 2, 1)))
    assert torch.equal(chosen, torch.from_numpy(DEEP[..., [2, 1, 0]] >> 8).permute(2, 0, 1).byte())
    buffer = io.BytesIO()
    Image.new("RGBA", (40, 40), (10, 20, 30, 51)).save(buffer, "JPEG2000")
    assert decode(buffer.getvalue(), "a")[:, 3, 3].tolist() == [206, 208, 210]


def test_large_and_truncated_files_are_refused():
    data = tiff(DEEP, photometric="rgb", extrasamples=[0, 0], compression="zlib")
    refused(data[: len(data) // 2], "field.tif: ")
    for encoded in (data, imagecodecs.jpeg2k_encode(DEEP[..., 0])):
        with pytest.raises(UnreadableImage, match="too large: 32 x 20 pixels"):
            decode(encoded, "a", Reading(bands=(1,)), max_pixels=639)
    refused(b"II*\0", "broken or truncated")
    refused(b"\0\0\0\x0cjP  ", "broken or truncated")


def test_without_imagecodecs_the_extra_is_named(monkeypatch):
    from tifffile import _imagecodecs

    data = tiff(DEEP[..., :3], photometric="rgb", compression="lzw")
    jpeg_2000 = imagecodecs.jpeg2k_encode(DEEP[..., 0])
    monkeypatch.setattr(tifffile.tifffile, "imagecodecs", _imagecodecs)
    decoders = tifffile.tifffile.CompressionCodec(encode=False)
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", decoders)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    refused(data, r"'imagecodecs' package.*: pip install \"beit\[formats\]\"")
    refused(jpeg_2000, r"imagecodecs.*: pip install \"beit\[formats\]\"")

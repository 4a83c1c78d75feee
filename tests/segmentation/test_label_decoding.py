import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from beit.data.source import UnreadableImage
from beit.segmentation.label_classes import ade20k_classes, label_classes, read_label_classes
from beit.segmentation.label_decoding import decode_label_map, encode_label_map, file_palette

CLASSES = label_classes(["ground", "cat", "dog"])
MAP = torch.tensor([[0, 1, 2, 255], [2, 2, 1, 0]], dtype=torch.uint8)
COLOURS = ((0, 0, 0), (200, 10, 20), (5, 6, 7))


def encoded(values, mode=None, form="PNG", **options):
    image = Image.fromarray(np.asarray(values))
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def coloured(tmp_path):
    file = tmp_path / "classes.yaml"
    file.write_text(
        "{classes: {ground: [0, 0, 0], cat: [200, 10, 20], dog: [5, 6, 7]}, ignored: [[9, 9, 9]]}"
    )
    return read_label_classes(str(file))


def test_a_palette_png_comes_back_as_it_was_written():
    data = encode_label_map(MAP, COLOURS)
    image = Image.open(io.BytesIO(data))
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), MAP.numpy())
    assert file_palette(image)[:3] == list(COLOURS)
    assert np.asarray(image.convert("RGB"))[0, 1].tolist() == [200, 10, 20]
    assert np.asarray(image.convert("RGB"))[0, 3].tolist() == [255, 255, 255]
    assert torch.equal(decode_label_map(data, "a.png", CLASSES), MAP)


def test_indices_of_grey_palette_bilevel_and_16_bit_pngs():
    assert torch.equal(decode_label_map(encoded(MAP), "a.png", CLASSES), MAP)
    wide = MAP.numpy().astype(np.uint16)
    assert torch.equal(decode_label_map(encoded(wide), "a.png", CLASSES), MAP)
    two = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    bilevel = decode_label_map(encoded(two, "1"), "a.png", CLASSES)
    assert bilevel.tolist() == [[0, 1], [1, 0]]
    assert bilevel.dtype == torch.uint8


def test_a_map_is_turned_as_its_exif_says():
    exif = Image.Exif()
    exif[274] = 3  # upside down
    turned = encoded(MAP.numpy()[::-1, ::-1].copy(), exif=exif)
    assert torch.equal(decode_label_map(turned, "a.png", CLASSES), MAP)


def test_a_map_of_several_pages_is_refused():
    pages = [Image.fromarray(MAP.numpy()) for _ in range(3)]
    data = encoded(MAP, form="TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"a\.tif: a label map of 3 pages, expected one; "):
        decode_label_map(data, "a.tif", CLASSES)


def test_a_map_with_a_long_text_is_read():
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<rdf:li>brush</rdf:li>" * 95_000, zip=True)
    assert torch.equal(decode_label_map(encoded(MAP, pnginfo=text), "a.png", CLASSES), MAP)


def grey_png(rows, bits):
    """Write a grey PNG of few bits, which Pillow itself does not."""
    height, width = len(rows), len(rows[0])
    lines = b""
    for row in rows:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        lines += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_greys_of_few_bits_are_not_spread(bits):
    rows = [[0, 1, 1], [1, 0, 1]] if bits == 1 else [[0, 1, 2], [2, 1, 3]]
    found = decode_label_map(grey_png(rows, bits), "a.png", label_classes(list("abcd")))
    assert found.tolist() == rows


def test_zero_of_ade20k_does_not_count():
    values = np.array([[0, 1], [150, 255]], dtype=np.uint8)
    assert decode_label_map(encoded(values), "a.png", ade20k_classes()).tolist() == [
        [255, 0], [149, 255]
    ]  # fmt: skip


def test_rgb_maps_are_read_by_their_colours_where_these_are_known(coloured):
    pixels = np.array([*COLOURS, (9, 9, 9)], dtype=np.uint8)[[[0, 1, 2, 3], [2, 2, 1, 0]]]
    assert torch.equal(decode_label_map(encoded(pixels), "a.png", coloured), MAP)
    pixels[1, 2] = (200, 10, 21)
    with pytest.raises(ValueError, match=r"a\.png: the colour \[200, 10, 21\] at row 1, column 2"):
        decode_label_map(encoded(pixels), "a.png", coloured)


def test_an_rgb_map_without_colours_is_refused():
    with pytest.raises(
        ValueError, match=r"b\.png: a map with 3 channels \(mode RGB\), expected one"
    ):
        decode_label_map(encoded(MAP, "RGB"), "b.png", CLASSES)
    with pytest.raises(ValueError, match=r"b\.png: a map with 4 channels"):
        decode_label_map(encoded(MAP, "RGBA"), "b.png", CLASSES)
    with pytest.raises(ValueError, match=r"b\.png: a map with 2 channels"):
        decode_label_map(encoded(MAP, "LA"), "b.png", CLASSES)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_value_out_of_range_is_named_with_its_place(kind):
    values = MAP.numpy().astype(kind)
    values[1, 2] = 3
    message = (
        r"c\.png: value 3 at row 1, column 2 \(from 0\) .* 0 to 2, or 255 where .* \(3 classes"
    )
    with pytest.raises(ValueError, match=message):
        decode_label_map(encoded(values), "c.png", CLASSES)
    if kind is np.uint16:
        values[0, 0] = 300
        with pytest.raises(ValueError, match="value 300 at row 0, column 0"):
            decode_label_map(encoded(values), "c.png", CLASSES)


def test_a_palette_that_contradicts_the_class_list_is_refused(coloured):
    known = MAP.clamp(max=2)
    assert torch.equal(decode_label_map(encode_label_map(known, COLOURS), "d", coloured), known)
    data = encode_label_map(known, [COLOURS[0], COLOURS[2], COLOURS[1]])
    with pytest.raises(
        ValueError, match=r"d\.png: index 1, which means cat, has the colour of dog"
    ):
        decode_label_map(data, "d.png", coloured)
    # Colours that mean nothing say nothing.
    data = encode_label_map(known, [(1, 1, 1), (2, 2, 2), (3, 3, 3)])
    assert torch.equal(decode_label_map(data, "d.png", coloured), known)


def test_lossy_and_broken_files_are_refused():
    with pytest.raises(ValueError, match=r"e\.jpg: a label map in JPEG, .* save it as PNG"):
        decode_label_map(encoded(MAP, form="JPEG"), "e.jpg", CLASSES)
    with pytest.raises(ValueError, match=r"e\.gif: a label map in GIF, .* save it as PNG"):
        decode_label_map(encoded(MAP, form="GIF"), "e.gif", CLASSES)
    with pytest.raises(UnreadableImage, match=r"f\.png: not an image"):
        decode_label_map(b"text", "f.png", CLASSES)
    with pytest.raises(UnreadableImage, match=r"g\.png: "):
        decode_label_map(encoded(MAP)[:45], "g.png", CLASSES)

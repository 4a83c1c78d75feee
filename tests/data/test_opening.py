import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import beit
from beit.data.pixels.decoding import decode
from beit.data.views import EvalView

ORIENTATION = 0x0112


def picture(height=30, width=44, mode="RGB"):
    rows, columns = np.mgrid[0:height, 0:width] * 5 % 256
    return Image.fromarray(np.stack([rows, columns, rows], -1).astype(np.uint8)).convert(mode)


@pytest.fixture
def file(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture().save(tmp_path / "cat.jpg", exif=exif)
    return tmp_path / "cat.jpg"


def test_a_file_its_bytes_and_what_pillow_opens_are_the_same_image(file):
    image = beit.open_image(file)
    assert image.shape == (1, 3, 44, 30) and image.dtype == torch.uint8
    assert torch.equal(image[0], decode(file.read_bytes(), "cat"))
    for same in (str(file), file.read_bytes(), Image.open(file)):
        assert torch.equal(beit.open_image(same), image)


def test_the_callers_image_is_not_turned(file):
    image = Image.open(file)
    beit.open_image(image)
    assert image.size == (44, 30) and image.getexif()[ORIENTATION] == 6


def test_a_size_gives_the_view_of_evaluation(file):
    whole = beit.open_image(file)[0]
    assert torch.equal(beit.open_image(file, size=(16, 8))[0], EvalView((16, 8))(whole))
    uncropped = beit.open_image(file, size=16, crop_ratio=1.0)[0]
    assert torch.equal(uncropped, EvalView((16, 16), 1.0)(whole))


@pytest.mark.parametrize("size", ["64", (64,), 64.0, 0, (8, -8)])
def test_a_size_that_is_none_is_refused(file, size):
    with pytest.raises(ValueError, match=r"size is .*; expected one side or \(height, width\)"):
        beit.open_image(file, size=size)


def test_a_model_of_others_is_named_by_its_class(file):
    with pytest.raises(ValueError, match=r"^size is 'Linear'; expected .* or a model of beit$"):
        beit.open_image(file, size=nn.Linear(2, 2))


def test_a_list_is_a_batch(file):
    batch = beit.open_image([file, picture(70, 50)], size=16)
    assert batch.shape == (2, 3, 16, 16)
    assert torch.equal(batch[:1], beit.open_image(file, size=16))
    with pytest.raises(ValueError, match=r"several sizes.*give size=\(height, width\)"):
        beit.open_image([file, picture()])


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_modes_of_pillow_become_rgb(mode):
    image = picture(mode=mode) if mode != "I;16" else Image.new(mode, (44, 30), 40000)
    assert beit.open_image(image).shape == (1, 3, 30, 44)


def test_transparent_images_of_pillow_lie_over_white_as_files_do():
    image = picture(mode="RGBA")
    image.putalpha(picture(mode="L"))
    data = io.BytesIO()
    image.save(data, "PNG")
    assert torch.equal(beit.open_image(image), beit.open_image(data.getvalue()))


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.jpg: No such file"):
        beit.open_image(tmp_path / "nothing.jpg")
    with pytest.raises(ValueError, match="is a folder; give a list of its files"):
        beit.open_image(tmp_path)
    with pytest.raises(TypeError, match="of type Tensor; expected a path"):
        beit.open_image(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="no image given"):
        beit.open_image([])


@pytest.mark.parametrize("images", ["cat.jpg", [], Image.new("RGB", (3, 4))])
def test_models_say_how_to_open_images(images):
    from beit.nn.patches import pixels_of

    with pytest.raises(TypeError, match=r"beit\.open_image\(images, size=model\)"):
        pixels_of(images)

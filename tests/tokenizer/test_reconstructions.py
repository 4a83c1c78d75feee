import io

import numpy as np
import pytest
import torch
from PIL import Image

from beit.tokenizer.reconstructions import reconstructions

IMAGES = torch.randint(
    256, (2, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
SCALE = 256 // 6


def test_image_copy_and_distance_side_by_side() -> None:
    painted = IMAGES.float() / 255
    painted[1] = (painted[1] + 0.1).where(painted[1] < 0.5, painted[1] - 0.1)
    gallery = reconstructions(IMAGES, painted, "Two images.")
    assert gallery.caption.startswith("Two images. Left to right: the image")
    assert [p.caption for p in gallery.pictures] == ["no error", "PSNR 20.0 dB"]
    for index, picture in enumerate(gallery.pictures):
        sheet = np.asarray(Image.open(io.BytesIO(picture.data)))
        assert sheet.shape == (4 * SCALE, 18 * SCALE + 16, 4)
        step = 6 * SCALE + 8
        assert sheet[0, 0, :3].tolist() == IMAGES[index, :, 0, 0].tolist()
        copy = (painted[index, :, 0, 0] * 255).round().int().tolist()
        assert sheet[0, step, :3].tolist() == copy
        distance = np.abs(sheet[:, 2 * step :, :3].astype(int) - 127.5)
        assert np.abs(distance - (0 if index == 0 else 51)).max() <= 1  # 2 * 0.1
        if index == 1:  # lighter where the copy is
            lighter = sheet[0, step, :3].astype(int) > sheet[0, 0, :3]
            assert ((sheet[0, 2 * step, :3] > 127) == lighter).all()


def test_pictures_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images \(2, 3, 4, 6\) and painted \(1, 3, 4, 6\)"):
        reconstructions(IMAGES, IMAGES[:1], "")

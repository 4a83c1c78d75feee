import numpy as np
import pytest
import torch
from PIL import Image

from beit.nn.resample import bicubic_crops, lanczos


@pytest.mark.parametrize(
    ("old", "new"),
    [((37, 53), (16, 24)), ((9, 11), (20, 30)), ((28, 30), (28, 14)), ((45, 14), (9, 40))],
)
def test_lanczos_is_pillows_to_the_bit(old, new):
    images = torch.randint(256, (2, 3, *old), generator=torch.Generator().manual_seed(0)).byte()
    images[0, :, :5] = 255  # an edge, behind which the kernel overshoots
    images[0, :, 5:9] = 0
    for image, actual in zip(images, lanczos(images, new), strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
        # In two steps: some versions of Pillow begin with the columns where that is less work.
        wide = pillow.resize((new[1], old[0]), Image.Resampling.LANCZOS)
        expected = np.asarray(wide.resize(new[::-1], Image.Resampling.LANCZOS))
        assert np.array_equal(actual.permute(1, 2, 0).numpy(), expected)


def test_its_own_size_changes_nothing():
    image = torch.arange(3 * 4 * 6, dtype=torch.uint8).view(3, 4, 6)
    assert torch.equal(lanczos(image, (4, 6)), image)


def test_images_of_floats_are_refused():
    with pytest.raises(ValueError, match=r"torch\.float32, expected uint8"):
        lanczos(torch.rand(3, 4, 6), (2, 3))


@pytest.mark.parametrize(
    ("old", "new"), [((37, 53), (16, 24)), ((20, 24), (48, 40)), ((32, 32), (32, 32))]
)
def test_bicubic_crops_are_torchs_to_the_bit(old, new):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (150, 3, *old), generator=generator).byte()
    images[:50] = (images[:50] > 127) * 255  # edges, behind which the kernel overshoots
    images[50:100] = images[50:100, :, :1, :1]  # flat
    sides = torch.cat(
        [torch.randint(1, side + 1, (150, 1), generator=generator) for side in old], 1
    )
    corners = (torch.rand(150, 2, generator=generator) * (torch.tensor(old) - sides + 1)).long()
    mirrored = torch.rand(150, generator=generator) < 0.5
    crops = bicubic_crops(images, torch.cat([corners, sides], dim=1), mirrored, new)
    for n, crop in enumerate(crops):
        (top, left), (height, width) = corners[n].tolist(), sides[n].tolist()
        expected = images[n : n + 1, :, top : top + height, left : left + width]
        expected = expected.flip(-1) if mirrored[n] else expected.contiguous()
        resized = torch.nn.functional.interpolate(expected, new, mode="bicubic", antialias=True)
        assert torch.equal(crop, resized[0])

import pytest
import torch

from beit.data.source import UnreadableImage
from beit.pictures.images import read_images


class Album:
    """Images of these sizes; None cannot be read."""

    labels = class_names = None
    why_unlabelled = ""

    def __init__(self, *sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def name(self, index):
        return f"\udcff {index}"

    def image(self, index):
        if self.sizes[index] is None:
            raise UnreadableImage(self.name(index), "cut short")
        return torch.full((3, *self.sizes[index]), index, dtype=torch.uint8)


def views(image):
    return image[:, :2, :3], image[:, :1]


def test_images_are_read_or_left_out_with_a_reason():
    names, images, target_images, left_out = read_images(
        Album((4, 5), None, (4, 4), (2, 3)), views, (2, 5)
    )
    assert names == ["? 0"]  # valid UTF-8
    assert torch.equal(images, torch.zeros(1, 3, 2, 3, dtype=torch.uint8))
    assert target_images.shape == (1, 3, 1, 5)
    assert left_out == [
        ("? 1", "cannot be read: cut short"),
        ("? 2", "4 x 4 pixels, smaller than a patch of 2 x 5"),
        ("? 3", "2 x 3 pixels, smaller than a patch of 2 x 5"),
    ]


def test_no_readable_image_is_an_error():
    with pytest.raises(ValueError, match=r"none of 2 images .* is \? 0: cannot be read: cut short"):
        read_images(Album(None, (1, 9)), views, (2, 2))

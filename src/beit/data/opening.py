"""Images as models take them, from files and from Pillow: `beit.open_image`."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from beit.data.channels import compare_pixels
from beit.data.folders.image_files import read_image
from beit.data.pixels.decoding import decode, rgb_of
from beit.data.spec import split_query
from beit.data.views import CROP_RATIO, EvalView
from beit.files import user_path

Picture = str | Path | bytes | Image.Image


def open_image(
    image: Picture | Sequence[Picture],
    size: int | tuple[int, int] | nn.Module | None = None,
    crop_ratio: float | None = None,
) -> Tensor:
    """Return images (B, 3, H, W) uint8, as models take them: upright, RGB, over white.

    Args:
        image: a file's path or its bytes, a PIL image, or a list of these, which becomes a batch. A
            path may name bands and their range like data of a command, for a model of as many
            channels: cell.tif?bands=1-5&range=0:4095
        size: (height, width) or one side: resized and centre-cropped to it, as in validation; or a
            loaded model, for its size and crop, which warns of paths with other bands or another
            range than its training images; None for whole images, which must have one size
        crop_ratio: side of the centre crop over the shorter side; 1 for images without a margin.
            None for what the model's files say, else 0.875

    Raises:
        TypeError: something else than such an image
        ValueError: a folder, a size that is none, or images of several sizes without one
        UnreadableImage: a file is missing or damaged; a ValueError
    """
    several = image if isinstance(image, list | tuple) else [image]
    if not several:
        raise ValueError("no image given; expected at least one")
    if trained := getattr(size, "pixel_options", None):
        for path in several:
            if isinstance(path, str | os.PathLike):
                compare_pixels(trained, "the model was trained with", os.fspath(path))
    images = [_opened(one) for one in several]
    if size is not None:
        stated = getattr(size, "crop_ratio", None) if crop_ratio is None else crop_ratio
        view = EvalView(_sides(size), CROP_RATIO if stated is None else stated)
        images = [view(one) for one in images]
    channels = dict.fromkeys(len(one) for one in images)
    if len(channels) > 1:
        raise ValueError(f"images of several numbers of channels, {list(channels)}")
    sizes = dict.fromkeys(tuple(one.shape[-2:]) for one in images)
    if len(sizes) > 1:
        raise ValueError(f"images of several sizes, {list(sizes)[:3]}; give size=(height, width)")
    return torch.stack(images)


def _sides(size: object) -> tuple[int, int]:
    given = type(size).__name__ if hasattr(size, "parameters") else size
    size = getattr(size, "image_size", size)
    sides = (size, size) if isinstance(size, int) else size
    match sides:
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
    raise ValueError(
        f"size is {given!r}; expected one side or (height, width), in pixels, or a model of beit"
    )


def _opened(image: object) -> Tensor:
    if isinstance(image, str | os.PathLike):
        path, reading = split_query(os.fspath(image))
        file = user_path(path)
        if file.is_dir():
            raise ValueError(f"{path} is a folder; give a list of its files, or one of them")
        return read_image(file, path, reading)
    if isinstance(image, bytes):
        return decode(image, "image")
    if isinstance(image, Image.Image):
        return rgb_of(image)
    raise TypeError(
        f"an image is of type {type(image).__name__}; expected a path, the bytes of a file or a "
        "PIL image. Models take tensors (B, 3, H, W) as they are"
    )

"""A few images as a model sees them, to be drawn; and which ones cannot be, and why."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from beit.data.decoding import UnreadableImage
from beit.data.sources import Source


class Seen(NamedTuple):
    """Images of one size, and those left out.

    Attributes:
        names: one an image, in letters that UTF-8 has
        images: (B, 3, H, W) uint8
        left_out: names and reasons
    """

    names: list[str]
    images: Tensor
    left_out: list[tuple[str, str]]


def seen_images(
    source: Source, view: Callable[[Tensor], Tensor], patch_size: tuple[int, int]
) -> Seen:
    """Read all images of a source, in order.

    Args:
        view: from (3, H, W) uint8 to what the model sees of it
        patch_size: (height, width); smaller images are left out, as those that cannot be read

    Raises:
        ValueError: no image is left.
    """
    names: list[str] = []
    views: list[Tensor] = []
    left_out: list[tuple[str, str]] = []
    for index in range(len(source)):
        name = source.name(index).encode(errors="replace").decode()  # bytes that are no letters
        try:
            image = source.image(index)
        except UnreadableImage as error:
            left_out.append((name, f"cannot be read: {error.reason}"))
            continue
        (h, w), (P, Q) = image.shape[1:], patch_size
        if h < P or w < Q:
            left_out.append((name, f"{h} x {w} pixels, smaller than a patch of {P} x {Q}"))
            continue
        names.append(name)
        views.append(view(image))
    if not views:
        name, reason = left_out[0]
        raise ValueError(
            f"none of {len(source)} images can be drawn; the first is {name}: {reason}; "
            "name other images"
        )
    return Seen(names, torch.stack(views), left_out)

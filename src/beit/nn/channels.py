"""Channels of images with more or fewer than three, to look at or for a model of RGB."""

from torch import Tensor


def as_rgb(images: Tensor) -> Tensor:
    """Return images (..., c, H, W) to look at, (..., 3, H, W): their first three channels.

    With less than three, the first is grey.
    """
    if images.shape[-3] == 3:
        return images
    chosen = [0, 1, 2] if images.shape[-3] > 3 else [0, 0, 0]
    return images[..., chosen, :, :]


def chosen_channels(images: Tensor, numbers: tuple[int, ...]) -> Tensor:
    """Return the channels of images (B, c, H, W) with these numbers, from 1, for a model of RGB.

    One becomes three equal ones; none chooses all.
    """
    if not numbers:
        return images
    if max(numbers) > images.shape[1]:
        raise ValueError(f"channels are {numbers}, but images have {images.shape[1]}")
    places = [number - 1 for number in numbers] * (3 if len(numbers) == 1 else 1)
    return images[:, places]

"""Turn samples of any depth and number of bands into RGB or other channels of 8 bits.

Nothing is stretched image by image: a value means the same in every image of a set. Where a file
does not say what its samples are, the rules below assume it or ask for `SOURCE?range=LOW:HIGH` and
`SOURCE?bands=3,2,1`.

Channels have 8 bits whatever their number: memory, disk and time grow with that number alone, and
every view, cache and model takes them as it takes RGB. What the bits are spent on is said band by
band, `SOURCE?bands=1-3&range=0:3000,0:3000,0:400`.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from beit.data.spec import Reading

Values = npt.NDArray[Any]
_TOGETHER = 1 << 20  # pixels computed at once: a whole image in wider numbers takes gigabytes


class Samples(NamedTuple):
    """Samples as a file holds them. Bands are numbered from 1."""

    values: Values  # (H, W, C) of any real dtype
    colours: tuple[int, ...]  # bands that are grey or red, green and blue; none if unknown
    alpha: int | None = None  # band that is the opacity
    premultiplied: bool = False  # colours are multiplied by the opacity
    inverted: bool = False  # the lowest value is white
    range: tuple[float, float] | None = None  # values of black and white, if the file says them


def to_channels(samples: Samples, reading: Reading) -> Tensor:
    """Choose the bands, scale them to 8 bits and show transparency over white.

    The range of values is the reading's, else the file's, else that of the dtype: all of it for 8
    and 16 bits, [0, 1] for floats. Values beyond it are clipped, NaN is black; others are rounded
    to the nearest level. With bands from the reading, there is no transparency.

    Returns: (3, H, W) uint8; with bands from the reading, as many channels as it names, but three
        equal ones for one band. Raises ValueError if bands or range have to be given.
    """
    values, count = samples.values, samples.values.shape[-1]
    numbers = reading.bands or samples.colours
    if not numbers:
        order, colours = "1,2,3" if count == 3 else "3,2,1", ""
        if count > 2:
            colours = f"which are red, green and blue, as in SOURCE?bands={order}, "
        raise ValueError(
            f"{count} bands or pages; say {colours}which one is grey, as in SOURCE?bands=1, or "
            f"take all, as in SOURCE?bands=1-{count}"
        )
    if max(numbers) > count:
        raise ValueError(
            f"bands={','.join(map(str, numbers))}, but there are {count}; name bands that all "
            "images of a set have, and keep others in another set"
        )
    bands = [values[..., number - 1] for number in numbers]
    if values.dtype == np.uint8 and reading.range and max(reading.range) > 255:
        given = "range={:g}:{:g}".format(*reading.range[:2])
        raise ValueError(f"8 bits a sample, too few for {given}; keep such images in another set")
    ends = reading.range or samples.range or _assumed_ranges(bands, numbers)
    ranges = zip(ends[::2], ends[1::2], strict=True) if len(ends) > 2 else [ends] * len(bands)
    levels = [_levels(band, low, high) for band, (low, high) in zip(bands, ranges, strict=True)]
    channels = torch.from_numpy(np.stack(levels))
    if samples.inverted:
        channels = 255 - channels
    if samples.alpha is not None and not reading.bands:
        opacity = values[..., samples.alpha - 1]
        alpha = _levels(opacity, *(samples.range or _full_range(opacity.dtype)))
        channels = over_white(channels, torch.from_numpy(alpha), samples.premultiplied)
    return (channels if len(bands) > 1 else channels.expand(3, -1, -1)).contiguous()


def over_white(colours: Tensor, opacity: Tensor, premultiplied: bool = False) -> Tensor:
    """Show colours (C, H, W) uint8 of an opacity (H, W) uint8 over white: (C, H, W) uint8."""
    shown = torch.empty_like(colours, memory_format=torch.contiguous_format)
    whole = (shown.flatten(1), colours.flatten(1), opacity.flatten())
    for part, colour, alpha in zip(*(v.split(_TOGETHER, -1) for v in whole), strict=True):
        colour, alpha = colour.to(torch.int32), alpha.to(torch.int32)
        if premultiplied:
            part.copy_((colour + 255 - alpha).clamp(max=255))
        else:
            part.copy_((colour * alpha + 255 * (255 - alpha) + 127) // 255)
    return shown


def _full_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    return (0, np.iinfo(dtype).max) if dtype.kind in "iu" else (0, 1)


def _assumed_ranges(bands: list[Values], numbers: tuple[int, ...]) -> tuple[float, ...]:
    """Return the range of all bands, or low and high of each if they are no colours.

    Raises ValueError if that is unsure.
    """
    if len(bands) in (1, 3):
        return _assumed_range(bands)
    ends = list[float]()
    for number, band in zip(numbers, bands, strict=True):
        try:
            ends += _assumed_range([band])
        except ValueError as error:
            raise ValueError(f"band {number}: {error}") from None
    return tuple(ends)


def _assumed_range(bands: list[Values]) -> tuple[float, float]:
    """Return the range of values that the dtype stands for. Raises ValueError if that is unsure."""
    dtype = bands[0].dtype
    low, high = _full_range(dtype)
    if dtype.kind == "b" or (dtype.kind == "u" and dtype.itemsize == 1):
        return low, high
    least = min(np.fmin.reduce(band, axis=None) for band in bands)  # without NaN
    most = max(np.fmax.reduce(band, axis=None) for band in bands)
    known = (dtype.kind == "u" and dtype.itemsize == 2) or dtype.kind == "f"
    if not (known and low <= least and most <= high):
        raise ValueError(
            f"{dtype} values from {least:g} to {most:g}; say which values are black and white in "
            "this set, as in SOURCE?range=0:3000"
        )
    if 0 < most < high / 4:
        bits = 12 if most < 1 << 12 else 14
        camera = f"0:{(1 << bits) - 1} for a camera of {bits} bits"
        example = "0:0.1" if dtype.kind == "f" else camera
        raise ValueError(
            f"{dtype} values up to {most:g} only, nearly black between 0 and {high:g}; say which "
            f"values are black and white in this set, as in SOURCE?range={example}, or "
            f"SOURCE?range=0:{high:g} if the image is dark"
        )
    return low, high


def _levels(band: Values, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Map (H, W) from [low, high] to 0..255: whole numbers of at most 16 bits by a table."""
    if band.dtype.kind != "f" and band.dtype.itemsize <= 2:
        bits = band.view(f"u{band.dtype.itemsize}")
        found: Values = _table(band.dtype, low, high)[bits]  # `take` would widen the bits
        return found
    levels = np.empty(band.shape, np.uint8)
    rows = max(1, _TOGETHER // max(1, band.shape[1]))
    for start in range(0, len(band), rows):
        levels[start : start + rows] = _scaled(band[start : start + rows], low, high)
    return levels


@lru_cache(maxsize=8)
def _table(kind: np.dtype[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Return the level of each number that so few bits can be."""
    bits = np.arange(1 << (8 * kind.itemsize), dtype=f"u{kind.itemsize}")
    return _scaled(bits.view(kind), low, high)


def _scaled(values: Values, low: float, high: float) -> npt.NDArray[np.uint8]:
    levels = ((values.astype(np.float64) - low) * 255 / (high - low)).clip(0, 255)
    rounded: npt.NDArray[np.uint8] = (np.nan_to_num(levels) + 0.5).astype(np.uint8)
    return rounded
